# SPDX-License-Identifier: GPL-2.0-or-later
"""Program headers of core files."""

from __future__ import annotations

import struct

import pytest

from harness.errors import ParseError
from harness.parsers.elf_core import Segment, load_segments
from harness.units import AddrRange

_NONE = (1 << 64) - 1


def core(*headers: tuple[int, int, int, int], count: int | None = None, size: int = 56) -> bytes:
    """(kind, virtual, physical, size in memory) for each program header."""
    number = len(headers) if count is None else count
    ehdr = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 4, 183, 1, 0, 64, 0, 0, 64, size, number, 0, 0, 0)
    phdrs = (struct.pack("<IIQQQQQQ", kind, 7, 0, va, pa, length, length, 0) for kind, va, pa, length in headers)
    return ehdr + b"".join(phdrs)


def test_segments_with_a_physical_address() -> None:
    data = core((4, 0, 0, 100), (1, 0xFFFF0000, 0x4000, 0x1000), (1, 0xFFFE0000, _NONE, 0x1000), (1, 1, 1, 0))
    expected = (Segment(AddrRange(0xFFFF0000, 0xFFFF1000), AddrRange(0x4000, 0x5000)),)
    assert load_segments(data, "x") == expected
    assert load_segments(core(), "x") == ()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a little-endian 64-bit ELF file"),
        (b"\x7fELF\x01\x01" + bytes(100), "not a little-endian 64-bit ELF file"),
        (core((1, 0, 0, 1), size=32), "program headers of 32 bytes instead of 56"),
        (core((1, 0, 0, 1), count=9), "the 9 program headers reach beyond the 120 bytes that were read"),
    ],
)
def test_what_is_no_core_file(data: bytes, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        load_segments(data, "/proc/kcore")
