# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of a walk that runs while the guest is paused: it copies every table page and does nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from harness.arch.pagetable import TableFormat
from harness.kmem.physical_memory import Flags, Indices, PhysicalMemory, Words
from harness.units import MIB

#: bytes of tables that a guest of any size may have; the rest of the limit grows with its memory
_LEAST_ROOM = 16 * MIB
#: the limit as a multiple of the tables for mapping all memory once by single pages: linear map, vmemmap, vmalloc, a
#: KASAN shadow
_ROOM_FACTOR = 4


class Refusal(IntEnum):
    """Why a table was not followed."""

    OUTSIDE = 1
    AGAIN = 2
    TOO_MANY = 3


@dataclass(frozen=True, slots=True)
class TableRows:
    """The tables of one level in the order of virtual addresses, one element or row each.

    ``addresses`` are physical, ``starts`` the virtual addresses of the first entries; ``words`` has the shape
    (tables, entries).
    """

    addresses: Words
    starts: Words
    words: Words

    @property
    def flat(self) -> Words:
        """All entries in one flat array; an index into it is called an entry's place."""
        return self.words.reshape(-1)

    def equals(self, other: TableRows) -> bool:
        """Whether both have the same tables with the same entries at the same addresses."""
        return (
            np.array_equal(self.addresses, other.addresses)
            and np.array_equal(self.starts, other.starts)
            and np.array_equal(self.words, other.words)
        )


@dataclass(frozen=True, slots=True)
class Refused:
    """Pointers in the tables of one level that were not followed.

    The ``place`` of each entry, its ``Refusal``, and the ``row`` of its table in the next level: -1 unless the table is
    already there.
    """

    place: Indices
    why: NDArray[np.uint8]
    row: Indices

    def equals(self, other: Refused) -> bool:
        """Whether both are the same pointers, for the same reasons."""
        return (
            np.array_equal(self.place, other.place)
            and np.array_equal(self.why, other.why)
            and np.array_equal(self.row, other.row)
        )


@dataclass(frozen=True, slots=True)
class TableImage:
    """A copy of all page tables: ``levels`` from the root on, with ``refused`` pointers of each level but the last."""

    tables: TableFormat
    levels: tuple[TableRows, ...]
    refused: tuple[Refused, ...]

    def virtual(self, depth: int, places: Indices) -> Words:
        """Virtual addresses of the entries at ``places`` of the level ``depth`` below the root."""
        return _virtual(self.tables, self.levels[depth], depth, places)

    def same_levels(self, other: TableImage) -> tuple[bool, ...]:
        """For each level, whether it equals that of ``other``, with its refused pointers."""
        same = [rows.equals(theirs) for rows, theirs in zip(self.levels, other.levels, strict=True)]
        for depth, (refused, theirs) in enumerate(zip(self.refused, other.refused, strict=True)):
            same[depth] = same[depth] and refused.equals(theirs)
        return tuple(same)

    @property
    def size(self) -> int:
        """Bytes of table pages that were copied."""
        return sum(rows.words.nbytes for rows in self.levels)


def copy_tables(memory: PhysicalMemory, tables: TableFormat, into: TableImage | None = None) -> TableImage:
    """Copy all table pages, level by level; an earlier copy, ``into``, is overwritten, which saves time.

    It terminates whatever the tables contain: it skips tables outside of ``memory`` and tables that it has already
    copied, and stops at the maximum number of tables for that much memory. Raises OutsideMemory if the root itself is
    not in memory.
    """
    address = np.array([tables.root], dtype=np.uint64)
    start = np.array([tables.start], dtype=np.uint64)
    levels = [TableRows(address, start, memory.gather(address, tables.levels[0].table_size))]
    refused: list[Refused] = []
    room = _room(memory, tables)
    for depth in range(len(tables.levels) - 1):
        old = None if into is None else into.levels[depth + 1].words
        place, children = _pointers(tables, levels[depth])
        why, row = _refuse(memory, tables, levels, children, room)
        follow = why == 0
        if not follow.all():
            bad = ~follow
            refused.append(Refused(place[bad], why[bad], row[bad]))
            place, children = place[follow], children[follow]
        else:
            refused.append(Refused(place[:0], why[:0], row[:0]))
        words = memory.gather(children, tables.page_size, old)
        levels.append(TableRows(children, _virtual(tables, levels[depth], depth, place), words))
        room -= len(children)
    return TableImage(tables, tuple(levels), tuple(refused))


def physical(tables: TableFormat, entries: Words) -> Words:
    """The physical addresses in ``entries``."""
    total = np.zeros(len(entries), dtype=np.uint64)
    for mask, shift in tables.address:
        part = entries & np.uint64(mask)
        total |= part << np.uint64(shift) if shift >= 0 else part >> np.uint64(-shift)
    return total


def _room(memory: PhysicalMemory, tables: TableFormat) -> int:
    total = sum(piece.size for piece in memory.ranges)
    return _ROOM_FACTOR * (total // tables.levels[-1].table_span) + _LEAST_ROOM // tables.page_size


def _virtual(tables: TableFormat, rows: TableRows, depth: int, places: Indices) -> Words:
    level = tables.levels[depth]
    row, index = np.divmod(places, level.entries)
    found = rows.starts[row] + (index.astype(np.uint64) << np.uint64(level.shift))
    if depth == 0 and tables.both_halves:
        high = np.uint64((1 << 64) - (1 << tables.va_bits))
        found[index >= level.entries // 2] |= high
    return np.asarray(found)


def _pointers(tables: TableFormat, rows: TableRows) -> tuple[Indices, Words]:
    """Places of the entries that lead to tables, and where they lead."""
    mask, value = tables.table
    flat = rows.flat
    place = np.flatnonzero((flat & np.uint64(mask)) == np.uint64(value))
    return place, physical(tables, flat[place])


def _refuse(
    memory: PhysicalMemory, tables: TableFormat, levels: list[TableRows], children: Words, room: int
) -> tuple[NDArray[np.uint8], Indices]:
    """For each child a Refusal or 0, and the row of the one that is followed in its place (or -1)."""
    why = np.zeros(len(children), dtype=np.uint8)
    row = np.full(len(children), -1, dtype=np.intp)
    why[~memory.holds(children, tables.page_size)] = Refusal.OUTSIDE
    first: Indices | None = None
    above = np.concatenate([rows.addresses for rows in levels]) & ~np.uint64(tables.page_size - 1)
    if _meets_again(children, above):
        _, earliest, number = np.unique(children, return_index=True, return_inverse=True)
        first = earliest[number]
        again = (first != np.arange(len(children))) | np.isin(children, above)
        why[again & (why == 0)] = Refusal.AGAIN
    follow = why == 0
    if np.count_nonzero(follow) > room:
        why[follow & (np.cumsum(follow) > room)] = Refusal.TOO_MANY
        follow = why == 0
    if first is not None:
        known: Flags = (why == Refusal.AGAIN) & follow[first]
        row[known] = (np.cumsum(follow) - 1)[first[known]]
    return why, row


def _meets_again(children: Words, above: Words) -> bool:
    if len(children) == 0:
        return False
    ordered = np.sort(children)
    if (ordered[1:] == ordered[:-1]).any():
        return True
    near = np.minimum(np.searchsorted(ordered, above), len(ordered) - 1)
    return bool((ordered[near] == above).any())
