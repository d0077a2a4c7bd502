# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/iomem: the tree, its inverse, and invalid text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from iomem_text import render_iomem

from harness.errors import ParseError
from harness.parsers.iomem import DEEPEST, parse_iomem
from harness.state import IomemEntry
from harness.units import AddrRange

FIXTURES = Path(__file__).parent / "fixtures"

TEXT = """\
09000000-09000fff : pl011@9000000
40000000-7fffffff : System RAM
  40210000-412fffff : Kernel code
  41ba0000-41ff49ff : Kernel data
80000000-17fffffff : virtio2
  80000000-97ffffff : System RAM (virtio_mem)
    90000000-90000fff : a : b
"""


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*/iomem.txt")), ids=lambda path: path.parent.name)
def test_recorded_trees_come_back_byte_for_byte(path: Path) -> None:
    text = path.read_text()
    entries = parse_iomem(text)
    assert render_iomem(entries) == text
    assert any(entry.name == "System RAM" for entry in entries)


def test_nesting_names_and_half_open_ends() -> None:
    uart, ram, device = parse_iomem(TEXT)
    assert uart == IomemEntry(AddrRange(0x9000000, 0x9001000), "pl011@9000000")
    assert [child.name for child in ram.children] == ["Kernel code", "Kernel data"]
    assert device.range.size == 4 << 30
    assert device.children[0].children == (IomemEntry(AddrRange(0x90000000, 0x90001000), "a : b"),)
    assert render_iomem((uart, ram, device)) == TEXT


def test_a_dimm_stands_beside_boot_ram() -> None:
    entries = parse_iomem((FIXTURES / "arm64-dimm-added/iomem.txt").read_text())
    assert IomemEntry(AddrRange(0x8000_0000, 0xC000_0000), "System RAM") in entries


def test_overlaps_and_escapes_are_left_for_the_check() -> None:
    text = "00000000-00000fff : a\n00000800-00001fff : b\n  00005000-00005fff : outside\n"
    assert render_iomem(parse_iomem(text)) == text


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("", 1, "no line with a range"),
        ("00000000-00000000 : System RAM\n  00000000-00000000 : Kernel code\n", 2, "the reader was not root"),
        ("   00001000-00001fff : x\n", 1, "not a multiple of two"),
        ("  00001000-00001fff : x\n", 1, "nested 1 levels deep below a line at level -1"),
        ("00001000-00001fff : x\n    00001000-00001fff : y\n", 2, "nested 2 levels deep below a line at level 0"),
        ("00002000-00001ffe : x\n", 1, "range runs backwards"),
        ("00001000-00001fff : \n", 1, "a resource without a name"),
        ("1000-1fff : x\n", 1, "not '<start>-<end> : <name>'"),
        ("00001000-00001fff x\n", 1, "not '<start>-<end> : <name>'"),
        ("0000000001000-00001fff : x\n", 1, "padded beyond eight digits"),
        ("00001000-00001FFF : x\n", 1, "not '<start>-<end> : <name>'"),
        ("00001000-00001fff : x\n\n", 2, "not '<start>-<end> : <name>'"),
        ("00001000-00001fff : x\ncat: read error\n", 2, "not '<start>-<end> : <name>'"),
        ("00001000-00001fff : x", 1, "ends in the middle of a line"),
        ("00001000-00001fff : x\0\n", 1, "does not belong in this file"),
        ("00001000-00001fff : ok\n00001000-00001fff : x\udcff\n", 2, "does not belong in this file"),
        ("00001000-00001fff : x\ufffd\n", 1, "does not belong in this file"),
        ("00001000-00001fff : x\r\n", 1, "does not belong in this file"),
    ],
)
def test_refusals_quote_the_line(text: str, line: int, why: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_iomem(text)
    assert (caught.value.source, caught.value.line) == ("/proc/iomem", line)
    assert why in str(caught.value)


def test_an_empty_range_is_printed_with_its_end_below_its_start() -> None:
    text = "00001000-00000fff : x\n"
    assert parse_iomem(text) == (IomemEntry(AddrRange(0x1000, 0x1000), "x"),)
    assert render_iomem(parse_iomem(text)) == text
    with pytest.raises(ValueError, match="empty range of 'x'"):
        render_iomem([IomemEntry(AddrRange(0, 0), "x")])


_NAMES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x24F, exclude_categories=("Cc", "Cs"))).filter(
    str.strip
)
#: one level less than the kernel's deepest indentation, where lines of all deeper levels are indented equally
_DEEPEST = min(DEEPEST) - 1
_RANGES = st.builds(
    AddrRange.sized, st.integers(0, (1 << 63) - 1), st.one_of(st.integers(1, 1 << 20), st.integers(1, 1 << 63))
)


def _entries(depth: int) -> st.SearchStrategy[tuple[IomemEntry, ...]]:
    children = st.just(()) if depth == _DEEPEST else st.deferred(lambda: _entries(depth + 1))
    return st.lists(st.builds(IomemEntry, _RANGES, _NAMES, children), max_size=2).map(tuple)


@given(
    st.lists(
        st.builds(IomemEntry, _RANGES.filter(lambda extent: extent != AddrRange(0, 1)), _NAMES, _entries(1)),
        min_size=1,
        max_size=4,
    ).map(tuple)
)
def test_render_then_parse_is_the_identity(entries: tuple[IomemEntry, ...]) -> None:
    assert parse_iomem(render_iomem(entries)) == entries
