# SPDX-License-Identifier: GPL-2.0-or-later
"""Which page-table pages stay: the model compared with each architecture's way of removing mappings."""

from __future__ import annotations

import itertools

import model_guest
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_guest import ARM64_4K, KINDS, Kind
from model_kernel import Leaf, Tables

from harness.arch import ARM64
from harness.check.code import moving
from harness.model.devices.dimm import PlugDimm
from harness.model.devices.pmem import SetPmemMode
from harness.model.devices.virtio_pmem import PlugVirtioPmem
from harness.model.kept_tables import kept_tables
from harness.model.vmemmap_frames import altmap_start
from harness.state import NotObserved
from harness.units import GIB, KIB, MIB, AddrRange, align_down


def fresh(kind: Kind, window: AddrRange) -> Tables:
    levels = kind.arch.table_format(model_guest.note(kind), kind.page_size).levels
    top = 1 << 64
    root = AddrRange(top - levels[0].table_span if kind.arch is ARM64 else 0, top)
    tables = Tables(levels, root, itertools.count(GIB, kind.page_size))
    if kind.arch is not ARM64:
        tables.riscv_preallocate(window)
    return tables


def unmap(kind: Kind, tables: Tables, part: AddrRange, window: AddrRange) -> None:
    if kind.arch is ARM64:
        tables.arm64_remove(part, window.start, window.end)
    else:
        tables.riscv_remove(part)


#: toggled slots of the window: (slot, mapped by pages instead of a larger leaf)
STEPS = st.lists(st.tuples(st.integers(0, 11), st.booleans()), max_size=24)


def check(kind: Kind, window: AddrRange, steps: list[tuple[int, bool]]) -> None:
    """Toggle slots at both ends of ``window``; after each step the tables must be those in use and the kept ones."""
    tables, rules = fresh(kind, window), kind.arch.table_rules
    large = tables.levels[-2].entry_span
    slots = [AddrRange.sized(window.start + number * large, large) for number in range(6)]
    slots += [AddrRange.sized(window.end - (number + 1) * large, large) for number in range(6)]
    mapped: set[AddrRange] = set()
    once: set[AddrRange] = set()
    for number, pages in steps:
        slot = slots[number]
        if slot in mapped:
            unmap(kind, tables, slot, window)
            mapped.discard(slot)
        else:
            # A few pages are enough: all that matters is whether a table has entries.
            leaves = (
                [slot] if not pages else [AddrRange.sized(slot.start + at, kind.page_size) for at in (0, large // 2)]
            )
            for leaf in leaves:
                tables.map(leaf.start, leaf.size, Leaf(0, ()))
            mapped.add(slot)
            once.add(slot)
        kept = kept_tables(rules, tables.levels, [window], sorted(once))
        there = {(tables.levels[t.depth].name, tables.span(t)) for t in tables.tables() if t is not tables.root}
        used = {
            (tables.levels[table.depth].name, tables.span(table))
            for table in tables.tables()
            if table is not tables.root and any(slot.overlaps(tables.span(table)) for slot in mapped)
        }
        assert there == used | kept


@settings(deadline=None)
@given(steps=STEPS, start=st.integers(0, 3 * 512), size=st.integers(12, 3 * 512))
def test_arm64_keeps_what_reaches_beyond_a_window(steps: list[tuple[int, bool]], start: int, size: int) -> None:
    base = align_down((1 << 64) - (100 << 40), 512 * GIB)
    check(ARM64_4K, AddrRange.sized(base + start * 2 * MIB, size * 2 * MIB), steps)


@settings(deadline=None)
@given(steps=STEPS, size=st.integers(1, 4), kind=st.sampled_from([kind for kind in KINDS if kind.arch is not ARM64]))
def test_riscv64_keeps_what_hangs_below_the_root(steps: list[tuple[int, bool]], size: int, kind: Kind) -> None:
    span = kind.arch.table_format(model_guest.note(kind), kind.page_size).levels[0].entry_span
    base = (1 << 64) - 64 * span
    check(kind, AddrRange.sized(base, size * span), steps)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_windows_of_real_kernels(kind: Kind) -> None:
    layout = model_guest.layout(kind)
    assert layout.kernel is not None
    levels = kind.arch.table_format(model_guest.note(kind), kind.page_size).levels
    linear, vmemmap = layout.kernel.linear_window, layout.kernel.vmemmap_window
    rules = kind.arch.table_rules
    kept = kept_tables(rules, levels, (linear, vmemmap), [])
    if kind.arch is ARM64:
        assert kept == frozenset()
        edges = kept_tables(rules, levels, (linear, vmemmap), [vmemmap])
        assert all(place.overlaps(vmemmap) and not vmemmap.covers(place) for _, place in edges)
    else:
        root = levels[0].entry_span
        assert {level for level, _ in kept} == {levels[1].name}
        assert len(kept) == linear.size // root + vmemmap.size // root


def test_the_frames_of_a_memmap_on_its_own_device_are_foretold() -> None:
    model = model_guest.model(parameters={"memory_hotplug.memmap_on_memory": "Y"})
    model.apply(PlugDimm("d0", GIB))
    for piece in model.expected().linear:
        assert altmap_start(piece, model.layout) == piece.range.start
    model = model_guest.model()
    model.apply(PlugVirtioPmem("p0", GIB))
    model.apply(SetPmemMode("p0", "devdax", "dev"))
    (piece,) = model.expected().linear
    assert piece.altmap == AddrRange(piece.range.start + 8 * KIB, piece.range.start + 18 * MIB)
    assert altmap_start(piece, model.layout) == piece.range.start + 2 * MIB
    model.apply(SetPmemMode("p0", "devdax", "mem"))
    assert altmap_start(model.expected().linear[0], model.layout) is None


def test_the_frames_of_a_partial_section_on_its_own_device_are_not_foretold() -> None:
    model = model_guest.model()
    model.apply(PlugVirtioPmem("p0", 192 * MIB))
    model.apply(SetPmemMode("p0", "devdax", "dev"))
    assert altmap_start(model.expected().linear[0], model.layout) is None


@pytest.mark.parametrize(
    ("kind", "config", "shadow"),
    [
        (KINDS[1], {"KASAN_GENERIC": "y", "KASAN_SHADOW_OFFSET": "0xdfff800000000000"}, 0xFFFF6000_00000000),
        (ARM64_4K, {"KASAN_GENERIC": "y", "KASAN_SHADOW_OFFSET": "0xdfff800000000000"}, 0xFFFD8000_00000000),
        (KINDS[1], {"KASAN_SW_TAGS": "y", "KASAN_SHADOW_OFFSET": "0xefff800000000000"}, 0xFFFF7000_00000000),
        (KINDS[1], {"KASAN_HW_TAGS": "y"}, None),
        (KINDS[4], {"KASAN_GENERIC": "y", "KASAN_SHADOW_OFFSET": "0xdfffffff00000000"}, 0xFFFFFFF7_00000000),
        (KINDS[5], {"KASAN_GENERIC": "y", "KASAN_SHADOW_OFFSET": "0xdfffffff00000000"}, 0xFFFFEF80_00000000),
        (KINDS[-1], {"KASAN_GENERIC": "y", "KASAN_SHADOW_OFFSET": "0xdfffffff00000000"}, 0xFFDF0000_00000000),
        (KINDS[-1], {}, None),
    ],
)
def test_the_linear_map_ends_where_kasans_shadow_begins(kind: Kind, config: dict[str, str], shadow: int | None) -> None:
    plain, layout = model_guest.layout(kind).kernel, model_guest.layout(kind, config=config)
    assert plain is not None and layout.kernel is not None
    place = layout.features.shadow
    assert not isinstance(place, NotObserved)
    assert (None if place is None else place.start) == shadow
    end = plain.linear_window.end if shadow is None else min(shadow, plain.linear_window.end)
    assert layout.kernel.linear_window == AddrRange(plain.linear_window.start, end)
    spaces = moving(layout)
    assert spaces is not None
    assert place is None or any(space.covers(place) for space in spaces)


def test_a_configuration_that_contradicts_itself_leaves_the_layout_unknown() -> None:
    assert model_guest.layout(config={"KASAN_GENERIC": "y"}).kernel is None
