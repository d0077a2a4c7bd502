# SPDX-License-Identifier: GPL-2.0-or-later
"""From a kernel's name to the Debian suite and the packages that provide it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from harness.arch import ArchSpec
from harness.artifacts.apt import PrivateApt, apt, host_arch, suites_to_ask
from harness.artifacts.apt_words import NoPackage, NoSuite
from harness.config.selector import IMAGE_PREFIX, SOURCE_PREFIX, DebianName
from harness.errors import UsageError
from harness.progress import Progress

T = TypeVar("T")

#: the meta-package for the source of a suite's own kernel
_SOURCE_META = "linux-source"
#: a kernel's parts: up to 6.15 one package holds everything, since Debian's linux 6.16-1 it depends on these
_PART = re.compile(r"linux-(?:base|binary|modules)-\d.*")
#: meta-package, then the package of one version, then its unsigned twin
_STEPS = 3


def find_source(name: DebianName, usual: str, progress: Progress) -> tuple[PrivateApt, str]:
    """The APT and the ``linux-source-…`` package for ``name``; ``usual`` if it names neither a package nor a suite.

    Raises UsageError naming the searched suites if none has it.
    """

    def find(source: PrivateApt) -> str:
        package = name.package or (f"{SOURCE_PREFIX}{name.version}" if name.version else None)
        if package is None and name.suite is not None:
            needs = source.depends(_SOURCE_META, progress)
            package = next((need for need in needs if need.startswith(SOURCE_PREFIX)), _SOURCE_META)
        package = package or usual
        source.closure([package], progress, dependencies=False)
        return package

    return _first(name, host_arch(), suites_to_ask(), find)


def find_stock(arch: ArchSpec, name: DebianName, progress: Progress) -> tuple[PrivateApt, list[str]]:
    """The APT and the packages of the stock kernel ``name``, the kernel's first; raises UsageError as ``find_source``.

    A meta-package depends on it; where Debian signs kernels, an unsigned twin has the same Image.
    """

    def find(source: PrivateApt) -> list[str]:
        if name.version is not None:
            return _parts(source, _newest(source, arch, name.version, progress), progress)
        return _parts(source, name.package or arch.kernel_package, progress)

    # `debian` means the suite's own kernel: another suite's kernel will not do.
    suites = suites_to_ask() if name.package or name.version else suites_to_ask()[:1]
    return _first(name, arch.name, suites, find)


def _first(name: DebianName, arch: str, suites: Sequence[str], find: Callable[[PrivateApt], T]) -> tuple[PrivateApt, T]:
    asked = suites if name.suite is None else (name.suite,)
    reasons = []
    for suite in asked:
        source = apt(arch, suite)
        try:
            return source, find(source)
        except (NoPackage, NoSuite) as error:
            reasons.append(error)
    if len(reasons) == 1:
        raise UsageError(f"--kernel {name.text}: {reasons[0].message}", hint=reasons[0].hint) from reasons[0]
    messages = "; ".join(reason.message for reason in reasons)
    raise UsageError(
        f"--kernel {name.text} is in none of the suites {', '.join(asked)}: {messages}",
        hint="check the name, or append the suite that has it: NAME@SUITE",
    )


def _newest(source: PrivateApt, arch: ArchSpec, version: str, progress: Progress) -> str:
    """The package of the newest plain kernel of ``version``; cloud, rt and 16k kernels have more words in the name."""
    shape = re.compile(rf"{re.escape(IMAGE_PREFIX + version)}(?:[.~+][^-]*)?(?:-\d+)?-{arch.name}")
    prefix = f"{IMAGE_PREFIX}{version}"
    found = [package for package in source.names(prefix, progress) if shape.fullmatch(package)]
    for package in sorted(found, key=_numbers, reverse=True):
        try:
            source.closure([package], progress, dependencies=False)
        except NoPackage:
            # Skips names that are only references, or belong to another suite.
            continue
        return package
    raise NoPackage(
        f"Debian {source.suite} has no package {prefix}…-{arch.name}",
        hint="check the version, or append a suite: debian:VERSION@SUITE",
    )


def _numbers(package: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", package)]


def _parts(source: PrivateApt, name: str, progress: Progress) -> list[str]:
    for _ in range(_STEPS):
        needs = source.depends(name, progress)
        images = [other for other in needs if other.startswith(IMAGE_PREFIX)]
        if not images:
            break
        name = images[0]
    return [name, *(other for other in needs if _PART.fullmatch(other))]
