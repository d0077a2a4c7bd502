# SPDX-License-Identifier: GPL-2.0-or-later
"""The PT_LOAD segments at the head of an ELF core file: /proc/kcore (fs/proc/kcore.c), QEMU's dump-guest-memory."""

from __future__ import annotations

from dataclasses import dataclass

from harness.elfheader import PT_LOAD, read_header
from harness.errors import ParseError
from harness.units import TOP, AddrRange


@dataclass(frozen=True, slots=True)
class Segment:
    """One PT_LOAD: its ``virtual`` addresses, and the ``physical`` ones from its header."""

    virtual: AddrRange
    physical: AddrRange


def load_segments(data: bytes, source: str) -> tuple[Segment, ...]:
    """Return the PT_LOAD segments of an ELF file that begins with ``data``, except those without a physical address.

    Raises ParseError if it is not a little-endian 64-bit ELF file, or if its headers reach beyond ``data``.
    """
    try:
        header = read_header(data)
    except ValueError as error:
        raise ParseError(source, 1, data[:32].hex(" "), str(error)) from None
    return tuple(
        Segment(AddrRange.sized(segment.virtual, segment.size), AddrRange.sized(segment.physical, segment.size))
        for segment in header.of_kind(PT_LOAD)
        # Areas without physical memory have the physical address -1.
        if segment.size and segment.physical + segment.size < TOP and segment.virtual + segment.size <= TOP
    )
