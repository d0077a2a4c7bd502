# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's userland: busybox, dropbear, ndctl, daxctl, touch-memory and the libraries they load."""

from __future__ import annotations

import gzip
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness import proc
from harness.arch import ArchSpec
from harness.artifacts.apt import unpack
from harness.artifacts.cache import Cache
from harness.artifacts.store import apt, configs, versions
from harness.config.parts import GuestRoot
from harness.cpio import CpioEntry, directory, pack, regular, symlink
from harness.deadline import Deadline
from harness.errors import ArtefactError
from harness.progress import Progress

PACKAGES = ("busybox-static", "dropbear-bin", "ndctl", "daxctl")
PROGRAMS = ("usr/bin/busybox", "usr/sbin/dropbear", "usr/bin/ndctl", "usr/bin/daxctl")
#: raise when the archive is made differently from the same packages
RECIPE = "1"
_EMPTY = ("dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "usr/bin", "usr/lib", "usr/sbin")
_LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib", "sbin": "usr/sbin"}


def guest_root(arch: ArchSpec, progress: Progress) -> GuestRoot:
    """The cached archive, without /init and keys: those are added per guest.

    Raises ArtefactError if a package or the cross compiler is missing.
    """
    source = apt(arch.name)
    packages = source.closure(PACKAGES, progress)
    touch = configs("..") / "guest-scripts" / "touch-memory.c"
    inputs = {**versions(packages), "recipe": RECIPE, "touch-memory.c": touch.read_text()}

    def build(target: Path) -> None:
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            root = Path(scratch)
            unpack(source.download(PACKAGES, progress), root, progress)
            compile_static(arch, touch, root / "usr/bin/touch-memory")
            archive = pack(_entries(root, [*PROGRAMS, "usr/bin/touch-memory"]))
        (target / "root.cpio.gz").write_bytes(gzip.compress(archive, 9, mtime=0))

    place = Cache.default().get("guest-root", arch.name, inputs, build, progress)
    return GuestRoot(place / "root.cpio.gz")


def compile_static(arch: ArchSpec, source: Path, target: Path) -> None:
    """Cross-compile one C file into a static program."""
    compiler = f"{arch.triplet}-gcc"
    if shutil.which(compiler) is None:
        cross = arch.triplet.replace("_", "-")
        raise ArtefactError(
            f"this machine has no {compiler}",
            hint=f"sudo apt-get install gcc-{cross} libc6-dev-{arch.name}-cross",
        )
    flags = ["-std=gnu11", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-Wl,--build-id=none", "-s"]
    proc.run([compiler, *flags, "-o", str(target), str(source)], deadline=Deadline(120))


def _entries(root: Path, programs: list[str]) -> Iterator[CpioEntry]:
    for path in _EMPTY:
        yield directory(path, 0o700 if path == "root" else 0o755)
    for path, target in _LINKS.items():
        yield symlink(path, target)
    for program in programs:
        yield regular(program, (root / program).read_bytes(), 0o755)
    for library, path in sorted(libraries(root, programs).items()):
        yield regular(f"usr/lib/{library}", path.read_bytes(), 0o755)


def libraries(root: Path, programs: list[str]) -> dict[str, Path]:
    """Every library that ``programs`` load, and what those load, by the name they are asked for.

    Raises ArtefactError for a library that no package brought.
    """
    known = {path.name: path for path in sorted(root.glob("usr/lib/**/*.so*"))}
    found: dict[str, Path] = {}
    todo = [root / program for program in programs]
    while todo:
        for name in needed(todo.pop()):
            if name not in found:
                if name not in known:
                    raise ArtefactError(f"no package of the guest root brings {name}")
                found[name] = known[name].resolve()
                todo.append(found[name])
    return found


def needed(path: Path) -> list[str]:
    """Libraries and loader that an ELF file asks for (readelf)."""
    said = proc.run(["readelf", "-l", "-d", "-W", str(path)], deadline=Deadline(60)).stdout.decode(errors="replace")
    names = re.findall(r"\(NEEDED\)\s+Shared library: \[(\S+)\]", said)
    return names + [Path(name).name for name in re.findall(r"program interpreter: (\S+)\]", said)]
