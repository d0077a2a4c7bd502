# SPDX-License-Identifier: GPL-2.0-or-later
"""Which QEMU runs a guest: the user's, the host's, Debian's newer one, or one built with our patches."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import proc
from harness.arch import ArchSpec
from harness.artifacts.apt import unpack
from harness.artifacts.cache import Cache
from harness.artifacts.qemu_build import build_qemu, built_qemu
from harness.artifacts.store import apt, host_arch, versions
from harness.config.parts import QemuBinary
from harness.deadline import Deadline
from harness.errors import ArtefactError, InfraError, UnsupportedError, UsageError
from harness.progress import Progress

#: says why a binary will not do, None if it will
Able = Callable[[QemuBinary], str | None]

#: of the unpacked packages, what a headless QEMU never opens
_UNUSED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/icons", "usr/share/X11", "var", "etc")


def find_qemu(arch: ArchSpec, *, explicit: Path | None, able: Able, progress: Progress) -> QemuBinary:
    """The first QEMU that is ``able``: ``explicit`` alone if given, else host, cache, Debian's package, our build.

    Raises UsageError for a path that is no program, UnsupportedError naming what each candidate lacks.
    """
    if explicit is not None:
        binary = own_qemu(explicit)
        lack = able(binary)
        if lack is not None:
            raise UnsupportedError("qemu", f"{explicit}: {lack}", hint="leave --qemu out, and memhp finds one that can")
        return binary
    reasons: list[str] = []
    for candidate in _candidates(arch, progress):
        lack = able(candidate)
        if lack is None:
            return candidate
        reasons.append(f"{candidate.origin}: {lack.partition(': run memhp')[0]}")
    raise UnsupportedError("qemu", f"no QEMU for {arch.name} will do:\n  " + "\n  ".join(reasons), hint="memhp doctor")


def own_qemu(path: Path) -> QemuBinary:
    """The user's own QEMU."""
    found = path if path.is_file() else None
    if found is None or not os.access(found, os.X_OK):
        raise UsageError(f"--qemu {path} is not a program", hint="name the qemu-system-… binary itself")
    return QemuBinary((str(found.absolute()),), None, str(path), version_of((str(found.absolute()),)))


def _candidates(arch: ArchSpec, progress: Progress) -> Iterator[QemuBinary]:
    host = shutil.which(f"qemu-system-{arch.qemu_target}")
    if host is not None:
        yield QemuBinary((host,), None, f"the host's {host}", version_of((host,)))
    built = built_qemu(arch, progress)
    if built is not None:
        yield built
    yield debian_qemu(arch, progress)
    if built is None:
        yield build_qemu(arch, progress)


def version_of(argv: tuple[str, ...]) -> str:
    """What ``--version`` says, such as 10.0.13; raises UsageError for a program that is no QEMU."""
    try:
        said = proc.run([*argv, "--version"], deadline=Deadline(30)).stdout.decode(errors="replace")
    except InfraError as error:
        raise UsageError(f"{argv[-1]} does not run: {error.message}") from error
    match = re.search(r"QEMU emulator version (\S+)", said)
    if match is None:
        raise UsageError(f"{argv[-1]} is not QEMU", hint="name the qemu-system-… binary itself")
    return match[1]


def debian_qemu(arch: ArchSpec, progress: Progress) -> QemuBinary:
    """QEMU of the suite, run through its own loader and libraries, so that an old host does not matter."""
    source = apt(host_arch())
    packages = source.closure([arch.qemu_package], progress)

    def build(target: Path) -> None:
        unpack(source.download([arch.qemu_package], progress), target, progress)
        for name in _UNUSED:
            shutil.rmtree(target / name, ignore_errors=True)

    place = Cache.default().get("qemu", f"{arch.name}-debian", versions(packages), build, progress)
    argv = (*_loader(place), str(place / "usr/bin" / f"qemu-system-{arch.qemu_target}"))
    return QemuBinary(argv, place / "usr/share/qemu", f"Debian's {source.suite} package", version_of(argv))


def _loader(root: Path) -> tuple[str, ...]:
    """The command that runs a program of ``root`` with the libraries of ``root``."""
    loaders = [*root.glob("usr/lib64/ld-linux-*.so.*"), *root.glob("usr/lib/ld-linux-*.so.*")]
    libraries = [path for path in root.glob("usr/lib/*-linux-gnu*") if path.is_dir()]
    if not loaders or not libraries:
        raise ArtefactError(f"{root} has no dynamic loader", hint="remove it and run memhp fetch qemu")
    return (str(loaders[0]), "--library-path", ":".join(map(str, libraries)))
