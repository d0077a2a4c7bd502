# SPDX-License-Identifier: GPL-2.0-or-later
"""The page-table pages that an architecture keeps although they map nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from harness.arch.pagetable import TableLevel
from harness.arch.table_removal import TableRules
from harness.units import AddrRange, align_down

#: a table page: its level's name and the virtual range of its entries
Slot = tuple[str, AddrRange]


def kept_tables(
    rules: TableRules, levels: Sequence[TableLevel], windows: Iterable[AddrRange], once: Sequence[AddrRange]
) -> frozenset[Slot]:
    """Tables that are never freed: ``levels`` from the root down, ``windows`` of linear map and vmemmap.

    ``once`` are the virtual ranges that were mapped at any time since boot, including boot's. On an architecture that
    keeps tables that extend beyond a window, such a table exists once anything in it was mapped: a larger entry cannot
    have been used instead, as it would extend beyond the window, too.
    """
    kept: set[Slot] = set()
    for window in windows:
        if rules.preallocates:
            kept.update(_top(levels, window))
        if rules.keeps_edges:
            kept.update(slot for slot in _edges(levels, window) if any(slot[1].overlaps(piece) for piece in once))
    return frozenset(kept)


def _top(levels: Sequence[TableLevel], window: AddrRange) -> Iterator[Slot]:
    root, below = levels[0], levels[1]
    for start in range(align_down(window.start, root.entry_span), window.end, root.entry_span):
        yield below.name, AddrRange.sized(start, root.entry_span)


def _edges(levels: Sequence[TableLevel], window: AddrRange) -> Iterator[Slot]:
    for level in levels[1:]:
        for edge in (window.start, window.end):
            if edge % level.table_span:
                yield level.name, AddrRange.sized(align_down(edge, level.table_span), level.table_span)
