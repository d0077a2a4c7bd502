# SPDX-License-Identifier: GPL-2.0-or-later
"""The PT_LOAD segments at the head of an ELF core file: /proc/kcore (fs/proc/kcore.c), QEMU's dump-guest-memory."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from harness.errors import ParseError
from harness.units import AddrRange

# Elf64_Ehdr and Elf64_Phdr of include/uapi/linux/elf.h, little-endian
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_MAGIC = b"\x7fELF\x02\x01"
_PT_LOAD = 1
_TOP = 1 << 64


@dataclass(frozen=True, slots=True)
class Segment:
    """One PT_LOAD: ``virtual`` addresses, and the ``physical`` ones that its header gives for them."""

    virtual: AddrRange
    physical: AddrRange


def load_segments(data: bytes, source: str) -> tuple[Segment, ...]:
    """Return the PT_LOAD segments of an ELF file that begins with ``data``.

    One that has no physical address is left out.

    Raises ParseError if it is no little-endian 64-bit ELF file, or if its headers reach beyond ``data``.
    """
    if len(data) < _EHDR.size or not data.startswith(_MAGIC):
        raise ParseError(source, 1, data[:32].hex(" "), "not a little-endian 64-bit ELF file")
    fields = _EHDR.unpack_from(data)
    at, size, count = fields[5], fields[9], fields[10]
    if count and size != _PHDR.size:
        raise ParseError(source, 1, "", f"program headers of {size} bytes instead of {_PHDR.size}")
    if at + count * _PHDR.size > len(data):
        raise ParseError(source, 1, "", f"the {count} program headers reach beyond the {len(data)} bytes at hand")
    return tuple(_segments(data, at, count))


def _segments(data: bytes, at: int, count: int) -> Iterator[Segment]:
    for number in range(count):
        kind, _, _, virtual, physical, _, size, _ = _PHDR.unpack_from(data, at + number * _PHDR.size)
        # Areas of virtual addresses alone have the physical address -1.
        if kind == _PT_LOAD and size and physical + size < _TOP and virtual + size <= _TOP:
            yield Segment(AddrRange.sized(virtual, size), AddrRange.sized(physical, size))
