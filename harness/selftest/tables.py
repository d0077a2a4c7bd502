# SPDX-License-Identifier: GPL-2.0-or-later
"""Corruptions of page-table pages, and entries that no kernel writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from harness.arch.pagetable import EntryRule
from harness.selftest.corruption import MemoryCorruption, memory
from harness.selftest.entries import Place
from harness.selftest.linear import hot, removed
from harness.selftest.live import Live
from harness.selftest.scene import Inapplicable
from harness.units import AddrRange

TARGET = "page tables"


def _table_gap(live: Live, place: Place) -> Place:
    """``place`` if a table can be linked there."""
    if live.is_lowest(place):
        raise Inapplicable("the tables of removed memory have others to serve")
    return place


def _unused_gap(live: Live, window: AddrRange) -> Place:
    """An empty entry in the middle of a window, where nothing was ever mapped."""
    # A kernel for more bits than the CPU has is laid out for those that it does not have.
    usable = AddrRange(max(window.start, live.tables.start), window.end)
    return _table_gap(live, live.gap(usable.start + usable.size // 2))


def _empty_left(live: Live) -> str:
    place = _table_gap(live, removed(live))
    live.put(place, live.table_entry(live.new_table()))
    return str(place)


def _empty_memmap_left(live: Live) -> str:
    place = _table_gap(live, live.gap(live.memmap(live.scene.removed()).start))
    live.put(place, live.table_entry(live.new_table()))
    return str(place)


def _empty_chain(live: Live) -> str:
    place = _unused_gap(live, live.view.kernel.linear_window)
    if place.depth + 2 >= len(live.tables.levels):
        raise Inapplicable("there is no room for two levels of tables")
    live.put(place, live.table_entry(live.new_table([live.table_entry(live.new_table())])))
    return str(place)


def _kept_gone(live: Live) -> str:
    """An empty table that the architecture keeps for good is unlinked."""
    windows = (live.view.kernel.linear_window, live.view.kernel.vmemmap_window)
    for page in live.walked.pages:
        if page.entries == 0 and any(window.covers(page.range) for window in windows):
            place = next(place for place in live.path(page.range.start) if live.physical(place) == page.address)
            live.put(place, 0)
            return str(place)
    raise Inapplicable("no empty table is kept")


def _twice(live: Live) -> str:
    """A table is linked at a second place."""
    place = _table_gap(live, removed(live))
    name = live.tables.levels[place.depth + 1].name
    table = next((page.address for page in live.walked.pages if page.level == name and page.entries), None)
    if table is None:
        raise Inapplicable(f"there is no {name} table")
    live.put(place, live.table_entry(table))
    return str(place)


def _cycle(live: Live) -> str:
    """A table is linked below itself."""
    place = _table_gap(live, removed(live))
    live.put(place, live.table_entry(place.table))
    return str(place)


def _root_again(live: Live) -> str:
    """The root is linked below itself."""
    place = _table_gap(live, _unused_gap(live, live.view.kernel.vmemmap_window))
    live.put(place, live.table_entry(live.tables.root // live.tables.page_size * live.tables.page_size))
    return str(place)


def _outside(live: Live) -> str:
    place = _table_gap(live, removed(live))
    live.put(place, live.table_entry(live.nowhere))
    return str(place)


def _in_removed_memory(live: Live) -> str:
    """A table lies in the memory that is gone."""
    place = _table_gap(live, removed(live))
    live.put(place, live.table_entry(live.scene.removed().start))
    return str(place)


def _in_movable_memory(live: Live) -> str:
    """A table lies where the kernel puts nothing that cannot be moved."""
    place = _table_gap(live, removed(live))
    page = live.scene.online().end - live.tables.page_size
    live.editor.write(page, bytes(live.tables.page_size))
    live.put(place, live.table_entry(page))
    return str(place)


def _is_memmap(live: Live) -> str:
    """The memmap of online memory lies on top of a page table."""
    place = live.leaf(live.memmap(live.scene.online()).start)
    table = live.path(hot(live).range.start)[-1].table
    live.put(place, live.leading_to(place.entry, table // place.range.size * place.range.size))
    return str(place)


def _junk(live: Live) -> str:
    place = _table_gap(live, removed(live))
    live.put(place, live.bits.junk)
    return str(place)


def _leaf_at_the_top(live: Live) -> str:
    """A mapping at a level that can have none."""
    place = _unused_gap(live, live.view.kernel.linear_window)
    if place.level.leaves:
        raise Inapplicable(f"there can be mappings in a {place.level.name}")
    entry = live.bits.block.of(hot(live).entry) & ~live.tables.contiguous
    live.put(place, live.leading_to(entry, 0))
    return str(place)


def _broken_rule(reason: str, places: Callable[[Live], Iterator[Place]]) -> Callable[[Live], str]:
    """A mapping breaks one of the rules for its level."""

    def apply(live: Live) -> str:
        for place in places(live):
            for rule in place.level.leaf_rules:
                if rule.reason == reason and (entry := _breaking(place.entry, rule)) is not None:
                    live.put(place, entry)
                    return str(place)
        raise Inapplicable(f"no mapping of this kernel can break that rule ({reason})")

    return apply


def _breaking(entry: int, rule: EntryRule) -> int | None:
    """``entry`` so that it breaks ``rule``, by its lowest bit if any bit will do; None if none can."""
    if rule.mask == 0:
        return None
    if rule.value is None:
        return entry | rule.mask & -rule.mask
    return entry & ~rule.mask | rule.value


def _any_leaves(live: Live) -> Iterator[Place]:
    """Mappings of online memory first, then one of each run."""
    yield hot(live)
    for leaf in live.leaves():
        yield live.leaf(leaf.range.start)


def _blocks(live: Live) -> Iterator[Place]:
    yield from (place for place in _any_leaves(live) if not live.is_lowest(place))


def _lowest(live: Live) -> Iterator[Place]:
    yield from (place for place in _any_leaves(live) if live.is_lowest(place))


def _lowest_change(name: str) -> Callable[[Live], str]:
    """Change the first mapping of the lowest level."""

    def apply(live: Live) -> str:
        change = live.bits.leaf.get(name)
        if change is None:
            raise Inapplicable(f"{live.scene.evidence.layout.machine.arch.name} has no such entry")
        place = next(_lowest(live), None)
        if place is None:
            raise Inapplicable("nothing is mapped by single pages")
        live.put(place, change.of(place.entry))
        return str(place)

    return apply


def _table_bits(name: str) -> Callable[[Live], str]:
    """An entry that leads to a table has bits of a mapping."""

    def apply(live: Live) -> str:
        change = live.bits.table.get(name)
        if change is None:
            raise Inapplicable(f"{live.scene.evidence.layout.machine.arch.name} ignores those bits")
        place = live.path(hot(live).range.start)[-2]
        live.put(place, change.of(place.entry))
        return str(place)

    return apply


def _group_broken(live: Live) -> str:
    """One entry of a contiguous group anywhere loses the hint."""
    for leaf in live.leaves():
        place = live.leaf(leaf.range.start)
        if place.level.group and place.entry & live.tables.contiguous:
            live.put(place, place.entry & ~live.tables.contiguous)
            return str(place)
    raise Inapplicable("nothing is mapped with a contiguous hint")


def _level_mixed(live: Live) -> str:
    """A table of one level is linked as one of another, too."""
    place = _table_gap(live, removed(live))
    model = next((page for page in live.walked.pages if page.level == "PMD"), None)
    if model is None or model.address == place.table:
        raise Inapplicable("there is no second table of that level")
    live.put(place, live.table_entry(model.address))
    return str(place)


CORRUPTIONS: tuple[MemoryCorruption, ...] = (
    memory("table-empty-left", TARGET, "an empty table of removed memory stays linked", "PGT-1", apply=_empty_left),
    memory(
        "table-empty-memmap-left",
        TARGET,
        "an empty table of removed memory's memmap stays linked",
        "PGT-1",
        apply=_empty_memmap_left,
    ),
    memory(
        "table-empty-chain", TARGET, "two levels of empty tables where nothing ever was", "PGT-1", apply=_empty_chain
    ),
    memory("table-kept-gone", TARGET, "a table that is kept for good is gone", "PGT-1", apply=_kept_gone),
    memory("table-twice", TARGET, "a table is linked twice", "PGT-2", apply=_twice),
    memory("table-level-mixed", TARGET, "a table is linked at another level, too", "PGT-2", apply=_level_mixed),
    memory("table-cycle", TARGET, "a table is linked below itself", "PGT-2", apply=_cycle),
    memory("table-root-again", TARGET, "the root is linked as a table", "PGT-2", apply=_root_again),
    memory("table-outside", TARGET, "an entry leads to a table where there is no memory", "PGT-2", apply=_outside),
    memory(
        "table-in-removed", TARGET, "an entry leads to a table in removed memory", "PGT-2", apply=_in_removed_memory
    ),
    memory(
        "table-in-movable",
        TARGET,
        "a table lies in hot-added memory that is online as movable",
        "PGT-1",
        "PGT-2",
        apply=_in_movable_memory,
    ),
    memory("table-is-memmap", TARGET, "a table's page serves as memmap, too", "PGT-2", apply=_is_memmap),
    memory("entry-junk", TARGET, "an entry is neither empty, nor a table, nor a mapping", "PGT-2", apply=_junk),
    memory("entry-too-high", TARGET, "a mapping at a level that has none", "PGT-2", apply=_leaf_at_the_top),
    memory(
        "entry-reserved-bits",
        TARGET,
        "a mapping has reserved bits set",
        "PGT-2",
        apply=_broken_rule("reserved bits are set", _any_leaves),
    ),
    memory(
        "entry-misaligned",
        TARGET,
        "a block's physical address is not aligned",
        "PGT-2",
        apply=_broken_rule("the output address is not aligned", _blocks),
    ),
    memory(
        "entry-no-page", TARGET, "an entry of the lowest level is no page", "PGT-2", apply=_lowest_change("no-page")
    ),
    memory(
        "entry-group-of-no-size",
        TARGET,
        "a page belongs to a contiguous group of a size that there is not",
        "PGT-2",
        apply=_lowest_change("group-of-no-size"),
    ),
    memory(
        "entry-group-broken", TARGET, "one entry of a contiguous group has lost the hint", "PGT-2", apply=_group_broken
    ),
    memory(
        "pointer-accessed",
        TARGET,
        "an entry that leads to a table has bits of a mapping",
        "PGT-2",
        apply=_table_bits("accessed"),
    ),
    memory(
        "pointer-reserved-bits",
        TARGET,
        "an entry that leads to a table has reserved bits set",
        "PGT-2",
        apply=_table_bits("memory-type"),
    ),
)
