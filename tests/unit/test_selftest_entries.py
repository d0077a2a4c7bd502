# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding and writing single page-table entries, for every geometry."""

from __future__ import annotations

import re

import pytest
from kmem_walk_oracle import BASE, FORMATS

from harness.arch.pagetable import ENTRY_SIZE, TableFormat
from harness.selftest.bits import BITS, BitChange
from harness.selftest.entries import Place, is_leaf, leads_to_table, locate, with_physical


class Words:
    """Memory that is zero except for the entries that were written."""

    def __init__(self) -> None:
        self.at: dict[int, int] = {}

    def read(self, address: int) -> int:
        return self.at.get(address, 0)


def chain(tables: TableFormat, address: int, depth: int) -> Words:
    """Tables that lead to an entry ``depth`` levels below the root, each in its own page."""
    words, table = Words(), tables.root
    for number, level in enumerate(tables.levels[:depth]):
        following = BASE + (16 + number) * tables.page_size
        index = (address >> level.shift) % level.entries
        words.at[table + index * ENTRY_SIZE] = with_physical(tables, tables.table[1], following)
        table = following
    return words


def an_address(tables: TableFormat) -> int:
    level = tables.levels[0]
    return sum(3 << level.shift for level in tables.levels[1:]) | (level.entries // 2) << level.shift


@pytest.mark.parametrize("name", FORMATS)
def test_an_empty_entry_ends_the_path(name: str) -> None:
    tables = FORMATS[name]
    address = an_address(tables)
    for depth in range(len(tables.levels)):
        words = chain(tables, address, depth)
        path = locate(words.read, tables, address)
        assert [place.depth for place in path] == list(range(depth + 1))
        assert all(leads_to_table(tables, place) for place in path[:-1])
        last = path[-1]
        assert last.entry == 0 and not is_leaf(tables, last) and not leads_to_table(tables, last)
        assert address in last.range and last.range.size == last.level.entry_span
        assert words.read(last.address) == 0 and last.level is tables.levels[depth]
        assert str(last) == f"{last.level.name} entry of virtual {last.range}"


@pytest.mark.parametrize("name", FORMATS)
def test_a_physical_address_survives_the_entry(name: str) -> None:
    tables = FORMATS[name]
    step = tables.page_size
    for physical in (0, step, BASE, BASE + 5 * step):
        entry = with_physical(tables, tables.table[1], physical)
        assert tables.physical(entry) == physical
        assert with_physical(tables, entry, 0) == with_physical(tables, tables.table[1], 0)


def test_an_address_that_no_entry_can_hold() -> None:
    with pytest.raises(ValueError, match=re.escape("no page-table entry can hold physical 0x40000001")):
        with_physical(FORMATS["arm64-4k-48"], 0, BASE + 1)


def test_a_lowest_entry_never_leads_to_a_table() -> None:
    for tables in FORMATS.values():
        depth = len(tables.levels) - 1
        words = chain(tables, 0, depth)
        *_, last = locate(words.read, tables, 0)
        full = Place(last.depth, last.level, last.table, last.index, last.range, tables.table[1] | tables.attributes)
        assert is_leaf(tables, full) and not leads_to_table(tables, full)


def test_a_change() -> None:
    assert BitChange(clear=0b0110, set=0b0100, flip=0b1001).of(0b0011) == 0b1100


def test_a_block_becomes_a_page_and_back() -> None:
    for bits in BITS.values():
        entry = bits.block.of((1 << 64) - 1)
        assert bits.block.of(bits.page.of(entry)) == entry


@pytest.mark.parametrize("arch", BITS)
def test_edits_of_the_dump_change_a_real_line(arch: str) -> None:
    line = {
        "arm64": "0xfff0000040000000-0xfff0000050000000         256M PMD       RW NX SHD AF    CON UXN    "
        "MEM/NORMAL-TAGGED\n",
        "riscv64": "0xff60000040000000-0xff60000050000000    0x00000000c0000000       256M PMD .   ..     ..   D A G . "
        ". W R V\n",
    }[arch]
    for name, (pattern, by) in BITS[arch].dump.items():
        after, hits = re.subn(pattern, by, line, count=1)
        assert hits == 1 and after != line, name
