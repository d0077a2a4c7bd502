# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's page tables, read from the guest's memory: a quick copy while the guest is paused, then the walk.

::

    image = copy_tables(memory, tables)     # with the guest paused
    found = walk(image)                     # any time later
    found.to_state(); found.coalesce(markers)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.arch.pagetable import TableFormat, coalesce
from harness.errors import GuestError
from harness.kmem._copy import Refusal, TableImage, TableRows, copy_tables, physical
from harness.kmem._decode import MAX_FAULTS, REASONS, Decoded, Runs, decode, merge
from harness.state import HostMapping, HostTables, Mapping, NotObserved, TableCount, TableFault, TablePage
from harness.units import AddrRange

__all__ = ["MAX_FAULTS", "MAX_RUNS", "TableImage", "TableRows", "Walk", "copy_tables", "walk"]

#: maximum number of runs, which take 300 MB; the most fragmented kernels (debug_pagealloc, hugetlb vmemmap
#: optimisation) have 7,000
MAX_RUNS = 1 << 18
#: remembered tables, and as many runs: those of a guest with 64 GiB
_ITEMS = 1 << 15
_UNCOUNTED = NotObserved("the page tables were not counted")


@dataclass(frozen=True, slots=True)
class Walk:
    """Decoded page tables: ``runs`` of mappings and ``faults`` in the order of virtual addresses.

    ``levels`` are those of ``image``.
    """

    image: TableImage
    runs: Runs
    levels: tuple[Decoded, ...]
    faults: tuple[TableFault, ...]

    def to_state(self, counted: tuple[frozenset[int], TableCount] | NotObserved = _UNCOUNTED) -> HostTables:
        """The same as plain values; ``counted`` comes from ``harness.kmem.tablecount.count_tables``."""
        if isinstance(counted, NotObserved):
            return HostTables(self.mappings(), self.pages(), self.faults, counted)
        marked, count = counted
        return HostTables(self.mappings(), self.pages(marked), self.faults, count)

    def mappings(self) -> tuple[HostMapping, ...]:
        """The runs, each adjacent both in virtual and in physical addresses."""
        return _mappings(self.image.tables, self.runs)

    def coalesce(self, markers: Sequence[tuple[int, str]]) -> tuple[Mapping, ...]:
        """The runs joined as in ptdump, see ``harness.arch.pagetable.coalesce``."""
        joined = _mappings(self.image.tables, self.runs.joined(physically=False))
        return tuple(coalesce(joined, self.image.tables, markers))

    def pages(self, counted: frozenset[int] | None = None) -> tuple[TablePage, ...]:
        """Every table page; those with the same start address from the root down.

        ``counted`` are the addresses of those that the kernel counts, None if not checked.
        """
        found: list[TablePage] = []
        for level, rows, decoded in zip(self.image.tables.levels, self.image.levels, self.levels, strict=True):
            # The root of both halves spans everything, including the addresses between them.
            span = 1 << 64 if not found and self.image.tables.both_halves else level.table_span
            columns = (rows.addresses.tolist(), rows.starts.tolist(), decoded.used.tolist())
            found += [
                _page(
                    address, level.name, start, start + span, entries, None if counted is None else address in counted
                )
                for address, start, entries in zip(*columns, strict=True)
            ]
        found.sort(key=lambda page: page.range.start)
        return tuple(found)


def walk(image: TableImage, last: Walk | None = None) -> Walk:
    """Decode a copy of page tables; what equals that of an earlier copy, ``last``, is not decoded again.

    Mappings are what ptdump prints: a PTE that is not empty, valid or not, and an entry of a higher level that the
    kernel treats as a block. An invalid entry is a fault, at most ``MAX_FAULTS`` per level. Raises GuestError for
    more than ``MAX_RUNS`` runs.

    A table that is reachable by several paths is a fault, unless all its entries map the same page: KASAN maps its
    zero shadow this way (kasan_populate_early_shadow, mm/kasan/init.c, v6.12). Each further path to it gives one run
    that covers the whole table, with that page as its physical address.
    """
    same = (False,) * len(image.levels) if last is None else image.same_levels(last.image)
    if last is not None and all(same):
        return last
    decoded = [
        last.levels[depth] if last is not None and known else decode(image, depth) for depth, known in enumerate(same)
    ]
    _require_few(sum(len(level.runs) for level in decoded))
    shadows = [_shadows(image, depth) for depth in range(len(image.refused))]
    parts = [level.runs for level in decoded]
    parts += [runs for runs, _ in shadows if len(runs)]
    faults: list[TableFault] = []
    for depth, level in enumerate(decoded):
        extra = shadows[depth][1] if depth < len(shadows) else ()
        faults += _faults(image, depth, level, extra)
    _require_few(sum(map(len, parts)))
    runs = merge(parts)
    faults.sort(key=lambda fault: (fault.range.start, -fault.range.end, fault.reason))
    return Walk(image, runs, tuple(decoded), tuple(faults))


def _require_few(runs: int) -> None:
    if runs > MAX_RUNS:
        raise GuestError(f"the guest's page tables have {runs} runs of mappings, which is more than {MAX_RUNS}")


def _mappings(tables: TableFormat, runs: Runs) -> tuple[HostMapping, ...]:
    names = [level.leaf_name for level in tables.levels]
    words = {bits: tables.words(bits) for bits in np.unique(runs.bits).tolist()}
    columns = (runs.start, runs.size, runs.physical, runs.level, runs.bits)
    return tuple(
        _mapping(start, start + size, where, names[level], words[bits])
        for start, size, where, level, bits in zip(*(column.tolist() for column in columns), strict=True)
    )


# Most are those of the last walk.
@functools.lru_cache(_ITEMS)
def _page(address: int, level: str, start: int, end: int, entries: int, counted: bool | None) -> TablePage:
    return TablePage(address, level, AddrRange(start, end), entries, counted)


@functools.lru_cache(_ITEMS)
def _mapping(start: int, end: int, physical: int, level: str, attrs: tuple[str, ...]) -> HostMapping:
    return HostMapping(AddrRange(start, end), physical, level, attrs)


def _faults(image: TableImage, depth: int, level: Decoded, extra: Sequence[tuple[int, str]]) -> list[TableFault]:
    found = sorted({*level.faults, *extra})[:MAX_FAULTS]
    if not found:
        return []
    form, rows = image.tables.levels[depth], image.levels[depth]
    places = np.array([place for place, _ in found], dtype=np.intp)
    columns = (rows.addresses[places // form.entries], rows.flat[places], image.virtual(depth, places))
    return [
        TableFault(table, place % form.entries, entry, AddrRange.sized(start, form.entry_span), reason)
        for (place, reason), table, entry, start in zip(found, *(column.tolist() for column in columns), strict=True)
    ]


def _shadows(image: TableImage, depth: int) -> tuple[Runs, tuple[tuple[int, str], ...]]:
    """Runs for the pointers of a level to tables that may be shared, and faults for the others."""
    refused = image.refused[depth]
    known = refused.row >= 0
    place, row = refused.place[known], refused.row[known]
    pages = {number: _single_page(image, depth + 1, number) for number in np.unique(row).tolist()}
    entry = np.array([page or 0 for page in map(pages.__getitem__, row.tolist())], dtype=np.uint64)
    fine = entry != 0
    tables = image.tables
    start = image.virtual(depth, place[fine])
    runs = Runs(
        start=start,
        size=np.full(len(start), tables.levels[depth].entry_span, dtype=np.uint64),
        physical=physical(tables, entry[fine]),
        bits=entry[fine] & np.uint64(tables.attributes),
        level=np.full(len(start), len(tables.levels) - 1, dtype=np.uint8),
    )
    return runs, tuple((number, REASONS[Refusal.AGAIN]) for number in place[~fine][:MAX_FAULTS].tolist())


def _single_page(image: TableImage, depth: int, row: int) -> int | None:
    """The PTE to which every path down from a table leads, None if there is none."""
    tables = image.tables
    mask, value = (np.uint64(number) for number in tables.table)
    for below in range(depth, len(tables.levels) - 1):
        words = image.levels[below].words[row]
        # Pointers may differ in the permission bits: the kernel sets them only in tables that it populates late.
        target = physical(tables, words)
        rows = np.flatnonzero(image.levels[below + 1].addresses == target[0])
        if (words & mask != value).any() or (target != target[0]).any() or len(rows) == 0:
            return None
        row = int(rows[0])
    words = image.levels[-1].words[row]
    entry = int(words[0])
    return entry if entry & tables.attributes and (words == words[0]).all() else None
