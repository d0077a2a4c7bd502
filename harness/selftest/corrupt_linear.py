# SPDX-License-Identifier: GPL-2.0-or-later
"""Corruptions of the linear map."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from harness.check.code import may_split
from harness.check.linear_invariants import transient_attributes
from harness.check.witnesses import clip
from harness.selftest.corruption import MemoryCorruption, memory
from harness.selftest.entries import Place, is_leaf
from harness.selftest.live import Live
from harness.selftest.scene import Inapplicable, observed
from harness.selftest.strokes import first_below, gone, swapped, table_gone
from harness.state import HostMapping
from harness.units import AddrRange

TARGET = "linear map"


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
    arch, found = live.scene.evidence.layout.machine.arch, False
    for node in live.scene.evidence.layout.machine.node_ranges():
        for part, leaf in live.view.runs(node):
            if arch.writable_word in leaf.attrs and arch.executable_word not in leaf.attrs:
                found = True
                yield live.leaf(_middle(live.linear(part)))
    if not found:
        raise Inapplicable("no boot memory is writable")


def removed(live: Live) -> Place:
    """The empty entry that mapped removed memory."""
    return live.gap(live.linear(live.scene.removed()).start)


def _middle(piece: AddrRange) -> int:
    return piece.start + piece.size // 2


def _stale_leaf(live: Live) -> str:
    place = removed(live)
    live.put(place, live.leaf_entry(hot(live), place, live.scene.removed().start))
    return str(place)


def _stale_table(live: Live) -> str:
    """A whole table as it was before the memory was removed."""
    place, model = removed(live), hot(live)
    if live.is_lowest(place):
        raise Inapplicable("the tables of removed memory are shared with other memory")
    child = first_below(live, place)
    entry = live.leaf_entry(model, child, live.view.kernel.physical(place.range).start)
    live.put(place, live.table_entry(live.new_table(_filled(live, child, entry))))
    return str(place)


def _wrong_frame(live: Live) -> str:
    place = hot(live)
    live.put(place, live.leading_to(place.entry, live.physical(place) + place.range.size))
    return str(place)


def _boot_alias(live: Live) -> str:
    place, other = hot(live), _boot(live)
    live.put(place, live.leading_to(place.entry, live.physical(other) // place.range.size * place.range.size))
    return str(place)


def _outside(live: Live) -> str:
    place = hot(live)
    live.put(place, live.leading_to(place.entry, live.nowhere))
    return str(place)


def attribute(name: str, find: Callable[[Live], Place]) -> Callable[[Live], str]:
    """Change one attribute of a mapping; inapplicable if the architecture lacks it, or it can change at any time."""

    def apply(live: Live) -> str:
        change = live.bits.leaf.get(name)
        arch = live.scene.evidence.layout.machine.arch
        if change is None:
            raise Inapplicable(f"{arch.name} lacks this attribute")
        place = find(live)
        after = change.of(place.entry)
        words = frozenset(live.tables.words(place.entry)) ^ frozenset(live.tables.words(after))
        if words and words <= transient_attributes(live.scene.evidence.layout):
            raise Inapplicable("this kernel removes it from free pages (debug_pagealloc)")
        if not words:
            raise Inapplicable("the mapping is already like that, or the difference is not observable")
        live.put(place, after)
        return str(place)

    return apply


def _group_turned(live: Live) -> str:
    """Toggle the contiguous hint of a whole group."""
    place = hot(live)
    group = _require_group(live, place)
    first = live.leaf(place.range.start // (group * place.range.size) * group * place.range.size)
    for number in range(group):
        entry = live.leaf(first.range.start + number * first.range.size)
        live.put(entry, entry.entry ^ live.tables.contiguous)
    return f"{first} and the {group - 1} after it"


def _one_of_a_group(live: Live) -> str:
    """Make one entry of a group differ from the others in the hint."""
    place = hot(live)
    _require_group(live, place)
    live.put(place, place.entry ^ live.tables.contiguous)
    return str(place)


def _require_group(live: Live, place: Place) -> int:
    if not place.level.group or live.tables.napot:
        name = live.scene.evidence.layout.machine.arch.name
        raise Inapplicable(f"{name} has no contiguous hint in a {place.level.name}")
    return place.level.group


def _split(find: Callable[[Live], Place]) -> Callable[[Live], str]:
    """Split a block into a table of equivalent smaller mappings."""

    def apply(live: Live) -> str:
        place = find(live)
        if live.is_lowest(place):
            raise Inapplicable("this kernel maps memory by single pages")
        child = first_below(live, place)
        entry = live.leaf_entry(place, child, live.physical(place))
        live.put(place, live.table_entry(live.new_table(_filled(live, child, entry))))
        return str(place)

    return apply


def _filled(live: Live, child: Place, entry: int) -> list[int]:
    """All mappings of a table at the level of ``child``, starting with ``entry``."""
    return [entry + number * live.tables.step(child.level) for number in range(child.level.entries)]


def _merged(ranges: Callable[[Live], Iterator[AddrRange]]) -> Callable[[Live], str]:
    """Merge a table that maps one uniform range into an equivalent block."""

    def apply(live: Live) -> str:
        for piece in ranges(live):
            place = _even_table(live, live.linear(piece))
            if place is not None:
                first = live.leaf(place.range.start)
                live.put(place, live.leaf_entry(first, place, live.physical(first)))
                return str(place)
        raise Inapplicable("no table maps a uniform range, or this kernel already uses the largest mappings")

    return apply


def _even_table(live: Live, piece: AddrRange) -> Place | None:
    """The entry of a table whose mappings form one run and could be a block."""
    arch = live.scene.evidence.layout.machine.arch
    for leaf in clip(live.view.leaves, piece):
        assert isinstance(leaf, HostMapping)
        if arch.writable_word not in leaf.attrs:
            continue
        path = live.path(leaf.range.start)
        if len(path) < 2 or not path[-2].level.leaves:
            continue
        span = path[-2].range.size
        whole = leaf.range.align_inward(span)
        if whole and (leaf.physical + whole.start - leaf.range.start) % span == 0:
            place = live.path(whole.start)[-2]
            if is_leaf(live.tables, live.path(whole.start)[-1]):
                return place
    return None


def _hot_pieces(live: Live) -> Iterator[AddrRange]:
    yield live.scene.online()
    yield from (piece.range for piece in live.scene.evidence.expected.linear)


def _boot_pieces(live: Live) -> Iterator[AddrRange]:
    yield from live.scene.evidence.layout.machine.node_ranges()


#: attribute -> its description, and the invariants besides LIN-2 and XCK-1 that see it
_ATTRIBUTES: dict[str, tuple[str, tuple[str, ...]]] = {
    "read-only": ("hot-added memory is read-only", ()),
    "executable": ("hot-added memory is writable and executable", ()),
    "uncached": ("hot-added memory is mapped uncached", ()),
    "device-memory": ("hot-added memory is mapped as device memory", ()),
    "untagged": ("hot-added memory is mapped without memory tags", ()),
    "unknown-memory-type": ("a mapping has a memory type that the kernel does not use", ("PGT-2",)),
    "not-accessed": ("a mapping has lost its access flag", ()),
    "not-dirty": ("a mapping has lost its dirty flag", ()),
    "other-address-space": ("a mapping is global unlike others, or the reverse", ()),
    "not-shareable": ("a mapping is not shareable", ()),
    "user-executable": ("user mode may execute hot-added memory", ()),
    "user-accessible": ("user mode has access to hot-added memory", ("PGT-2",)),
    "guarded": ("a mapping is guarded for branch targets unlike others, or the reverse", ()),
    "software-bits": ("a mapping has other software bits", ()),
    "write-only": ("a mapping can be written but not read", ("PGT-2",)),
    "not-valid": ("a mapping is no longer valid, but present", ()),
}

CORRUPTIONS: tuple[MemoryCorruption, ...] = (
    memory("linear-hot-gone", TARGET, "a mapping of hot-added memory is gone", "LIN-1", "XCK-1", apply=gone(hot)),
    memory("linear-boot-gone", TARGET, "a mapping of boot memory is gone", "LIN-1", "XCK-1", apply=gone(_boot)),
    memory("linear-table-gone", TARGET, "a table of hot memory is unlinked", "LIN-1", "XCK-1", apply=table_gone(hot)),
    memory(
        "linear-stale-mapping",
        TARGET,
        "removed memory is mapped again",
        "LIN-1",
        "PGT-2",
        "XCK-1",
        apply=_stale_leaf,
    ),
    memory(
        "linear-stale-table",
        TARGET,
        "a whole table of removed memory is linked again",
        "LIN-1",
        "PGT-1",
        "PGT-2",
        "XCK-1",
        apply=_stale_table,
    ),
    memory("linear-wrong-frame", TARGET, "a mapping points to its neighbour's frame", "LIN-1", apply=_wrong_frame),
    memory(
        "linear-boot-alias", TARGET, "a mapping of hot-added memory points to boot memory", "LIN-1", apply=_boot_alias
    ),
    memory("linear-swapped", TARGET, "two mappings point to each other's frames", "LIN-1", apply=swapped(hot)),
    memory("linear-outside", TARGET, "a mapping points outside of memory", "LIN-1", "PGT-2", apply=_outside),
    *(
        memory(f"linear-{name}", TARGET, summary, "LIN-2", *also, "XCK-1", apply=attribute(name, hot))
        for name, (summary, also) in _ATTRIBUTES.items()
    ),
    memory(
        "linear-boot-executable",
        TARGET,
        "boot memory is writable and executable",
        "LIN-2",
        "XCK-1",
        apply=attribute("executable", _boot),
    ),
    memory(
        "linear-group-broken",
        TARGET,
        "one entry differs from its neighbours in the contiguous hint",
        "LIN-3",
        "PGT-2",
        "XCK-1",
        apply=_one_of_a_group,
    ),
    memory(
        "linear-group-turned",
        TARGET,
        "a group of entries has the contiguous hint where it must not, or lacks it where it must have it",
        "LIN-3",
        "XCK-1",
        apply=_group_turned,
    ),
    memory("linear-hot-split", TARGET, "a block of hot-added memory is split", "LIN-3", "XCK-1", apply=_split(hot)),
    memory("linear-boot-split", TARGET, "a block of boot memory is split", "LIN-3", "XCK-1", apply=_split(_boot_block)),
    memory(
        "linear-hot-merged",
        TARGET,
        "pages of hot-added memory became a block",
        "LIN-3",
        "XCK-1",
        apply=_merged(_hot_pieces),
    ),
    memory(
        "linear-boot-merged",
        TARGET,
        "pages of boot memory became a block",
        "LIN-3",
        "XCK-1",
        apply=_merged(_boot_pieces),
    ),
)
