# SPDX-License-Identifier: GPL-2.0-or-later
"""The walk against one that takes entry by entry, on tables of every geometry, sound and broken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmem_walk_oracle import BASE, FORMATS, Oracle, memory_of
from numpy.typing import NDArray

from harness.arch.pagetable import TableFormat
from harness.kmem.walk import MAX_FAULTS, Walk, copy_tables, walk

UNEVEN = "its contiguous group is not uniform"


def entry_for(tables: TableFormat, physical: int, bits: int) -> int:
    """``bits`` with ``physical`` where this format keeps addresses."""
    for mask, shift in tables.address:
        part = physical >> shift if shift >= 0 else physical << -shift
        bits = bits & ~mask | part & mask
    return bits


class Drawn:
    """Pages of memory filled with tables that hypothesis draws."""

    def __init__(self, draw: st.DrawFn, tables: TableFormat) -> None:
        self.draw = draw
        self.tables = tables
        self.pages = draw(st.integers(2, 9 if tables.page_size == 4096 else 5))
        self.width = tables.page_size // 8
        self.words = np.zeros((self.pages, self.width), dtype=np.uint64)
        for page in range(self.pages):
            for _ in range(draw(st.integers(0, 5))):
                self.stretch(page)

    def physical(self) -> int:
        """An address in memory, beside it or far away."""
        page = self.tables.page_size
        near = st.integers(-2, self.pages + 2).map(lambda number: BASE + number * page)
        far = st.integers(0, (1 << 56) - 1).map(lambda address: address - address % page)
        top = st.integers(1, 40).map(lambda number: (1 << 48) - number * page)
        return self.draw(near | near | far | top)

    def stretch(self, page: int) -> None:
        """Entries that follow one another: pointers, mappings that count up (or all the same), or anything."""
        draw, tables = self.draw, self.tables
        level = draw(st.sampled_from(tables.levels))
        index = draw(st.integers(0, self.width - 1) | st.sampled_from([0, self.width // 2, self.width - 16]))
        kind = draw(st.sampled_from(["table", "leaf", "leaf", "any"]))
        bits, at = draw(self.bits(kind)), self.physical()
        if kind == "table":
            count = draw(st.integers(1, 3))
            step = draw(st.sampled_from([0, tables.page_size]))
        else:
            count = draw(st.sampled_from([1, 2, level.group or 1, 3 * (level.group or 1), 512]))
            index -= index % (level.group or 1) if draw(st.booleans()) else 0
            step = 0 if tables.napot and bits & tables.contiguous else level.entry_span
            if draw(st.booleans()):
                at -= at % ((level.group or 1) * level.entry_span)
        entries = [entry_for(tables, at + number * step, bits) for number in range(min(count, self.width - index))]
        if tables.napot and bits & tables.contiguous and draw(st.booleans()):
            entries = [entry & ~(0xF << 10) | 8 << 10 for entry in entries]
        self.words[page, index : index + len(entries)] = entries

    def bits(self, kind: str) -> st.SearchStrategy[int]:
        tables = self.tables
        anything = st.integers(0, (1 << 64) - 1)
        if kind == "any":
            return anything
        if kind == "table":
            return st.just(tables.table[1]) | anything.map(lambda bits: bits & ~tables.table[0] | tables.table[1])
        plain = {1: 0x7 | 0xC0, 0: 0x703 | 1 << 53 | 1 << 54}[int(tables.napot)]
        block = plain if tables.napot else plain & ~2
        chosen = st.sampled_from([plain, block, plain & ~1, plain | tables.contiguous, block | tables.contiguous])
        return chosen | anything.map(lambda bits: bits & tables.attributes | 1)


@st.composite
def drawn(draw: st.DrawFn, tables: TableFormat) -> NDArray[np.uint64]:
    return Drawn(draw, tables).words.reshape(-1)


def walked(tables: TableFormat, words: NDArray[np.uint64]) -> Walk:
    with memory_of(words) as memory:
        return walk(copy_tables(memory, tables))


@pytest.mark.parametrize("name", FORMATS)
@given(st.data())
def test_the_walk_sees_what_single_steps_see(name: str, data: st.DataObject) -> None:
    tables = FORMATS[name]
    words = data.draw(drawn(tables))
    want, found = Oracle(tables, words), walked(tables, words)
    state = found.to_state()
    assert list(state.mappings) == want.runs()
    assert list(state.pages) == want.pages
    seen = {(fault.table, fault.index, fault.reason) for fault in state.faults if fault.reason != UNEVEN}
    complete = len(state.faults) < MAX_FAULTS
    assert seen == want.faults if complete else seen <= want.faults
    depths = {level.entry_span: depth for depth, level in enumerate(tables.levels)}
    groups = set()
    for fault in state.faults:
        level = tables.levels[depths[fault.range.size]]
        if fault.reason == UNEVEN:
            groups.add((depths[fault.range.size], (fault.range.start >> level.shift) // level.group * level.group))
    assert groups <= want.groups
    assert groups == want.groups or not complete
