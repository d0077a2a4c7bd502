# SPDX-License-Identifier: GPL-2.0-or-later
"""Corruptions of page-table pages, entries that no kernel writes, and mappings that only a second witness reveals."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from harness.arch.pagetable import EntryRule
from harness.check.code import moving
from harness.selftest.corrupt_linear import hot, removed
from harness.selftest.corrupt_vmemmap import removed_memmap
from harness.selftest.corruption import Case, Stroke, memory
from harness.selftest.entries import Place
from harness.selftest.live import Live
from harness.selftest.scene import Inapplicable
from harness.selftest.strokes import Find, changed, gone, led_to, nowhere, table_of
from harness.state import HostMapping, NotObserved
from harness.units import TOP, AddrRange, align_down

# tables ----------------------------------------------------------------------------------------------------------


def _for_a_table(find: Find) -> Find:
    """The same entry; inapplicable if no table can be linked there."""

    def apply(live: Live) -> Place:
        place = find(live)
        if live.is_lowest(place):
            raise Inapplicable("the tables of removed memory are shared with other memory")
        return place

    return apply


def _linked(find: Find, table: Callable[[Live, Place], int]) -> Stroke:
    """Let an empty entry point to the table at the physical address that ``table`` returns."""
    return changed(_for_a_table(find), lambda live, place: live.table_entry(table(live, place)))


def _unused(live: Live, window: AddrRange) -> Place:
    """An empty entry in the middle of a window that was never used."""
    # A kernel for more address bits than the CPU has uses the layout for all of them.
    usable = AddrRange(max(window.start, live.tables.start), window.end)
    return live.gap(usable.start + usable.size // 2)


def _unused_linear(live: Live) -> Place:
    return _unused(live, live.view.kernel.linear_window)


def _unused_vmemmap(live: Live) -> Place:
    return _unused(live, live.view.kernel.vmemmap_window)


def _empty(live: Live, place: Place) -> int:
    return live.new_table()


def _empty_chain(live: Live, place: Place) -> int:
    if place.depth + 2 >= len(live.tables.levels):
        raise Inapplicable("there is no room for two levels of tables")
    return live.new_table([live.table_entry(live.new_table())])


def _kept(live: Live) -> Place:
    """The entry of an empty table that the architecture never frees."""
    windows = (live.view.kernel.linear_window, live.view.kernel.vmemmap_window)
    for page in live.walked.pages:
        if page.entries == 0 and any(window.covers(page.range) for window in windows):
            return next(place for place in live.path(page.range.start) if live.physical(place) == page.address)
    raise Inapplicable("no empty table exists")


def _in_use(live: Live, place: Place) -> int:
    """A table of the level below that is linked elsewhere."""
    name = live.tables.levels[place.depth + 1].name
    for page in live.walked.pages:
        if page.level == name and page.entries:
            return page.address
    raise Inapplicable(f"no {name} table")


def _of_another_level(live: Live, place: Place) -> int:
    model = next((page for page in live.walked.pages if page.level == "PMD"), None)
    if model is None or model.address == place.table:
        raise Inapplicable("no second table of that level")
    return model.address


def _root(live: Live, place: Place) -> int:
    return align_down(live.tables.root, live.tables.page_size)


def _in_movable_memory(live: Live, place: Place) -> int:
    page = live.scene.online().end - live.tables.page_size
    live.editor.write(page, bytes(live.tables.page_size))
    return page


def _memmap(live: Live) -> Place:
    return live.leaf(live.memmap(live.scene.online()).start)


# entries ---------------------------------------------------------------------------------------------------------


def _without_mappings(live: Live) -> Place:
    """An empty entry at a level that cannot have any mapping."""
    place = _for_a_table(_unused_linear)(live)
    if place.level.leaves:
        raise Inapplicable(f"a {place.level.name} can have mappings")
    return place


def _block_at_0(live: Live, place: Place) -> int:
    return live.leading_to(live.bits.block.of(hot(live).entry) & ~live.tables.contiguous, 0)


def _broken_rule(reason: str, places: Callable[[Live], Iterator[Place]]) -> Stroke:
    """Break one of the rules for a mapping's level."""

    def apply(live: Live) -> str:
        for place in places(live):
            for rule in place.level.leaf_rules:
                if rule.reason == reason and (entry := _breaking(place.entry, rule)) is not None:
                    return live.put(place, entry)
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
    for leaf in live.walked.mappings:
        yield live.leaf(leaf.range.start)


def _blocks(live: Live) -> Iterator[Place]:
    return (place for place in _any_leaves(live) if not live.is_lowest(place))


def _lowest(name: str) -> Stroke:
    """Change the first mapping of the lowest level."""

    def apply(live: Live) -> str:
        if name not in live.bits.leaf:
            raise Inapplicable(f"{live.arch.name} lacks such entries")
        place = next(filter(live.is_lowest, _any_leaves(live)), None)
        if place is None:
            raise Inapplicable("nothing is mapped by single pages")
        return live.put(place, live.bits.leaf[name].of(place.entry))

    return apply


def _pointer(name: str) -> Stroke:
    """Set bits of a mapping in an entry that points to a table."""

    def apply(live: Live) -> str:
        if name not in live.bits.table:
            raise Inapplicable(f"{live.arch.name} ignores those bits")
        return changed(table_of(hot), lambda live, place: live.bits.table[name].of(place.entry))(live)

    return apply


def _grouped(live: Live) -> Place:
    """A member of any contiguous group."""
    for leaf in live.walked.mappings:
        place = live.leaf(leaf.range.start)
        if place.level.group and place.entry & live.tables.contiguous:
            return place
    raise Inapplicable("nothing is mapped with a contiguous hint")


# the kernel's image, and other mappings outside of linear map and vmemmap ----------------------------------------


def _image(what: str, wanted: Callable[[Live, HostMapping], bool]) -> Find:
    """The first wanted mapping of the kernel's own code and data."""

    def find(live: Live) -> Place:
        layout, kernel = live.scene.evidence.layout, live.view.kernel
        note, rules = layout.facts.vmcoreinfo, live.arch.table_rules
        if isinstance(note, NotObserved) or rules.image_offset not in note:
            raise Inapplicable("the address of the kernel's image is unknown")
        offset = int(note[rules.image_offset], 0)
        for leaf in live.walked.mappings:
            known = kernel.linear_window.overlaps(leaf.range) or kernel.vmemmap_window.overlaps(leaf.range)
            if not known and (leaf.range.start - leaf.physical - offset) % TOP == 0 and wanted(live, leaf):
                return live.leaf(leaf.range.start + leaf.range.size // 2)
        raise Inapplicable(f"the kernel's image has no {what}")

    return find


_code = _image("code", lambda live, leaf: live.arch.executable_word in leaf.attrs)
_data = _image("data", lambda live, leaf: live.arch.writable_word in leaf.attrs)
_constants = _image(
    "read-only data", lambda live, leaf: not {live.arch.executable_word, live.arch.writable_word} & set(leaf.attrs)
)


def _other(live: Live) -> Place:
    """A mapping outside of the linear map, vmemmap, vmalloc, modules and the image: fixmap, PCI I/O, …"""
    kernel, layout = live.view.kernel, live.scene.evidence.layout
    taken = [kernel.linear_window, kernel.vmemmap_window, *(moving(layout) or ())]
    for leaf in live.walked.mappings:
        if not any(window.overlaps(leaf.range) for window in taken):
            return live.leaf(leaf.range.start)
    raise Inapplicable("no other mapping")


def _made(name: str, find: Find) -> Stroke:
    """Change one attribute of a mapping of the image, observable by ptdump or not."""
    return changed(find, lambda live, place: live.bits.leaf[name].of(place.entry))


_TABLES = memory(
    "page tables",
    Case("table-empty-left", "an empty table of removed memory stays linked", "PGT-1", _linked(removed, _empty)),
    Case(
        "table-empty-memmap-left",
        "an empty table of removed memory's memmap stays linked",
        "PGT-1",
        _linked(removed_memmap, _empty),
    ),
    Case(
        "table-empty-chain",
        "two levels of empty tables where nothing was ever mapped",
        "PGT-1",
        _linked(_unused_linear, _empty_chain),
    ),
    Case("table-kept-gone", "a table that is never freed is missing", "PGT-1", gone(_kept)),
    Case("table-twice", "a table is linked twice", "PGT-2", _linked(removed, _in_use)),
    Case("table-level-mixed", "a table is linked at another level, too", "PGT-2", _linked(removed, _of_another_level)),
    Case("table-cycle", "a table is linked below itself", "PGT-2", _linked(removed, lambda _, place: place.table)),
    Case("table-root-again", "the root is linked as a table", "PGT-2", _linked(_unused_vmemmap, _root)),
    Case("table-outside", "an entry points to a table outside of memory", "PGT-2", _linked(removed, nowhere)),
    Case(
        "table-in-removed",
        "an entry points to a table in removed memory",
        "PGT-2",
        _linked(removed, lambda live, _: live.scene.removed().start),
    ),
    Case(
        "table-in-movable",
        "a table lies in hot-added memory that is online as movable",
        "PGT-1 PGT-2",
        _linked(removed, _in_movable_memory),
    ),
    Case(
        "table-is-memmap",
        "a table's page is also mapped as memmap",
        "PGT-2",
        led_to(_memmap, lambda live, _: live.path(hot(live).range.start)[-1].table),
    ),
    Case(
        "entry-junk",
        "an entry is neither empty, nor a table, nor a mapping",
        "PGT-2",
        changed(_for_a_table(removed), lambda live, _: live.bits.junk),
    ),
    Case(
        "entry-too-high", "a mapping at a level that cannot have any", "PGT-2", changed(_without_mappings, _block_at_0)
    ),
    Case(
        "entry-reserved-bits",
        "a mapping has reserved bits set",
        "PGT-2",
        _broken_rule("reserved bits are set", _any_leaves),
    ),
    Case(
        "entry-misaligned",
        "a block's physical address is not aligned",
        "PGT-2",
        _broken_rule("the output address is not aligned", _blocks),
    ),
    Case("entry-no-page", "an entry of the lowest level is not a page", "PGT-2", _lowest("no-page")),
    Case(
        "entry-group-of-no-size",
        "a page belongs to a contiguous group of an undefined size",
        "PGT-2",
        _lowest("group-of-no-size"),
    ),
    Case(
        "entry-group-broken",
        "one entry of a contiguous group has lost the hint",
        "PGT-2",
        changed(_grouped, lambda live, place: place.entry & ~live.tables.contiguous),
    ),
    Case("pointer-accessed", "an entry that points to a table has bits of a mapping", "PGT-2", _pointer("accessed")),
    Case(
        "pointer-reserved-bits",
        "an entry that points to a table has reserved bits set",
        "PGT-2",
        _pointer("memory-type"),
    ),
)
_IMAGE = memory(
    "kernel image",
    Case("image-not-executable", "the kernel's code cannot be executed", "XCK-1", _made("not-executable", _code)),
    Case("image-writable", "the kernel's constants are writable", "XCK-1", _made("writable", _constants)),
    Case("image-code-writable", "the kernel's code is writable", "LIN-2 XCK-1", _made("writable", _code)),
    Case("image-data-gone", "a mapping of the kernel's data is gone", "XCK-1", gone(_data)),
)
_OTHER_MAPPINGS = memory(
    "other mappings",
    Case("other-mapping-gone", "a mapping of fixmap, PCI I/O or the like is gone", "XCK-1", gone(_other)),
)
CORRUPTIONS = (*_TABLES, *_IMAGE, *_OTHER_MAPPINGS)
