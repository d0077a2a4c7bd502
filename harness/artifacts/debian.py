# SPDX-License-Identifier: GPL-2.0-or-later
"""Which suite of Debian's has what a name means, and which packages it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from harness.arch import ArchSpec
from harness.artifacts.apt import PrivateApt, suites_to_ask
from harness.artifacts.apt_words import NoPackage, NoSuite
from harness.artifacts.store import apt, host_arch
from harness.config.selector import IMAGE_PREFIX, SOURCE_PREFIX, DebianName
from harness.errors import UsageError
from harness.progress import Progress

T = TypeVar("T")

#: the package that depends on the source of a suite's own kernel
_SOURCE_META = "linux-source"
#: a kernel's parts: up to 6.15 its package holds everything, later ones only depend on these (Debian's linux 6.16-1)
_PART = re.compile(r"linux-(?:base|binary|modules)-\d.*")
#: meta-package, then the package of one version, then its unsigned twin
_STEPS = 3


def find_source(name: DebianName, usual: str, progress: Progress) -> tuple[PrivateApt, str]:
    """The APT and the ``linux-source-…`` package that ``name`` means; ``usual`` where it names neither it nor a suite.

    Raises UsageError naming the suites that were asked if none has it.
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
    """The APT and the packages, the kernel's own first, that make up the stock kernel ``name``.

    A meta-package depends on it; where Debian signs kernels, an unsigned twin has the same Image. Raises UsageError
    naming the suites that were asked if none has it.
    """

    def find(source: PrivateApt) -> list[str]:
        if name.version is not None:
            return _parts(source, _newest(source, arch, name.version, progress), progress)
        return _parts(source, name.package or arch.kernel_package, progress)

    # A suite has one kernel of its own: that of another is no answer to `debian`.
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
    told = "; ".join(reason.message for reason in reasons)
    raise UsageError(
        f"--kernel {name.text} is in none of the suites {', '.join(asked)}: {told}",
        hint="check the name, or name the suite that has it: @SUITE after it",
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
            # Old ones are still referred to, or it is another suite's.
            continue
        return package
    raise NoPackage(
        f"Debian {source.suite} has no package {prefix}…-{arch.name}",
        hint="check the version; a name takes a suite (debian:VERSION@SUITE)",
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
