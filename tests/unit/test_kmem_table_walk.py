# SPDX-License-Identifier: GPL-2.0-or-later
"""The walk compared with an entry-by-entry walk, on tables of every geometry, valid and broken."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kmem_walk_oracle import BASE, FORMATS, Oracle, memory_of
from numpy.typing import NDArray

import harness.kmem.table_walk as walk_module
from harness.arch.pagetable import TableFormat, coalesce
from harness.collect.decoded_tables import DecodedTables
from harness.errors import GuestError
from harness.kmem.physical_memory import OutsideMemory
from harness.kmem.table_walk import MAX_FAULTS, TableImage, Walk, copy_tables, walk
from harness.parsers.hosttables import format_tables
from harness.state import HostMapping, Mapping, NotObserved, TableCount
from harness.units import GIB, AddrRange

UNEVEN = "its contiguous group is not uniform"


def entry_for(tables: TableFormat, physical: int, bits: int) -> int:
    """``bits`` with ``physical`` in the address bits of this format."""
    for mask, shift in tables.address:
        part = physical >> shift if shift >= 0 else physical << -shift
        bits = bits & ~mask | part & mask
    return bits


class Drawn:
    """Pages of memory filled with tables that hypothesis generates."""

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
        """An address inside of memory, just outside of it, or far away."""
        page = self.tables.page_size
        near = st.integers(-2, self.pages + 2).map(lambda number: BASE + number * page)
        far = st.integers(0, (1 << 56) - 1).map(lambda address: address - address % page)
        top = st.integers(1, 40).map(lambda number: (1 << 48) - number * page)
        return self.draw(near | near | far | top)

    def stretch(self, page: int) -> None:
        """Consecutive entries: pointers, mappings of consecutive (or equal) addresses, or anything."""
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
@settings(max_examples=40)
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


@pytest.mark.parametrize("name", FORMATS)
@given(st.data())
@settings(max_examples=25)
def test_what_did_not_change_is_not_decoded_again_and_what_did_is(name: str, data: st.DataObject) -> None:
    tables = FORMATS[name]
    before = data.draw(drawn(tables))
    after = before.copy()
    for _ in range(data.draw(st.integers(0, 3))):
        place, source = (data.draw(st.integers(0, len(before) - 1)) for _ in range(2))
        after[place] = data.draw(st.sampled_from([0, int(before[source]), int(before[place]) ^ 1]))
    decoded = DecodedTables()
    for words in (before, after):
        with memory_of(words) as memory:
            image = copy_tables(memory, tables)
        state, text = decoded.decode(image, NotObserved("not counted"))
        assert state == walk(image).to_state(NotObserved("not counted"))
        assert text == format_tables(state)
    first = walked(tables, before)
    image = copy_of(tables, after)
    same = image.same_levels(first.image)
    assert (walk(image, first) is first) == all(same)
    # The first copy is overwritten.
    assert all(copy_of(tables, after, first.image).same_levels(image))


def copy_of(tables: TableFormat, words: NDArray[np.uint64], into: TableImage | None = None) -> TableImage:
    with memory_of(words) as memory:
        return copy_tables(memory, tables, into)


def test_a_table_whose_memory_went_is_told_even_if_no_entry_changed() -> None:
    built = Built("arm64-4k-48", 5)
    built.words[built.depth - 1, 7] = pointer(built.tables, 4)
    words = built.words.reshape(-1)
    whole = walked(built.tables, words)
    less = copy_of(built.tables, words[: -len(words) // 5])
    assert walk(less, whole).faults == walk(less).faults != whole.faults


def test_the_tables_that_the_kernel_counts_are_told_anew() -> None:
    built = Built("arm64-4k-48", 4)
    image, decoded = copy_of(built.tables, built.words.reshape(-1)), DecodedTables()
    for marked, count in ((frozenset({page_of(built.tables, 1)}), 1), (frozenset[int](), 0), (frozenset[int](), 7)):
        counted = marked, TableCount(count, len(marked), 0)
        state, text = decoded.decode(image, counted)
        assert (state, text) == (walk(image).to_state(counted), format_tables(state))


def page_of(tables: TableFormat, number: int) -> int:
    return BASE + number * tables.page_size


def pointer(tables: TableFormat, number: int) -> int:
    return entry_for(tables, page_of(tables, number), tables.table[1])


def leaf_bits(tables: TableFormat) -> int:
    """The bits of a writable kernel page."""
    return 0xE7 if tables.napot else 0x60_0000_0000_0000 | 0xF03


class Built:
    """Hand-made tables: the root in page 0, one table of each lower level, entry 0 of each pointing to the next."""

    def __init__(self, name: str, pages: int) -> None:
        self.tables = FORMATS[name]
        self.words = np.zeros((pages, self.tables.page_size // 8), dtype=np.uint64)
        self.depth = len(self.tables.levels) - 1
        for number in range(self.depth):
            self.words[number, 0] = pointer(self.tables, number + 1)

    def walk(self) -> Walk:
        return walked(self.tables, self.words.reshape(-1))

    def fill(self, page: int, physical: int) -> None:
        """A PTE table that maps physically contiguous pages."""
        page_size = self.tables.page_size
        self.words[page] = [
            entry_for(self.tables, physical + number * page_size, leaf_bits(self.tables))
            for number in range(self.words.shape[1])
        ]

    def reasons(self) -> list[tuple[int, int, str]]:
        return [(fault.table, fault.index, fault.reason) for fault in self.walk().faults]


@pytest.mark.parametrize("name", FORMATS)
def test_full_tables_join_into_one_run(name: str) -> None:
    built = Built(name, 8)
    tables, last = built.tables, built.depth
    span = tables.levels[-1].table_span
    for number in range(3):
        built.words[last - 1, number] = pointer(tables, last + number)
        built.fill(last + number, 0x8000_0000 + number * span)
    found = built.walk()
    state = found.to_state()
    assert state.faults == ()
    words = tables.words(int(built.words[last, 0]))
    where = AddrRange.sized(tables.start, 3 * span)
    assert state.mappings == (HostMapping(where, 0x8000_0000, "PTE", words),)
    assert [page.entries for page in state.pages][-3:] == [built.words.shape[1]] * 3
    expected = () if tables.dump_start > tables.start else (Mapping(where, "PTE", words, ""),)
    assert found.coalesce([]) == expected


@pytest.mark.parametrize("name", ["arm64-4k-52", "arm64-16k-52", "arm64-64k-52"])
def test_a_physical_address_may_carry_into_its_upper_bits(name: str) -> None:
    built = Built(name, 8)
    size = built.words.shape[1] * built.tables.page_size
    for boundary in (1 << 48, 1 << 50):
        physical = boundary - size // 2
        built.fill(built.depth, physical)
        found = built.walk()
        assert found.faults == ()
        assert [(run.physical, run.range.size) for run in found.mappings()] in (
            [(physical, size)],
            # With LPA2, bits 51:50 of the address are where ptdump looks for the shareability.
            [(physical, size // 2), (boundary, size // 2)],
        )


def test_the_root_lies_outside() -> None:
    tables = FORMATS["arm64-4k-48"]
    with memory_of(np.zeros(512, dtype=np.uint64), BASE + GIB) as memory, pytest.raises(OutsideMemory):
        copy_tables(memory, tables)


@pytest.mark.parametrize("name", ["arm64-4k-48", "riscv64-sv48"])
def test_a_loop_is_a_fault_and_ends(name: str) -> None:
    built = Built(name, 4)
    again = "leads to a table that is reachable another way too"
    built.words[2, 5] = pointer(built.tables, 0)
    built.words[1, 7] = pointer(built.tables, 1)
    built.words[0, 11] = built.words[0, 0]
    tables = built.tables
    assert built.reasons() == [
        (page_of(tables, 2), 5, again),
        (page_of(tables, 1), 7, again),
        (page_of(tables, 0), 11, again),
    ]
    assert [page.level for page in built.walk().pages()] == ["PGD", "PUD", "PMD", "PTE"]


@pytest.mark.parametrize("name", ["arm64-4k-48", "arm64-64k-52", "riscv64-sv39"])
def test_kasan_maps_the_shadow_of_nothing_by_shared_tables(name: str) -> None:
    built = Built(name, 8)
    tables, last = built.tables, built.depth
    page = entry_for(tables, 0x5000_0000, leaf_bits(tables))
    built.words[last] = page
    for number in range(1, last):
        built.words[number] = pointer(tables, number + 1)
        if not tables.napot:
            # PXNTable: set in the pointers of kasan_populate_early_shadow, but not in those of kasan_early_init
            built.words[number, 3:] |= np.uint64(1 << 59)
    built.words[0, :4] = pointer(tables, 1)
    found = built.walk()
    assert found.faults == ()
    words = tables.words(page)
    whole = AddrRange.sized(tables.start, 4 * tables.levels[0].entry_span)
    runs = found.mappings()
    assert {run.physical for run in runs} == {0x5000_0000}
    assert sum(run.range.size for run in runs) == whole.size
    if not tables.napot:
        assert found.coalesce([(tables.start, "shadow")]) == (Mapping(whole, "PTE", words, "shadow"),)
    built.words[last, 5] = 0
    again = {reason for _, _, reason in built.reasons()}
    assert again == {"leads to a table that is reachable another way too"}


def test_an_empty_table_must_not_be_shared() -> None:
    built = Built("arm64-4k-48", 4)
    built.words[2, 1] = built.words[2, 0]
    assert [index for _, index, _ in built.reasons()] == [1]


def test_more_tables_than_memory_could_take() -> None:
    tables = FORMATS["arm64-4k-39"]
    pages = 8192
    words = np.zeros((pages, 512), dtype=np.uint64)
    base = np.uint64(pointer(tables, 0))
    words[0, :512] = base + np.arange(1, 513, dtype=np.uint64) * np.uint64(4096)
    for number in range(1, 15):
        words[number] = base + np.uint64(4096) * np.arange(512 * number + 1, 512 * number + 513, dtype=np.uint64)
    with memory_of(words.reshape(-1)) as memory:
        image = copy_tables(memory, tables)
    # 16 MiB of tables, and four times the tables needed to map 32 MiB of memory
    assert [len(rows.starts) for rows in image.levels] == [1, 512, 4096 + 4 * 16 - 512]
    faults = walk(image).faults
    assert len(faults) == 14 * 512 - 3648
    assert {fault.reason for fault in faults} == {"leads to a table beyond those that this much memory can take"}


def test_faults_are_bounded() -> None:
    built = Built("arm64-64k-48", 4)
    built.fill(2, 0x8000_0000)
    built.words[2] |= np.uint64(1 << 6)
    faults = built.walk().faults
    assert len(faults) == MAX_FAULTS
    assert [fault.index for fault in faults] == list(range(MAX_FAULTS))


def test_runs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk_module, "MAX_RUNS", 100)
    built = Built("riscv64-sv39", 4)
    built.fill(2, 0x8000_0000)
    built.words[2, ::2] = 0
    with pytest.raises(GuestError, match="256 runs of mappings, which is more than 100"):
        built.walk()


@given(st.integers(0, 1 << 32), st.sampled_from(sorted(FORMATS)), st.sampled_from(["noise", "pointers", "leaves"]))
@settings(max_examples=60)
def test_garbage_ends_in_faults_not_in_errors(seed: int, name: str, kind: str) -> None:
    tables = FORMATS[name]
    noise = np.random.default_rng(seed)
    pages = 12
    words = noise.integers(0, 1 << 64, (pages, tables.page_size // 8), dtype=np.uint64)
    if kind == "pointers":
        words = np.vectorize(lambda number: pointer(tables, number), otypes=[np.uint64])(words % np.uint64(pages + 2))
    elif kind == "leaves":
        words[:, ::3] = np.uint64(pointer(tables, 3))
        words |= np.uint64(tables.valid)
    found = walked(tables, words.reshape(-1))
    state = found.to_state()
    assert len(state.pages) <= pages
    assert all(before.range.end <= after.range.start for before, after in itertools.pairwise(state.mappings))
    assert all(fault.reason for fault in state.faults)
    list(found.coalesce([]))


def test_coalescing_arrays_equals_coalescing_mappings() -> None:
    built = Built("arm64-4k-48", 8)
    for number in range(3):
        built.words[2, number] = pointer(built.tables, 3 + number)
        built.fill(3 + number, 0x8000_0000 + number * GIB)
    found = built.walk()
    markers = [(built.tables.start, "first"), (built.tables.start + 5 * 4096 + 1, "second")]
    assert list(found.coalesce(markers)) == list(coalesce(found.mappings(), built.tables, markers))
    assert len(found.mappings()) == 3
    assert len(found.coalesce(markers)) == 2
