# SPDX-License-Identifier: GPL-2.0-or-later
"""Corruptions of any page-table entry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from harness.check.linear_invariants import transient_attributes
from harness.selftest.corruption import Case, Stroke
from harness.selftest.entries import Place
from harness.selftest.live import Live
from harness.selftest.scene import Inapplicable
from harness.units import AddrRange, align_down

#: returns an entry; raises Inapplicable if there is none
Find = Callable[[Live], Place]


def changed(find: Find, entry: Callable[[Live, Place], int]) -> Stroke:
    """Replace the content of the entry by that which ``entry`` returns."""

    def apply(live: Live) -> str:
        place = find(live)
        return live.put(place, entry(live, place))

    return apply


def gone(find: Find) -> Stroke:
    """Clear the entry."""
    return changed(find, lambda live, place: 0)


def table_of(find: Find) -> Find:
    """The entry that points to the table of the entry."""
    return lambda live: live.path(find(live).range.start)[-2]


def swapped(find: Find) -> Stroke:
    """Swap the mapping with the next one."""

    def apply(live: Live) -> str:
        one = find(live)
        other = live.leaf(one.range.end)
        live.put(one, other.entry)
        live.put(other, one.entry)
        return f"{one} and the next one"

    return apply


def led_to(find: Find, frames: Callable[[Live, Place], int]) -> Stroke:
    """Make a mapping point to other frames, aligned to its size."""
    return changed(
        find, lambda live, place: live.leading_to(place.entry, align_down(frames(live, place), place.range.size))
    )


def nowhere(live: Live, place: Place) -> int:
    """Frames where there is no memory."""
    return live.nowhere


def attribute(name: str, find: Find) -> Stroke:
    """Change one attribute of a mapping; inapplicable if the architecture lacks it, or it can change at any time."""

    def entry(live: Live, place: Place) -> int:
        after = live.bits.leaf[name].of(place.entry)
        words = frozenset(live.tables.words(place.entry)) ^ frozenset(live.tables.words(after))
        if words and words <= transient_attributes(live.scene.evidence.layout):
            raise Inapplicable("this kernel removes it from free pages (debug_pagealloc)")
        if not words:
            raise Inapplicable("the mapping is already like that, or the difference is not observable")
        return after

    def apply(live: Live) -> str:
        if name not in live.bits.leaf:
            raise Inapplicable(f"{live.arch.name} lacks this attribute")
        return changed(find, entry)(live)

    return apply


def attributes(prefix: str, find: Find, rows: Mapping[str, tuple[str, str]]) -> Iterator[Case[Stroke]]:
    """Corruptions called ``PREFIX-ATTRIBUTE``; ``rows`` has summary and invariants by attribute."""
    for name, (summary, broken) in rows.items():
        yield Case(f"{prefix}-{name}", summary, broken, attribute(name, find))


def first_below(live: Live, place: Place) -> Place:
    """The first entry of a hypothetical table at ``place``: only for making entries, not for writing them."""
    level = live.tables.levels[place.depth + 1]
    return Place(place.depth + 1, level, 0, 0, AddrRange.sized(place.range.start, level.entry_span), 0)
