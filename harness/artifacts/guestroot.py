# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's userland: busybox, dropbear, ndctl, daxctl, our own programs and their libraries; 8 MB packed."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness import proc
from harness.arch import ArchSpec
from harness.artifacts.apt import apt, fingerprints, unpack
from harness.artifacts.cache import Cache, scratch
from harness.artifacts.elf_needed import find_closure
from harness.config.guest_parts import GuestRoot
from harness.config.places import guest_scripts_dir
from harness.cpio import CpioEntry, directory, pack, regular, symlink
from harness.deadline import Deadline
from harness.errors import ArtefactError
from harness.progress import Progress

#: part of the cache key: increase it when the same packages give another archive
RECIPE = "2"

PACKAGES = ("busybox-static", "dropbear-bin", "ndctl", "daxctl")
PROGRAMS = ("usr/bin/busybox", "usr/sbin/dropbear", "usr/bin/ndctl", "usr/bin/daxctl")
#: our own programs, each one C file in guest-scripts, and the headers there
TOOLS = ("agent", "touch-memory", "hold-memory", "load-keeper", "load-worker", "sleeper")
#: likewise, but libraries preloaded into other programs; they are linked against no other
PRELOADS = ("spare-seed", "one-cpu")

_COMPILE_SECONDS = 120.0
_WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Werror")
_FLAGS = ("-std=gnu11", "-O2", *_WARNINGS, "-Wl,--build-id=none", "-s")
_SHARED = ("-shared", "-fPIC", "-nostdlib")
_DIRECTORIES = ("dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "usr/bin", "usr/lib", "usr/sbin")
_PERMISSIONS = {"root": 0o700, "tmp": 0o1777}
_LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib", "sbin": "usr/sbin", "usr/bin/sh": "busybox"}
_TEXTS = {"etc/group": "root:x:0:\n", "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/shells": "/bin/sh\n"}


def guest_root(arch: ArchSpec, progress: Progress) -> GuestRoot:
    """The cached archive, without /init and keys, which are made for each guest.

    The busybox binary creates the links of its other applets in the guest. Raises ArtefactError if a package is
    unavailable or the cross compiler is missing.
    """
    archive = apt(arch.name)
    packages = archive.closure(PACKAGES, progress)
    sources = [_source(f"{name}.c") for name in (*TOOLS, *PRELOADS)]
    read = [*sources, *sorted(guest_scripts_dir().glob("*.h"))]
    inputs = {"recipe": RECIPE, **{path.name: path.read_text() for path in read}, **fingerprints(packages)}

    def build(out: Path) -> None:
        work = scratch(out)
        tools = [work / (f"{source.stem}.so" if source.stem in PRELOADS else source.stem) for source in sources]
        for source, tool in zip(sources, tools, strict=True):
            compile_tool(arch, source, tool)
        root = work / "root"
        unpack(archive.download(PACKAGES, progress), root, progress)
        with progress.task(f"Packing the guest's userland for {arch.name}"):
            packed = pack(root_entries(root, PROGRAMS, arch.triplet, tools))
            (out / "root.cpio.gz").write_bytes(gzip.compress(packed, 9, mtime=0))

    path = Cache().get("guest-root", arch.name, inputs, build, progress, what=f"the guest's userland for {arch.name}")
    return GuestRoot(path / "root.cpio.gz")


def _source(name: str) -> Path:
    path = guest_scripts_dir() / name
    if not path.is_file():
        raise ArtefactError(f"no file {path}", hint="install memhp from a clone of its repository: pip install -e .")
    return path


def compile_tool(arch: ArchSpec, source: Path, target: Path) -> None:
    """Cross-compile a C file, to a library if ``target`` is a ``.so``; raises ArtefactError naming what to install."""
    compiler = f"{arch.triplet}-gcc"
    hint = f"sudo apt-get install gcc-{arch.triplet.replace('_', '-')} libc6-dev-{arch.name}-cross"
    if shutil.which(compiler) is None:
        raise ArtefactError(f"this machine lacks {compiler}", hint=hint)
    kind = _SHARED if target.suffix == ".so" else ("-static",)
    done = proc.run(
        [compiler, *_FLAGS, *kind, "-o", str(target), str(source)], deadline=Deadline(_COMPILE_SECONDS), check=False
    )
    if done.returncode != 0:
        raise ArtefactError(f"cannot compile {source.name} for {arch.name}:\n{proc.tail(done.stderr)}", hint=hint)


def root_entries(root: Path, programs: Sequence[str], triplet: str, tools: Sequence[Path]) -> Iterator[CpioEntry]:
    """The entries of the archive in a fixed order, from packages unpacked in ``root`` and our compiled ``tools``.

    Raises ArtefactError for a program or a library that is in none of the packages.
    """
    for program in programs:
        if not (root / program).is_file():
            raise ArtefactError(f"none of the packages has {program}")
    closure = find_closure(root, [root / program for program in programs], triplet)
    libraries = f"usr/lib/{triplet}"
    for path in (*_DIRECTORIES, libraries):
        yield directory(path, _PERMISSIONS.get(path, 0o755))
    for path, target in _LINKS.items():
        yield symlink(path, target)
    for path, text in _TEXTS.items():
        yield regular(path, text.encode())
    for program in programs:
        yield regular(program, (root / program).read_bytes(), 0o755)
    for tool in tools:
        yield regular(f"usr/{'lib' if tool.suffix else 'bin'}/{tool.name}", tool.read_bytes(), 0o755)
    # Programs name the loader by a path below /lib, which is a link here.
    loader = f"usr{closure.interpreter}".replace("usr/lib64/", "usr/lib/")
    yield regular(loader, closure.loader.read_bytes(), 0o755)
    for name, library in sorted(closure.libraries.items()):
        if library != closure.loader:
            yield regular(f"{libraries}/{name}", library.read_bytes())
