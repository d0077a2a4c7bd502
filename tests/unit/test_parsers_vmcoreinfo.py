# SPDX-License-Identifier: GPL-2.0-or-later
"""The VMCOREINFO note, and how it is found in /proc/kcore."""

from __future__ import annotations

import contextlib
import gzip
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ParseError
from harness.parsers.vmcoreinfo import note_from_kcore, parse_vmcoreinfo

FIXTURES = Path(__file__).parent / "fixtures"
TEXT = "OSRELEASE=6.12.107-hp\nPAGESIZE=4096\nNUMBER(VA_BITS)=52\nX=a=b==\nBUILD-ID=\n"


def note(name: bytes, content: bytes) -> bytes:
    def pad(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)

    return struct.pack("<III", len(name), len(content), 0) + pad(name) + pad(content)


def kcore(notes: bytes, *, size: int | None = None, phnum: int = 2, phentsize: int = 56, phoff: int = 64) -> bytes:
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    ehdr = struct.pack("<16sHHIQQQIHHHHHH", ident, 4, 183, 1, 0, phoff, 0, 0, 64, phentsize, phnum, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 7, 1 << 40, 1 << 50, 0, 1 << 30, 1 << 30, 4096)
    at = 64 + 2 * 56
    found = struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(notes) if size is None else size, 0, 0)
    return ehdr + load + found + notes


@pytest.mark.parametrize(
    ("name", "release"),
    [
        ("arm64-built", "6.12.107-hp"),
        ("arm64-stock", "6.12.107+deb13-arm64"),
        ("riscv64-stock", "6.12.107+deb13-riscv64"),
    ],
)
def test_recorded(name: str, release: str) -> None:
    data = gzip.decompress((FIXTURES / name / "kcore.bin.gz").read_bytes())
    values = parse_vmcoreinfo(note_from_kcore(data))
    assert values["OSRELEASE"] == release
    assert values["PAGESIZE"] == "4096"
    assert values["NUMBER(SECTION_SIZE_BITS)"] == "27"
    assert int(values["SYMBOL(mem_section)"], 16) > 1 << 63


def test_values_keep_their_equals_signs() -> None:
    values = parse_vmcoreinfo(TEXT)
    assert (values["X"], values["BUILD-ID"], values["NUMBER(VA_BITS)"]) == ("a=b==", "", "52")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no OSRELEASE"),
        ("PAGESIZE=4096\n", "no OSRELEASE"),
        (TEXT[:-1], "ends in the middle of a line"),
        (TEXT + "\0\n", "does not belong in this file"),
    ],
)
def test_text_refusals(text: str, why: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_vmcoreinfo(text)
    assert why in str(caught.value)


def test_the_note_is_found_among_others_and_before_padding() -> None:
    notes = note(b"CORE\0", b"x" * 337) + note(b"VMCOREINFO\0", TEXT.encode()) + bytes(40)
    assert note_from_kcore(kcore(notes)) == TEXT


GOOD = kcore(note(b"VMCOREINFO\0", TEXT.encode()))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not a little-endian 64-bit ELF file"),
        (b"\x7fELF\x02\x01", "not a little-endian 64-bit ELF file"),
        (GOOD.replace(b"\x7fELF\x02\x01", b"\x7fELF\x01\x01", 1), "not a little-endian 64-bit ELF file"),
        (GOOD[:100], "the 2 program headers reach beyond the 100 bytes that were read"),
        (GOOD[:200], "the notes reach beyond the 200 bytes that were read"),
        (kcore(b"", phentsize=32), "program headers of 32 bytes instead of 56"),
        (kcore(b"", phnum=65535), "the 65535 program headers reach beyond"),
        (kcore(b"", phoff=(1 << 64) - 1), "the 2 program headers reach beyond"),
        (kcore(b"", size=(1 << 64) - 1), "the notes reach beyond"),
        (kcore(b""), "no VMCOREINFO note"),
        (kcore(b"", phnum=0), "no VMCOREINFO note"),
        (kcore(bytes(400) + note(b"VMCOREINFO\0", b"a")), "no VMCOREINFO note"),
        (kcore(note(b"CORE\0", b"abc")), "no VMCOREINFO note"),
        (kcore(struct.pack("<III", 11, 1 << 31, 0) + b"VMCOREINFO\0\0"), "a note reaches beyond its segment"),
        (kcore(note(b"VMCOREINFO\0", b"A=\xff")), "byte 2: the note is not ASCII"),
        (kcore(note(b"VMCOREINFO\0", b"A" * 70000)), "a note of 70000 bytes"),
    ],
)
def test_kcore_refusals(data: bytes, why: str) -> None:
    with pytest.raises(ParseError) as caught:
        note_from_kcore(data)
    assert why in str(caught.value)
    assert caught.value.source == "/proc/kcore"


@given(st.binary(max_size=300), st.integers(0, len(GOOD)), st.integers(0, len(GOOD)))
def test_damage_ends_in_a_parse_error_or_a_text(noise: bytes, start: int, length: int) -> None:
    for data in (noise, b"\x7fELF\x02\x01" + noise, GOOD[:start] + noise + GOOD[start + length :]):
        with contextlib.suppress(ParseError):
            assert isinstance(note_from_kcore(data), str)
