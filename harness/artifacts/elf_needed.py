# SPDX-License-Identifier: GPL-2.0-or-later
"""The libraries that a program of another architecture needs: DT_NEEDED, without running it (elf(5), ld.so(8))."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.elfheader import PT_DYNAMIC, PT_INTERP, PT_LOAD, ProgramHeader, read_header
from harness.errors import ArtefactError

_DYNAMIC = struct.Struct("<qQ")
_NEEDED, _STRTAB, _RPATH, _RUNPATH = 1, 5, 15, 29
_LINKS_LIMIT = 40


@dataclass(frozen=True, slots=True)
class Elf:
    """A file's dynamic linking: its interpreter, and the names of the libraries it needs."""

    machine: int
    interpreter: str | None
    needed: tuple[str, ...]
    runpath: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Closure:
    """The dependencies of some programs: library name to its file, and the loader's path as the programs name it."""

    interpreter: str
    loader: Path
    libraries: dict[str, Path]


def read_elf(path: Path) -> Elf:
    """Read a 64-bit little-endian ELF file; raises ArtefactError for anything else."""
    data = path.read_bytes()
    try:
        return _parse(data)
    except (struct.error, ValueError, IndexError, OverflowError) as error:
        raise ArtefactError(f"{path.name} is not a 64-bit little-endian ELF file ({error})") from error


def find_closure(root: Path, programs: Iterable[Path], triplet: str) -> Closure:
    """The loader and all libraries, in the tree ``root``, that ``programs`` there need. ``triplet`` names its folders.

    Raises ArtefactError naming a missing library and the file that needs it.
    """
    folders = [f"usr/lib/{triplet}", f"lib/{triplet}", "usr/lib", "lib"]
    libraries: dict[str, Path] = {}
    interpreter: str | None = None
    waiting = list(programs)
    machine = read_elf(waiting[0]).machine
    while waiting:
        path = waiting.pop()
        elf = read_elf(path)
        interpreter = interpreter or elf.interpreter
        own = [item for item in elf.runpath if "$" not in item]
        for name in elf.needed:
            if name in libraries:
                continue
            found = next(_candidates(root, [*own, *folders], name, machine), None)
            if found is None:
                raise ArtefactError(f"{path.name} needs {name}, which is in none of the packages")
            libraries[name] = found
            waiting.append(found)
    if interpreter is None:
        raise ArtefactError("the programs are static: they have no loader")
    # Since /lib became a link into /usr, packages have the file only there.
    for place in (interpreter, f"usr{interpreter}"):
        loader = inside(root, place)
        if loader.is_file():
            return Closure(interpreter, loader, libraries)
    raise ArtefactError(f"none of the packages has the loader {interpreter}")


def inside(root: Path, path: str) -> Path:
    """The file behind ``path`` in the tree ``root``, whose absolute links mean ``root`` and whose ``..`` stop there."""
    rest = path.split("/")[::-1]
    resolved: list[str] = []
    links = 0
    while rest:
        part = rest.pop()
        if part in ("", "."):
            continue
        if part == "..":
            resolved = resolved[:-1]
            continue
        here = root.joinpath(*resolved, part)
        if here.is_symlink():
            links += 1
            if links > _LINKS_LIMIT:
                raise ArtefactError(f"too many symbolic links at {path}")
            target = os.readlink(here)
            resolved = [] if target.startswith("/") else resolved
            rest += target.split("/")[::-1]
        else:
            resolved.append(part)
    return root.joinpath(*resolved)


def _candidates(root: Path, folders: Iterable[str], name: str, machine: int) -> Iterator[Path]:
    for folder in folders:
        path = inside(root, f"{folder}/{name}")
        if path.is_file() and read_elf(path).machine == machine:
            yield path


def _parse(data: bytes) -> Elf:
    header = read_header(data)
    interpreter = None
    entries: list[tuple[int, int]] = []
    for segment in header.of_kind(PT_INTERP):
        interpreter = _content(data, segment).rstrip(b"\0").decode()
    for segment in header.of_kind(PT_DYNAMIC):
        entries = list(_DYNAMIC.iter_unpack(_content(data, segment)))
    loads = header.of_kind(PT_LOAD)
    strings = next((_offset_of(value, loads) for tag, value in entries if tag == _STRTAB), 0)

    def string(offset: int) -> str:
        start = strings + offset
        return data[start : data.index(b"\0", start)].decode()

    needed = tuple(string(value) for tag, value in entries if tag == _NEEDED)
    paths = [string(value) for tag, value in entries if tag in (_RPATH, _RUNPATH)]
    return Elf(header.machine, interpreter, needed, tuple(item for text in paths for item in text.split(":")))


def _content(data: bytes, segment: ProgramHeader) -> bytes:
    return data[segment.offset : segment.offset + segment.file_size]


def _offset_of(address: int, loads: Iterable[ProgramHeader]) -> int:
    for segment in loads:
        if segment.virtual <= address < segment.virtual + segment.file_size:
            return address - segment.virtual + segment.offset
    raise ValueError("a table lies outside the file")
