# SPDX-License-Identifier: GPL-2.0-or-later
"""The head of a 64-bit little-endian ELF file: its machine, its segments and its sections (elf(5))."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

# Elf64_Ehdr, Elf64_Phdr and Elf64_Shdr of include/uapi/linux/elf.h
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_MAGIC = b"\x7fELF\x02\x01"

PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE = 1, 2, 3, 4
SHT_SYMTAB, _SHT_NOBITS = 2, 8
#: bytes of the names of all sections
_MAX_NAMES = 1 << 20


@dataclass(frozen=True, slots=True)
class ProgramHeader:
    """A segment of type ``kind``: its place in the file and in memory, and its size in each."""

    kind: int
    offset: int
    virtual: int
    physical: int
    file_size: int
    size: int


@dataclass(frozen=True, slots=True)
class ElfHeader:
    """``machine`` is its EM_* number; ``segments`` are in the file's order."""

    machine: int
    segments: tuple[ProgramHeader, ...]

    def of_kind(self, kind: int) -> tuple[ProgramHeader, ...]:
        """The segments of one type."""
        return tuple(segment for segment in self.segments if segment.kind == kind)


def read_header(data: bytes) -> ElfHeader:
    """The header of an ELF file from its start; raises ValueError if it is incomplete or not 64-bit little-endian."""
    _, _, machine, _, _, at, _, _, _, size, count, *_ = _head(data)
    if count and size != _PHDR.size:
        raise ValueError(f"program headers of {size} bytes instead of {_PHDR.size}")
    if at + count * _PHDR.size > len(data):
        raise ValueError(f"the {count} program headers reach beyond the {len(data)} bytes that were read")
    table = data[at : at + count * _PHDR.size]
    segments = (
        ProgramHeader(kind, offset, virtual, physical, file_size, room)
        for kind, _, offset, virtual, physical, file_size, room, _ in _PHDR.iter_unpack(table)
    )
    return ElfHeader(machine, tuple(segments))


def _head(data: bytes) -> tuple[Any, ...]:
    if len(data) < _EHDR.size or not data.startswith(_MAGIC):
        raise ValueError("not a little-endian 64-bit ELF file")
    return _EHDR.unpack_from(data)


@dataclass(frozen=True, slots=True)
class SectionHeader:
    """A section of type ``kind``: its place in the file; ``link`` is the number of the one that it refers to."""

    name: str
    kind: int
    offset: int
    size: int
    link: int


def read_sections(file: BinaryIO) -> tuple[SectionHeader, ...]:
    """The sections of an ELF file in order; raises ValueError as ``read_header``, and OSError."""
    _, _, _, _, _, _, at, _, _, _, _, size, count, names = _head(file.read(_EHDR.size))
    if count and size != _SHDR.size:
        raise ValueError(f"section headers of {size} bytes instead of {_SHDR.size}")
    rows = list(_SHDR.iter_unpack(_read_at(file, at, count * _SHDR.size)))
    if names >= count:
        raise ValueError("its sections have no names")
    found = [SectionHeader("", kind, offset, room, link) for _, kind, _, _, offset, room, link, *_ in rows]
    texts = read_section(file, found[names], _MAX_NAMES)
    starts = (texts[row[0] :].partition(b"\0")[0].decode(errors="replace") for row in rows)
    return tuple(replace(section, name=name) for section, name in zip(found, starts, strict=True))


def read_section(file: BinaryIO, section: SectionHeader, limit: int) -> bytes:
    """The content of a section; raises ValueError if it has more than ``limit`` bytes or is cut off, and OSError."""
    if section.kind == _SHT_NOBITS or section.size > limit:
        raise ValueError(f"section {section.name!r} has no content, or more than {limit} bytes")
    return _read_at(file, section.offset, section.size)


def _read_at(file: BinaryIO, at: int, size: int) -> bytes:
    if at + size > file.seek(0, os.SEEK_END):
        raise ValueError("a part lies beyond its end")
    file.seek(at)
    return file.read(size)
