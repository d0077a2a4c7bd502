# SPDX-License-Identifier: GPL-2.0-or-later
"""Corruptions of any page-table entry."""

from __future__ import annotations

from collections.abc import Callable

from harness.selftest.entries import Place
from harness.selftest.live import Live
from harness.units import AddrRange

#: returns an entry; raises Inapplicable if there is none
Find = Callable[[Live], Place]
#: performs a corruption and returns where
Stroke = Callable[[Live], str]


def gone(find: Find) -> Stroke:
    """Clear the entry."""

    def apply(live: Live) -> str:
        place = find(live)
        live.put(place, 0)
        return str(place)

    return apply


def table_gone(find: Find) -> Stroke:
    """Unlink the table of the entry."""

    def apply(live: Live) -> str:
        place = live.path(find(live).range.start)[-2]
        live.put(place, 0)
        return str(place)

    return apply


def swapped(find: Find) -> Stroke:
    """Swap the mapping with the next one."""

    def apply(live: Live) -> str:
        one = find(live)
        other = live.leaf(one.range.end)
        live.put(one, other.entry)
        live.put(other, one.entry)
        return f"{one} and the next one"

    return apply


def first_below(live: Live, place: Place) -> Place:
    """The first entry of a hypothetical table at ``place``: only for making entries, not for writing them."""
    level = live.tables.levels[place.depth + 1]
    return Place(place.depth + 1, level, 0, 0, AddrRange.sized(place.range.start, level.entry_span), 0)
