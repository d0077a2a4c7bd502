# SPDX-License-Identifier: GPL-2.0-or-later
"""The QEMU that runs a guest: the user's, the machine's, Debian's newer one, or one built with our patches."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import proc
from harness.arch import ArchSpec
from harness.artifacts import qemu_build
from harness.artifacts.apt import apt, default_suite, fingerprints, host_arch, unpack
from harness.artifacts.apt_words import NoPackage, NoSuite
from harness.artifacts.cache import Cache, scratch
from harness.artifacts.elf_needed import find_closure, inside
from harness.config.guest_parts import QemuBinary
from harness.config.selector import is_debian_name, parse_qemu_name
from harness.deadline import Deadline
from harness.errors import ArtefactError, InfraError, UnsupportedError, UsageError
from harness.progress import Progress

#: why a binary is unsuitable, None if it is suitable
Able = Callable[[QemuBinary], str | None]

#: part of the cache key: increase it when this module turns the same packages into another result
RECIPE = "1"

_VERSION_SECONDS = 30.0
_VERSION = re.compile(r"QEMU emulator version (\S+)")
#: loaded by name at run time, so that the program's file does not list them
_LOADED_BY_NAME = ("libgcc_s.so.1",)


def find_qemu(arch: ArchSpec, *, explicit: str | None, able: Able, progress: Progress) -> QemuBinary:
    """The first QEMU that ``able`` accepts. If ``explicit`` is a path, that one alone; otherwise the machine's own, one
    built here before, Debian's package, one built now. ``debian`` means the last three, ``debian:SUITE`` that suite's
    package unpatched: our patches are for the default suite's.

    Raises UsageError for a path that is not a QEMU and for an unknown suite, UnsupportedError naming what each
    candidate lacks, ArtefactError if one cannot be fetched or built.
    """
    if explicit is not None and not is_debian_name(explicit):
        binary = own_qemu(Path(explicit))
        lack = able(binary)
        if lack is not None:
            raise UnsupportedError("qemu", f"--qemu {explicit}: {lack}", hint="omit --qemu: memhp finds a suitable one")
        return binary
    try:
        return _first_able(arch, explicit, able, progress)
    except (NoPackage, NoSuite) as error:
        if explicit is None:
            raise
        raise UsageError(f"--qemu {explicit}: {error.message}", hint=error.hint) from error


def _first_able(arch: ArchSpec, explicit: str | None, able: Able, progress: Progress) -> QemuBinary:
    reasons: list[str] = []
    for candidate in _candidates(arch, explicit, progress, reasons):
        lack = able(candidate)
        if lack is None:
            return candidate
        reasons.append(f"{candidate.origin}: {lack.partition(': run memhp')[0]}")
    listed = "".join(f"\n  {reason}" for reason in reasons)
    which = f"--qemu {explicit}: none" if explicit else "no QEMU"
    hint = "omit --qemu: memhp finds a suitable one" if explicit else "name a suitable one with --qemu"
    raise UnsupportedError("qemu", f"{which} for {arch.name} is suitable:{listed}", hint=hint)


def own_qemu(path: Path) -> QemuBinary:
    """The user's own QEMU; raises UsageError if it is not a QEMU or does not run."""
    if not path.is_file() or not os.access(path, os.X_OK):
        raise UsageError(f"--qemu {path} is not a program", hint="name the qemu-system-… binary itself")
    argv = (str(path.absolute()),)
    try:
        return QemuBinary(argv, None, str(path), version_of(argv))
    except InfraError as error:
        raise UsageError(f"--qemu {path}: {error.message}", hint="name the qemu-system-… binary itself") from error


def version_of(argv: tuple[str, ...]) -> str:
    """The version from ``--version``, such as 10.0.13; raises InfraError for anything but a QEMU that runs."""
    said = proc.run([*argv, "--version"], deadline=Deadline(_VERSION_SECONDS)).stdout.decode(errors="replace")
    match = _VERSION.search(said)
    if match is None:
        raise InfraError(f"{argv[-1]} is not QEMU: it calls itself {said[:100]!r}")
    return match[1]


def debian_qemu(arch: ArchSpec, progress: Progress, suite: str | None = None) -> QemuBinary:
    """QEMU of ``suite`` (None: the default) with its libraries, run by its own loader, on any host and without root.

    Raises ArtefactError if it cannot be fetched.
    """
    source = apt(host_arch(), suite)
    program = f"qemu-system-{arch.qemu_target}"
    packages = source.closure([arch.qemu_package], progress)

    def build(out: Path) -> None:
        work = scratch(out)
        unpack(source.download([arch.qemu_package], progress), work, progress)
        _take_over(work, program, out)

    inputs = {"recipe": RECIPE, "program": program, **fingerprints(packages)}
    path = Cache().get("qemu", f"{arch.qemu_target}-debian", inputs, build, progress, what=f"Debian's {program}")
    argv = (str(path / "lib" / "ld.so"), "--library-path", str(path / "lib"), str(path / "bin" / program))
    return QemuBinary(
        argv, path / "share" / "qemu", f"Debian's {arch.qemu_package} of {source.suite}", version_of(argv)
    )


def _candidates(arch: ArchSpec, explicit: str | None, progress: Progress, reasons: list[str]) -> Iterator[QemuBinary]:
    suite = None if explicit is None else parse_qemu_name(explicit).suite
    host = shutil.which(f"qemu-system-{arch.qemu_target}")
    if host is not None and explicit is None:
        try:
            yield QemuBinary((host,), None, f"the host's {host}", version_of((host,)))
        except InfraError as error:
            reasons.append(f"the host's {host}: {error.message}")
    source, cache = apt(host_arch(), suite), Cache()
    # Without patches it would equal Debian's; the patches are for the QEMU of the default suite.
    patched = bool(qemu_build.load_recipe(arch).patches) and source.suite == default_suite()
    built = None
    # Without source lists it cannot have been built.
    if patched and source.knows_sources():
        built = qemu_build.find_qemu(arch, apt=source, cache=cache, progress=progress)
        if built is not None:
            yield built
    yield debian_qemu(arch, progress, suite)
    if patched and built is None:
        yield qemu_build.build_qemu(arch, apt=source, cache=cache, progress=progress)


def _take_over(root: Path, program: str, out: Path) -> None:
    """Extract from the unpacked packages the program itself, its libraries into one folder, and its data."""
    triplet = f"{platform.machine()}-linux-gnu"
    binary = root / "usr" / "bin" / program
    if not binary.is_file():
        raise ArtefactError(f"the packages have no {program}")
    closure = find_closure(root, [binary], triplet)
    libraries = dict(closure.libraries)
    for name in _LOADED_BY_NAME:
        extra = inside(root, f"usr/lib/{triplet}/{name}")
        if extra.is_file():
            libraries[name] = extra
    for folder in ("bin", "lib", "share/qemu"):
        (out / folder).mkdir(parents=True)
    shutil.copy(binary, out / "bin" / program)
    shutil.copy(closure.loader, out / "lib" / "ld.so")
    for name, path in libraries.items():
        shutil.copy(path, out / "lib" / name)
    data = root / "usr" / "share" / "qemu"
    for name in sorted(os.listdir(data)):
        path = inside(root, f"usr/share/qemu/{name}")
        if path.is_file():
            shutil.copy(path, out / "share" / "qemu" / name)
    shutil.copytree(data / "keymaps", out / "share" / "qemu" / "keymaps")
