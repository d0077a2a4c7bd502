# SPDX-License-Identifier: GPL-2.0-or-later
"""Corruptions of the linear map."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from harness.check.code import may_split
from harness.check.witnesses import clip
from harness.selftest.corruption import Case, Stroke, memory
from harness.selftest.entries import Place, is_leaf
from harness.selftest.live import Live
from harness.selftest.scene import Inapplicable, observed
from harness.selftest.strokes import (
    attribute,
    attributes,
    changed,
    first_below,
    gone,
    led_to,
    nowhere,
    swapped,
    table_of,
)
from harness.state import HostMapping
from harness.units import AddrRange


def hot(live: Live) -> Place:
    """A mapping of online, hot-added memory."""
    return live.leaf(_middle(live.linear(live.scene.online())))


def _boot(live: Live) -> Place:
    """An ordinary mapping of boot memory: writable, not executable."""
    return next(_boot_leaves(live))


def _boot_block(live: Live) -> Place:
    """The same for a mapping above the lowest level that the kernel does not split."""
    evidence = live.scene.evidence
    if may_split(evidence.layout, evidence.expected, observed(evidence.views.walk)):
        raise Inapplicable("the kernel may have split boot memory's mappings")
    for place in _boot_leaves(live):
        if not live.is_lowest(place):
            return place
    raise Inapplicable("this kernel maps boot memory by single pages")


def _boot_leaves(live: Live) -> Iterator[Place]:
    """One ordinary mapping of each run of boot memory. Raises Inapplicable if there is none."""
    found = False
    for node in _boot_pieces(live):
        for part, leaf in live.view.runs(node):
            if live.arch.writable_word in leaf.attrs and live.arch.executable_word not in leaf.attrs:
                found = True
                yield live.leaf(_middle(live.linear(part)))
    if not found:
        raise Inapplicable("no boot memory is writable")


def removed(live: Live) -> Place:
    """The empty entry that mapped removed memory."""
    return live.gap(live.linear(live.scene.removed()).start)


def _middle(piece: AddrRange) -> int:
    return piece.start + piece.size // 2


def _stale_leaf(live: Live, place: Place) -> int:
    return live.leaf_entry(hot(live), place, live.scene.removed().start)


def _stale_table(live: Live, place: Place) -> int:
    """A whole table as it was before the memory was removed."""
    model = hot(live)
    if live.is_lowest(place):
        raise Inapplicable("the tables of removed memory are shared with other memory")
    return _full_table(live, place, model, live.view.kernel.physical(place.range).start)


def _split(live: Live, place: Place) -> int:
    """Split a block into a table of equivalent smaller mappings."""
    if live.is_lowest(place):
        raise Inapplicable("this kernel maps memory by single pages")
    return _full_table(live, place, place, live.physical(place))


def _full_table(live: Live, place: Place, model: Place, physical: int) -> int:
    """An entry for ``place`` that points to a new table full of mappings like ``model``, from ``physical`` on."""
    child = first_below(live, place)
    entry, step = live.leaf_entry(model, child, physical), live.tables.step(child.level)
    return live.table_entry(live.new_table([entry + number * step for number in range(child.level.entries)]))


def _next_frame(live: Live, place: Place) -> int:
    return live.physical(place) + place.range.size


def _boot_frame(live: Live, place: Place) -> int:
    return live.physical(_boot(live))


def _group_turned(live: Live) -> str:
    """Toggle the contiguous hint of a whole group."""
    place = hot(live)
    group = _require_group(live, place)
    first = live.leaf(place.range.start // (group * place.range.size) * group * place.range.size)
    for number in range(group):
        entry = live.leaf(first.range.start + number * first.range.size)
        live.put(entry, entry.entry ^ live.tables.contiguous)
    return f"{first} and the {group - 1} after it"


def _one_of_a_group(live: Live, place: Place) -> int:
    """Make one entry of a group differ from the others in the hint."""
    _require_group(live, place)
    return place.entry ^ live.tables.contiguous


def _require_group(live: Live, place: Place) -> int:
    if not place.level.group or live.tables.napot:
        raise Inapplicable(f"{live.arch.name} has no contiguous hint in a {place.level.name}")
    return place.level.group


def _merged(ranges: Callable[[Live], Iterator[AddrRange]]) -> Stroke:
    """Merge a table that maps one uniform range into an equivalent block."""

    def apply(live: Live) -> str:
        for piece in ranges(live):
            place = _even_table(live, live.linear(piece))
            if place is not None:
                first = live.leaf(place.range.start)
                return live.put(place, live.leaf_entry(first, place, live.physical(first)))
        raise Inapplicable("no table maps a uniform range, or this kernel already uses the largest mappings")

    return apply


def _even_table(live: Live, piece: AddrRange) -> Place | None:
    """The entry of a table whose mappings form one run and could be a block."""
    for leaf in clip(live.walked.mappings, piece):
        assert isinstance(leaf, HostMapping)
        if live.arch.writable_word not in leaf.attrs:
            continue
        path = live.path(leaf.range.start)
        if len(path) < 2 or not path[-2].level.leaves:
            continue
        span = path[-2].range.size
        whole = leaf.range.align_inward(span)
        if whole and (leaf.physical + whole.start - leaf.range.start) % span == 0:
            *_, place, last = live.path(whole.start)
            if is_leaf(live.tables, last):
                return place
    return None


def _hot_pieces(live: Live) -> Iterator[AddrRange]:
    yield live.scene.online()
    yield from (piece.range for piece in live.scene.evidence.expected.linear)


def _boot_pieces(live: Live) -> Iterator[AddrRange]:
    yield from live.scene.evidence.layout.machine.node_ranges()


CORRUPTIONS = memory(
    "linear map",
    Case("linear-hot-gone", "a mapping of hot-added memory is gone", "LIN-1 XCK-1", gone(hot)),
    Case("linear-boot-gone", "a mapping of boot memory is gone", "LIN-1 XCK-1", gone(_boot)),
    Case("linear-table-gone", "a table of hot memory is unlinked", "LIN-1 XCK-1", gone(table_of(hot))),
    Case("linear-stale-mapping", "removed memory is mapped again", "LIN-1 PGT-2 XCK-1", changed(removed, _stale_leaf)),
    Case(
        "linear-stale-table",
        "a whole table of removed memory is linked again",
        "LIN-1 PGT-1 PGT-2 XCK-1",
        changed(removed, _stale_table),
    ),
    Case("linear-wrong-frame", "a mapping points to its neighbour's frame", "LIN-1", led_to(hot, _next_frame)),
    Case("linear-boot-alias", "a mapping of hot-added memory points to boot memory", "LIN-1", led_to(hot, _boot_frame)),
    Case("linear-swapped", "two mappings point to each other's frames", "LIN-1", swapped(hot)),
    Case("linear-outside", "a mapping points outside of memory", "LIN-1 PGT-2", led_to(hot, nowhere)),
    *attributes(
        "linear",
        hot,
        {
            "read-only": ("hot-added memory is read-only", "LIN-2 XCK-1"),
            "executable": ("hot-added memory is writable and executable", "LIN-2 XCK-1"),
            "uncached": ("hot-added memory is mapped uncached", "LIN-2 XCK-1"),
            "device-memory": ("hot-added memory is mapped as device memory", "LIN-2 XCK-1"),
            "untagged": ("hot-added memory is mapped without memory tags", "LIN-2 XCK-1"),
            "unknown-memory-type": (
                "a mapping has a memory type that the kernel does not use",
                "LIN-2 PGT-2 XCK-1",
            ),
            "not-accessed": ("a mapping has lost its access flag", "LIN-2 XCK-1"),
            "not-dirty": ("a mapping has lost its dirty flag", "LIN-2 XCK-1"),
            "other-address-space": ("a mapping is global unlike others, or the reverse", "LIN-2 XCK-1"),
            "not-shareable": ("a mapping is not shareable", "LIN-2 XCK-1"),
            "user-executable": ("user mode may execute hot-added memory", "LIN-2 XCK-1"),
            "user-accessible": ("user mode has access to hot-added memory", "LIN-2 PGT-2 XCK-1"),
            "guarded": ("a mapping is guarded for branch targets unlike others, or the reverse", "LIN-2 XCK-1"),
            "software-bits": ("a mapping has other software bits", "LIN-2 XCK-1"),
            "write-only": ("a mapping can be written but not read", "LIN-2 PGT-2 XCK-1"),
            "not-valid": ("a mapping is no longer valid, but present", "LIN-2 XCK-1"),
        },
    ),
    Case(
        "linear-boot-executable",
        "boot memory is writable and executable",
        "LIN-2 XCK-1",
        attribute("executable", _boot),
    ),
    Case(
        "linear-group-broken",
        "one entry differs from its neighbours in the contiguous hint",
        "LIN-3 PGT-2 XCK-1",
        changed(hot, _one_of_a_group),
    ),
    Case(
        "linear-group-turned",
        "a group of entries has the contiguous hint where it must not, or lacks it where it must have it",
        "LIN-3 XCK-1",
        _group_turned,
    ),
    Case("linear-hot-split", "a block of hot-added memory is split", "LIN-3 XCK-1", changed(hot, _split)),
    Case("linear-boot-split", "a block of boot memory is split", "LIN-3 XCK-1", changed(_boot_block, _split)),
    Case("linear-hot-merged", "pages of hot-added memory became a block", "LIN-3 XCK-1", _merged(_hot_pieces)),
    Case("linear-boot-merged", "pages of boot memory became a block", "LIN-3 XCK-1", _merged(_boot_pieces)),
)
