# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be done to any entry of the page tables, wherever it is."""

from __future__ import annotations

from collections.abc import Callable

from harness.selftest.entries import Place
from harness.selftest.live import Live
from harness.units import AddrRange

#: finds an entry; raises Inapplicable if there is none
Find = Callable[[Live], Place]
#: does something and says where
Stroke = Callable[[Live], str]


def gone(find: Find) -> Stroke:
    """The entry becomes empty."""

    def apply(live: Live) -> str:
        place = find(live)
        live.put(place, 0)
        return str(place)

    return apply


def table_gone(find: Find) -> Stroke:
    """The table that the entry is in is unlinked."""

    def apply(live: Live) -> str:
        place = live.path(find(live).range.start)[-2]
        live.put(place, 0)
        return str(place)

    return apply


def swapped(find: Find) -> Stroke:
    """The mapping and the next one change places."""

    def apply(live: Live) -> str:
        one = find(live)
        other = live.leaf(one.range.end)
        live.put(one, other.entry)
        live.put(other, one.entry)
        return f"{one} and the next one"

    return apply


def first_below(live: Live, place: Place) -> Place:
    """What would be the first entry of a table that ``place`` led to: a place to make entries for, not to put them."""
    level = live.tables.levels[place.depth + 1]
    return Place(place.depth + 1, level, 0, 0, AddrRange.sized(place.range.start, level.entry_span), 0)
