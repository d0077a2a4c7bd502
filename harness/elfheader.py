# SPDX-License-Identifier: GPL-2.0-or-later
"""The head of a 64-bit little-endian ELF file: its machine and its segments (elf(5))."""

from __future__ import annotations

import struct
from dataclasses import dataclass

# Elf64_Ehdr and Elf64_Phdr of include/uapi/linux/elf.h
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_MAGIC = b"\x7fELF\x02\x01"

PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE = 1, 2, 3, 4


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
    if len(data) < _EHDR.size or not data.startswith(_MAGIC):
        raise ValueError("not a little-endian 64-bit ELF file")
    _, _, machine, _, _, at, _, _, _, size, count, *_ = _EHDR.unpack_from(data)
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
