# SPDX-License-Identifier: GPL-2.0-or-later
"""Corruptions of the memory map in vmemmap."""

from __future__ import annotations

from harness.check.witnesses import memmap_of
from harness.selftest.corruption import Case, memory
from harness.selftest.entries import Place
from harness.selftest.live import Live
from harness.selftest.scene import Inapplicable
from harness.selftest.strokes import attributes, changed, first_below, gone, led_to, nowhere, swapped, table_of
from harness.units import AddrRange, align_down


def _hot(live: Live) -> Place:
    """A mapping of online, hot-added memory's memmap."""
    return live.leaf(live.memmap(live.scene.online()).start)


def _boot(live: Live) -> Place:
    """A mapping of boot memory's memmap."""
    return live.leaf(live.memmap(live.scene.block_range(live.scene.block("online", hot=False))).start)


def _hosted(live: Live) -> Place:
    """A mapping of a memmap that lies on its own device."""
    piece, _ = live.scene.self_hosted()
    return live.leaf(live.memmap(piece.range).start)


def removed_memmap(live: Live) -> Place:
    """The empty entry that mapped removed memory's memmap."""
    return live.gap(live.memmap(live.scene.removed()).start)


def _partial_memmap(live: Live) -> AddrRange:
    """The memmap of the call that added a partial section."""
    section, layout = live.scene.partial_section(), live.scene.evidence.layout
    present = section.subsections.bit_length() * live.arch.subsection_size
    for piece in live.scene.evidence.expected.linear:
        if piece.range.end == section.number * layout.paging.section_size + present:
            return memmap_of(piece, live.view.kernel)
    raise Inapplicable("no added range ends inside a section")


def _partial_end(live: Live) -> Place:
    return live.leaf(_partial_memmap(live).end - 1)


def _beyond_partial(live: Live) -> Place:
    return live.gap(_partial_memmap(live).end)


def _longer(live: Live, place: Place) -> int:
    return live.leaf_entry(_partial_end(live), place, _frames(live, place))


def _frames(live: Live, place: Place) -> int:
    """Frames of boot memory for a mapping: an unused page, or the block around one."""
    return align_down(live.spare(), place.range.size)


def _stale_leaf(live: Live, place: Place) -> int:
    return live.leaf_entry(_hot(live), place, _frames(live, place))


def _stale_table(live: Live, place: Place) -> int:
    """A table with one page of removed memory's memmap."""
    if live.is_lowest(place):
        raise Inapplicable("the tables of removed memory's memmap are shared with other memory")
    entry = live.leaf_entry(_hot(live), first_below(live, place), live.spare())
    return live.table_entry(live.new_table([entry]))


def _unused(live: Live) -> Place:
    """The entry for memmap of sections that never existed, far from all others."""
    window = live.view.kernel.vmemmap_window
    place = live.path(window.start + window.size // 2)[-1]
    if place.entry:
        raise Inapplicable("the middle of vmemmap is in use")
    return place


def _never_present(live: Live, place: Place) -> int:
    # Add tables down to a level that can have a mapping.
    model, target = _hot(live), place
    while target.depth < model.depth:
        target = first_below(live, target)
    entry = live.leaf_entry(model, target, _frames(live, target))
    for _ in range(target.depth - place.depth):
        entry = live.table_entry(live.new_table([entry]))
    return entry


def _spare(live: Live, place: Place) -> int:
    return live.spare()


def _neighbour(live: Live, place: Place) -> int:
    """The frames of the next mapping."""
    return live.physical(live.leaf(place.range.end))


def _shared(live: Live) -> str:
    """Make two sections share one memmap."""
    one, other = _hot(live), live.leaf(live.memmap(live.scene.offline()).start)
    if one.level is not other.level:
        raise Inapplicable("the two sections' memmaps are mapped at different levels")
    return f"{live.put(one, other.entry)} and that of virtual {other.range}"


def _folded(live: Live) -> Place:
    """A page of a folded memmap that is mapped to the shared frame."""
    for piece in live.scene.evidence.expected.linear:
        if piece.folded:
            return live.leaf(memmap_of(piece, live.view.kernel).start + 3 * live.tables.page_size)
    raise Inapplicable("this kernel folds no memmap")


CORRUPTIONS = memory(
    "vmemmap",
    Case("vmemmap-hot-gone", "memmap of hot-added memory is not mapped", "VMM-1 XCK-1", gone(_hot)),
    Case("vmemmap-boot-gone", "memmap of boot memory is not mapped", "VMM-1 XCK-1", gone(_boot)),
    Case("vmemmap-table-gone", "a table of memmap is unlinked", "VMM-1 XCK-1", gone(table_of(_hot))),
    Case("vmemmap-partial-short", "the memmap of a partial section ends too early", "VMM-1 XCK-1", gone(_partial_end)),
    Case(
        "vmemmap-partial-long",
        "the memmap of a partial section extends beyond its end",
        "VMM-1 XCK-1",
        changed(_beyond_partial, _longer),
    ),
    Case(
        "vmemmap-stale-mapping",
        "removed memory has memmap again",
        "VMM-1 VMM-2 XCK-1",
        changed(removed_memmap, _stale_leaf),
    ),
    Case(
        "vmemmap-stale-table",
        "a table with one page of removed memory's memmap",
        "VMM-1 VMM-2 PGT-1 XCK-1",
        changed(removed_memmap, _stale_table),
    ),
    Case(
        "vmemmap-never-present", "memory that never existed has memmap", "VMM-1 XCK-1", changed(_unused, _never_present)
    ),
    Case(
        "vmemmap-not-on-device",
        "memmap that must lie on its own device lies in boot memory",
        "VMM-1",
        led_to(_hosted, _spare),
    ),
    Case("vmemmap-on-device-swapped", "two parts of memmap are swapped", "VMM-1", swapped(_hosted)),
    Case(
        "vmemmap-on-device-shared",
        "two parts of memmap on the device share their frames",
        "VMM-1",
        led_to(_hosted, _neighbour),
    ),
    Case(
        "vmemmap-in-itself",
        "memmap lies in the memory that it describes, which is not online yet",
        "VMM-1",
        led_to(_hot, lambda live, _: live.scene.online().start),
    ),
    Case(
        "vmemmap-in-offline",
        "memmap lies in memory that is offline",
        "VMM-1",
        led_to(_hot, lambda live, _: live.scene.offline().start),
    ),
    Case("vmemmap-boot-moved", "boot memory's memmap has moved", "VMM-1", led_to(_boot, _spare)),
    Case("vmemmap-shared", "two sections share one memmap", "VMM-1", _shared),
    Case("vmemmap-outside", "memmap lies outside of memory", "VMM-1 PGT-2", led_to(_hot, nowhere)),
    Case(
        "vmemmap-in-removed",
        "memmap lies in removed memory",
        "VMM-1 PGT-2",
        led_to(_hot, lambda live, _: live.scene.removed().start),
    ),
    Case("vmemmap-badly-folded", "a page of a folded memmap has its own frame", "VMM-1", led_to(_folded, _spare)),
    *attributes(
        "vmemmap",
        _hot,
        {
            "read-only": ("memmap is read-only", "VMM-1 XCK-1"),
            "executable": ("memmap is writable and executable", "VMM-1 LIN-2 XCK-1"),
            "uncached": ("memmap is mapped uncached", "VMM-1 XCK-1"),
            "not-accessed": ("a mapping of memmap has lost its access flag", "VMM-1 XCK-1"),
            "user-accessible": ("user mode has access to memmap", "VMM-1 PGT-2 XCK-1"),
        },
    ),
)
