# SPDX-License-Identifier: GPL-2.0-or-later
"""Corruptions of the memory map in vmemmap."""

from __future__ import annotations

from collections.abc import Callable

from harness.check.witnesses import memmap_of
from harness.selftest.corrupt_linear import attribute
from harness.selftest.corruption import MemoryCorruption, memory
from harness.selftest.entries import Place
from harness.selftest.live import Live
from harness.selftest.scene import Inapplicable
from harness.selftest.strokes import first_below, gone, swapped, table_gone
from harness.units import AddrRange, align_down

TARGET = "vmemmap"


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


def _partial(live: Live) -> AddrRange:
    """The present part of a partial section."""
    section, layout = live.scene.partial_section(), live.scene.evidence.layout
    size = layout.machine.arch.subsection_size
    return AddrRange.sized(section.number * layout.paging.section_size, section.subsections.bit_length() * size)


def _partial_memmap(live: Live) -> AddrRange:
    """The memmap of the call that added a partial section."""
    end = _partial(live).end
    for piece in live.scene.evidence.expected.linear:
        if piece.range.end == end:
            return memmap_of(piece, live.view.kernel)
    raise Inapplicable("no added range ends inside a section")


def _partial_end(live: Live) -> Place:
    return live.leaf(_partial_memmap(live).end - 1)


def _beyond_partial(live: Live) -> str:
    end = _partial_memmap(live).end
    place, model = live.gap(end), live.leaf(end - 1)
    live.put(place, live.leaf_entry(model, place, _frames(live, place)))
    return str(place)


def _frames(live: Live, place: Place) -> int:
    """Frames of boot memory for a mapping: an unused page, or the block around one."""
    return align_down(live.spare(), place.range.size)


def _stale_leaf(live: Live) -> str:
    place = live.gap(live.memmap(live.scene.removed()).start)
    live.put(place, live.leaf_entry(_hot(live), place, _frames(live, place)))
    return str(place)


def _stale_table(live: Live) -> str:
    """A table with one page of removed memory's memmap."""
    place = live.gap(live.memmap(live.scene.removed()).start)
    if live.is_lowest(place):
        raise Inapplicable("the tables of removed memory's memmap are shared with other memory")
    entry = live.leaf_entry(_hot(live), first_below(live, place), live.spare())
    live.put(place, live.table_entry(live.new_table([entry])))
    return str(place)


def _never_present(live: Live) -> str:
    """Map memmap of sections that never existed, far from all others."""
    window = live.view.kernel.vmemmap_window
    path = live.path(window.start + window.size // 2)
    place = path[-1]
    if place.entry:
        raise Inapplicable("the middle of vmemmap is in use")
    # Add tables down to a level that can have a mapping.
    model, target = _hot(live), place
    while target.depth < model.depth:
        target = first_below(live, target)
    entry = live.leaf_entry(model, target, _frames(live, target))
    for _ in range(target.depth - place.depth):
        entry = live.table_entry(live.new_table([entry]))
    live.put(place, entry)
    return str(place)


def _into(find: Callable[[Live], Place], where: Callable[[Live], int]) -> Callable[[Live], str]:
    """Make a mapping point to other frames."""

    def apply(live: Live) -> str:
        place = find(live)
        live.put(place, live.leading_to(place.entry, align_down(where(live), place.range.size)))
        return str(place)

    return apply


def _neighbour(find: Callable[[Live], Place]) -> Callable[[Live], int]:
    """The frames of another mapping."""

    def where(live: Live) -> int:
        return live.physical(live.leaf(find(live).range.end))

    return where


def _shared(live: Live) -> str:
    """Make two sections share one memmap."""
    one, other = _hot(live), live.leaf(live.memmap(live.scene.offline()).start)
    if one.level is not other.level:
        raise Inapplicable("the two sections' memmaps are mapped at different levels")
    live.put(one, other.entry)
    return f"{one} and that of virtual {other.range}"


def _badly_folded(live: Live) -> str:
    """Give a page of a folded memmap its own frame instead of the shared one."""
    for piece in live.scene.evidence.expected.linear:
        if piece.folded:
            place = live.leaf(memmap_of(piece, live.view.kernel).start + 3 * live.tables.page_size)
            live.put(place, live.leading_to(place.entry, live.spare()))
            return str(place)
    raise Inapplicable("this kernel folds no memmap")


_ATTRIBUTES: dict[str, tuple[str, tuple[str, ...]]] = {
    "read-only": ("memmap is read-only", ()),
    "executable": ("memmap is writable and executable", ("LIN-2",)),
    "uncached": ("memmap is mapped uncached", ()),
    "not-accessed": ("a mapping of memmap has lost its access flag", ()),
    "user-accessible": ("user mode has access to memmap", ("PGT-2",)),
}

CORRUPTIONS: tuple[MemoryCorruption, ...] = (
    memory("vmemmap-hot-gone", TARGET, "memmap of hot-added memory is not mapped", "VMM-1", "XCK-1", apply=gone(_hot)),
    memory("vmemmap-boot-gone", TARGET, "memmap of boot memory is not mapped", "VMM-1", "XCK-1", apply=gone(_boot)),
    memory("vmemmap-table-gone", TARGET, "a table of memmap is unlinked", "VMM-1", "XCK-1", apply=table_gone(_hot)),
    memory(
        "vmemmap-partial-short",
        TARGET,
        "the memmap of a partial section ends too early",
        "VMM-1",
        "XCK-1",
        apply=gone(_partial_end),
    ),
    memory(
        "vmemmap-partial-long",
        TARGET,
        "the memmap of a partial section extends beyond its end",
        "VMM-1",
        "XCK-1",
        apply=_beyond_partial,
    ),
    memory(
        "vmemmap-stale-mapping",
        TARGET,
        "removed memory has memmap again",
        "VMM-1",
        "VMM-2",
        "XCK-1",
        apply=_stale_leaf,
    ),
    memory(
        "vmemmap-stale-table",
        TARGET,
        "a table with one page of removed memory's memmap",
        "VMM-1",
        "VMM-2",
        "PGT-1",
        "XCK-1",
        apply=_stale_table,
    ),
    memory(
        "vmemmap-never-present", TARGET, "memory that never existed has memmap", "VMM-1", "XCK-1", apply=_never_present
    ),
    memory(
        "vmemmap-not-on-device",
        TARGET,
        "memmap that must lie on its own device lies in boot memory",
        "VMM-1",
        apply=_into(_hosted, Live.spare),
    ),
    memory("vmemmap-on-device-swapped", TARGET, "two parts of memmap are swapped", "VMM-1", apply=swapped(_hosted)),
    memory(
        "vmemmap-on-device-shared",
        TARGET,
        "two parts of memmap on the device share their frames",
        "VMM-1",
        apply=_into(_hosted, _neighbour(_hosted)),
    ),
    memory(
        "vmemmap-in-itself",
        TARGET,
        "memmap lies in the memory that it describes, which is not online yet",
        "VMM-1",
        apply=_into(_hot, lambda live: live.scene.online().start),
    ),
    memory(
        "vmemmap-in-offline",
        TARGET,
        "memmap lies in memory that is offline",
        "VMM-1",
        apply=_into(_hot, lambda live: live.scene.offline().start),
    ),
    memory("vmemmap-boot-moved", TARGET, "boot memory's memmap has moved", "VMM-1", apply=_into(_boot, Live.spare)),
    memory("vmemmap-shared", TARGET, "two sections share one memmap", "VMM-1", apply=_shared),
    memory(
        "vmemmap-outside",
        TARGET,
        "memmap lies outside of memory",
        "VMM-1",
        "PGT-2",
        apply=_into(_hot, lambda live: live.nowhere),
    ),
    memory(
        "vmemmap-in-removed",
        TARGET,
        "memmap lies in removed memory",
        "VMM-1",
        "PGT-2",
        apply=_into(_hot, lambda live: live.scene.removed().start),
    ),
    memory("vmemmap-badly-folded", TARGET, "a page of a folded memmap has its own frame", "VMM-1", apply=_badly_folded),
    *(
        memory(f"vmemmap-{name}", TARGET, summary, "VMM-1", *also, "XCK-1", apply=attribute(name, _hot))
        for name, (summary, also) in _ATTRIBUTES.items()
    ),
)
