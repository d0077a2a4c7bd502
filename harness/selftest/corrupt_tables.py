# SPDX-License-Identifier: GPL-2.0-or-later
"""Corruptions of page-table pages, and entries that no kernel writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from harness.arch.pagetable import EntryRule
from harness.selftest.corrupt_linear import hot, removed
from harness.selftest.corruption import MemoryCorruption, memory
from harness.selftest.entries import Place
from harness.selftest.live import Live
from harness.selftest.scene import Inapplicable
from harness.units import AddrRange

TARGET = "page tables"


def _table_gap(live: Live, place: Place) -> Place:
    """``place`` if a table can be linked there; raises Inapplicable."""
    if live.is_lowest(place):
        raise Inapplicable("the tables of removed memory are shared with other memory")
    return place


def _unused_gap(live: Live, window: AddrRange) -> Place:
    """An empty entry in the middle of a window that was never used."""
    # A kernel for more address bits than the CPU has uses the layout for all of them.
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
    """Unlink an empty table that the architecture never frees."""
    windows = (live.view.kernel.linear_window, live.view.kernel.vmemmap_window)
    for page in live.walked.pages:
        if page.entries == 0 and any(window.covers(page.range) for window in windows):
            place = next(place for place in live.path(page.range.start) if live.physical(place) == page.address)
            live.put(place, 0)
            return str(place)
    raise Inapplicable("no empty table exists")


def _twice(live: Live) -> str:
    """Link a table at a second place."""
    place = _table_gap(live, removed(live))
    name = live.tables.levels[place.depth + 1].name
    table = next((page.address for page in live.walked.pages if page.level == name and page.entries), None)
    if table is None:
        raise Inapplicable(f"no {name} table")
    live.put(place, live.table_entry(table))
    return str(place)


def _cycle(live: Live) -> str:
    """Link a table below itself."""
    place = _table_gap(live, removed(live))
    live.put(place, live.table_entry(place.table))
    return str(place)


def _root_again(live: Live) -> str:
    """Link the root below itself."""
    place = _table_gap(live, _unused_gap(live, live.view.kernel.vmemmap_window))
    live.put(place, live.table_entry(live.tables.root // live.tables.page_size * live.tables.page_size))
    return str(place)


def _outside(live: Live) -> str:
    place = _table_gap(live, removed(live))
    live.put(place, live.table_entry(live.nowhere))
    return str(place)


def _in_removed_memory(live: Live) -> str:
    """Move a table into removed memory."""
    place = _table_gap(live, removed(live))
    live.put(place, live.table_entry(live.scene.removed().start))
    return str(place)


def _in_movable_memory(live: Live) -> str:
    """Move a table into ZONE_MOVABLE."""
    place = _table_gap(live, removed(live))
    page = live.scene.online().end - live.tables.page_size
    live.editor.write(page, bytes(live.tables.page_size))
    live.put(place, live.table_entry(page))
    return str(place)


def _is_memmap(live: Live) -> str:
    """Map the memmap of online memory to a page table."""
    place = live.leaf(live.memmap(live.scene.online()).start)
    table = live.path(hot(live).range.start)[-1].table
    live.put(place, live.leading_to(place.entry, table // place.range.size * place.range.size))
    return str(place)


def _junk(live: Live) -> str:
    place = _table_gap(live, removed(live))
    live.put(place, live.bits.junk)
    return str(place)


def _leaf_at_the_top(live: Live) -> str:
    """Add a mapping at a level that cannot have any."""
    place = _unused_gap(live, live.view.kernel.linear_window)
    if place.level.leaves:
        raise Inapplicable(f"a {place.level.name} can have mappings")
    entry = live.bits.block.of(hot(live).entry) & ~live.tables.contiguous
    live.put(place, live.leading_to(entry, 0))
    return str(place)


def _broken_rule(reason: str, places: Callable[[Live], Iterator[Place]]) -> Callable[[Live], str]:
    """Break one of the rules for a mapping's level."""

    def apply(live: Live) -> str:
        for place in places(live):
            for rule in place.level.leaf_rules:
                if rule.reason == reason and (entry := _breaking(place.entry, rule)) is not None:
                    live.put(place, entry)
                    return str(place)
        raise Inapplicable(f"no mapping of this kernel can break that rule ({reason})")

    return apply


def _breaking(entry: int, rule: EntryRule) -> int | None:
    """``entry`` changed to break ``rule``, by its lowest bit if any bit does; None if impossible."""
    if rule.mask == 0:
        return None
    if rule.value is None:
        return entry | rule.mask & -rule.mask
    return entry & ~rule.mask | rule.value


def _any_leaves(live: Live) -> Iterator[Place]:
    """Mappings of online memory, then one of each run."""
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
            raise Inapplicable(f"{live.scene.evidence.layout.machine.arch.name} lacks such entries")
        place = next(_lowest(live), None)
        if place is None:
            raise Inapplicable("nothing is mapped by single pages")
        live.put(place, change.of(place.entry))
        return str(place)

    return apply


def _table_bits(name: str) -> Callable[[Live], str]:
    """Set bits of a mapping in an entry that points to a table."""

    def apply(live: Live) -> str:
        change = live.bits.table.get(name)
        if change is None:
            raise Inapplicable(f"{live.scene.evidence.layout.machine.arch.name} ignores those bits")
        place = live.path(hot(live).range.start)[-2]
        live.put(place, change.of(place.entry))
        return str(place)

    return apply


def _group_broken(live: Live) -> str:
    """Clear the hint of one entry of any contiguous group."""
    for leaf in live.leaves():
        place = live.leaf(leaf.range.start)
        if place.level.group and place.entry & live.tables.contiguous:
            live.put(place, place.entry & ~live.tables.contiguous)
            return str(place)
    raise Inapplicable("nothing is mapped with a contiguous hint")


def _level_mixed(live: Live) -> str:
    """Link a table at a second level."""
    place = _table_gap(live, removed(live))
    model = next((page for page in live.walked.pages if page.level == "PMD"), None)
    if model is None or model.address == place.table:
        raise Inapplicable("no second table of that level")
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
        "table-empty-chain",
        TARGET,
        "two levels of empty tables where nothing was ever mapped",
        "PGT-1",
        apply=_empty_chain,
    ),
    memory("table-kept-gone", TARGET, "a table that is never freed is missing", "PGT-1", apply=_kept_gone),
    memory("table-twice", TARGET, "a table is linked twice", "PGT-2", apply=_twice),
    memory("table-level-mixed", TARGET, "a table is linked at another level, too", "PGT-2", apply=_level_mixed),
    memory("table-cycle", TARGET, "a table is linked below itself", "PGT-2", apply=_cycle),
    memory("table-root-again", TARGET, "the root is linked as a table", "PGT-2", apply=_root_again),
    memory("table-outside", TARGET, "an entry points to a table outside of memory", "PGT-2", apply=_outside),
    memory(
        "table-in-removed", TARGET, "an entry points to a table in removed memory", "PGT-2", apply=_in_removed_memory
    ),
    memory(
        "table-in-movable",
        TARGET,
        "a table lies in hot-added memory that is online as movable",
        "PGT-1",
        "PGT-2",
        apply=_in_movable_memory,
    ),
    memory("table-is-memmap", TARGET, "a table's page is also mapped as memmap", "PGT-2", apply=_is_memmap),
    memory("entry-junk", TARGET, "an entry is neither empty, nor a table, nor a mapping", "PGT-2", apply=_junk),
    memory("entry-too-high", TARGET, "a mapping at a level that cannot have any", "PGT-2", apply=_leaf_at_the_top),
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
        "entry-no-page", TARGET, "an entry of the lowest level is not a page", "PGT-2", apply=_lowest_change("no-page")
    ),
    memory(
        "entry-group-of-no-size",
        TARGET,
        "a page belongs to a contiguous group of an undefined size",
        "PGT-2",
        apply=_lowest_change("group-of-no-size"),
    ),
    memory(
        "entry-group-broken", TARGET, "one entry of a contiguous group has lost the hint", "PGT-2", apply=_group_broken
    ),
    memory(
        "pointer-accessed",
        TARGET,
        "an entry that points to a table has bits of a mapping",
        "PGT-2",
        apply=_table_bits("accessed"),
    ),
    memory(
        "pointer-reserved-bits",
        TARGET,
        "an entry that points to a table has reserved bits set",
        "PGT-2",
        apply=_table_bits("memory-type"),
    ),
)
