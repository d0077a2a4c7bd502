# SPDX-License-Identifier: GPL-2.0-or-later
"""Decodes the entries of one level of tables, as arrays: runs of mappings, and faults."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from harness.arch.pagetable import EntryRule, TableLevel
from harness.kmem._copy import Refusal, TableImage, physical
from harness.kmem.physical_memory import Flags, Indices, Words

#: entries per pass: together with the results they fit in a CPU's second-level cache
_CHUNK = 1 << 15
#: maximum number of faults reported for one level; broken tables can have millions
MAX_FAULTS = 4096

REASONS = {
    Refusal.OUTSIDE: "leads to a table outside of memory",
    Refusal.AGAIN: "leads to a table that is reachable another way too",
    Refusal.TOO_MANY: "leads to a table beyond those that this much memory can take",
}
_NOTHING = "neither empty, nor a table, nor a mapping"
_NO_LEAF = "a mapping at a level that has none"
_UNEVEN = "its contiguous group is not uniform"


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of mappings, one element each: virtual ``start``, ``size`` in bytes (2**64 does not occur), ``physical``.

    ``bits`` are the attributes that ptdump tells apart, ``level`` is the index of the level.
    """

    start: Words
    size: Words
    physical: Words
    bits: Words
    level: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, chosen: Flags | Indices) -> Runs:
        return Runs(self.start[chosen], self.size[chosen], self.physical[chosen], self.bits[chosen], self.level[chosen])

    def joined(self, *, physically: bool = True) -> Runs:
        """The same with neighbours joined: equal level and bits, adjacent (``physically`` too, unless False)."""
        fresh = changes(self.start, self.size, self.bits)
        fresh[1:] |= self.level[1:] != self.level[:-1]
        if physically:
            fresh |= changes(self.physical, self.size)
        first = np.flatnonzero(fresh)
        if len(first) == len(self):
            return self
        return replace(self[first], size=np.add.reduceat(self.size, first))


def changes(start: Words, size: Words, *same: Words) -> Flags:
    """True for each element that is not the continuation of the one before: not adjacent, or not the ``same``."""
    fresh = np.ones(len(start), dtype=np.bool_)
    fresh[1:] = start[1:] != start[:-1] + size[:-1]
    for values in same:
        fresh[1:] |= values[1:] != values[:-1]
    return fresh


def merge(parts: list[Runs]) -> Runs:
    """All of ``parts`` in the order of virtual addresses."""
    whole = Runs(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Runs)))
    return whole[np.argsort(whole.start, kind="stable")]


@dataclass(frozen=True, slots=True)
class Decoded:
    """One level: its mappings, the entries in use of each table, and faults as (place, reason)."""

    runs: Runs
    used: Indices
    faults: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Entries that count up and are not empty: ``place`` and ``word`` of the first, how many there are."""

    place: Indices
    count: Indices
    word: Words

    def __getitem__(self, chosen: Flags) -> _Pieces:
        return _Pieces(self.place[chosen], self.count[chosen], self.word[chosen])


def decode(image: TableImage, depth: int) -> Decoded:
    """Decode the level ``depth`` below the root; mappings are joined where they are adjacent on both sides."""
    level = image.tables.levels[depth]
    if len(image.levels[depth].starts) == 0:
        none = np.zeros(0, dtype=np.uint64)
        return Decoded(Runs(none, none, none, none, none.astype(np.uint8)), np.zeros(0, dtype=np.intp), ())
    pieces, used = _pieces(image, depth)
    found = _Faults()
    table, leaf = _kinds(image, depth, pieces, found)
    for rule in level.table_rules:
        found.judge(rule, pieces[table])
    leaves = pieces[leaf]
    for rule in level.leaf_rules:
        found.judge(rule, leaves)
    for refused in image.refused[depth : depth + 1]:
        for why in Refusal:
            found.add(REASONS[why], refused.place[(refused.why == why) & (refused.row < 0)])
    runs = _runs(image, depth, leaves)
    if level.group:
        found.add(_UNEVEN, _uneven(image, level, leaves, runs))
    return Decoded(runs.joined(), used, found.first())


def _pieces(image: TableImage, depth: int) -> tuple[_Pieces, Indices]:
    tables, level, rows = image.tables, image.tables.levels[depth], image.levels[depth]
    words, step = rows.flat, tables.step(level)
    forced = (np.flatnonzero(rows.starts[1:] != rows.starts[:-1] + np.uint64(level.table_span)) + 1) * level.entries
    if depth == 0 and tables.both_halves:
        forced = np.array([level.entries // 2])
    place = breaks(words, step, forced)
    count = np.diff(place, append=len(words))
    word = words[place]
    empty = word == 0
    used = level.entries - np.bincount(place[empty] // level.entries, minlength=len(rows.starts))
    # An empty entry never joins the next run, even one that counts up from zero.
    place, count = place + empty, count - empty
    keep = count > 0
    place, count = place[keep], count[keep]
    pieces = _Pieces(place, count, words[place])
    # Counting up may carry into the attributes, and entries of a Svnapot group do not count up.
    last = pieces.word + (pieces.count - 1).astype(np.uint64) * np.uint64(step)
    single = (pieces.word ^ last) & ~np.uint64(tables.address[0][0]) != 0
    if tables.napot:
        single |= pieces.word & np.uint64(tables.contiguous) != 0
    return _split(pieces, single & (pieces.count > 1), words), used


def _split(pieces: _Pieces, chosen: Flags, words: Words) -> _Pieces:
    """The same with the ``chosen`` pieces split into single entries."""
    if not chosen.any():
        return pieces
    copies = np.where(chosen, pieces.count, 1)
    begin = np.repeat(np.cumsum(copies) - copies, copies)
    place = np.repeat(pieces.place, copies) + np.arange(len(begin)) - begin
    return _Pieces(place, np.where(np.repeat(chosen, copies), 1, np.repeat(pieces.count, copies)), words[place])


def _kinds(image: TableImage, depth: int, pieces: _Pieces, found: _Faults) -> tuple[Flags, Flags]:
    """The pieces that lead to tables and those that ptdump takes for mappings; all others are faults."""
    tables, level = image.tables, image.tables.levels[depth]
    if depth == len(tables.levels) - 1:
        table = np.zeros(len(pieces.word), dtype=np.bool_)
        leaf = pieces.word & np.uint64(tables.attributes) != 0
    else:
        mask, value = tables.table
        table = pieces.word & np.uint64(mask) == np.uint64(value)
        leaf = ~table & (pieces.word & np.uint64(tables.leaf) != 0)
        if not level.leaves:
            found.add_pieces(_NO_LEAF, pieces[leaf])
            found.add_pieces(_NOTHING, pieces[~table & ~leaf])
            return table, np.zeros(len(leaf), dtype=np.bool_)
    found.add_pieces(_NOTHING, pieces[~table & ~leaf])
    return table, leaf


def _runs(image: TableImage, depth: int, leaves: _Pieces) -> Runs:
    tables, level = image.tables, image.tables.levels[depth]
    start = image.virtual(depth, leaves.place)
    where = physical(tables, leaves.word)
    if tables.napot and level.group:
        group = leaves.word & np.uint64(tables.contiguous) != 0
        inside = np.uint64(level.group * level.entry_span - 1)
        where[group] = (where[group] & ~inside) | (start[group] & inside)
    return Runs(
        start=start,
        size=leaves.count.astype(np.uint64) << np.uint64(level.shift),
        physical=where,
        bits=leaves.word & np.uint64(tables.attributes),
        level=np.full(len(start), depth, dtype=np.uint8),
    )


def _uneven(image: TableImage, level: TableLevel, leaves: _Pieces, runs: Runs) -> Indices:
    """Places of entries with the contiguous hint in groups that are not uniform: one in each, unless there are many."""
    hinted = leaves.word & np.uint64(image.tables.contiguous) != 0
    if not hinted.any():
        return np.zeros(0, dtype=np.intp)
    find = _uneven_napot if image.tables.napot else _uneven_counting
    return find(image, level, leaves[hinted], runs[hinted])


def _uneven_napot(image: TableImage, level: TableLevel, pieces: _Pieces, runs: Runs) -> Indices:
    number = runs.start // np.uint64(level.group * level.entry_span)
    first = np.flatnonzero(np.concatenate(([True], number[1:] != number[:-1])))
    alike = np.minimum.reduceat(pieces.word, first) == np.maximum.reduceat(pieces.word, first)
    whole = np.diff(first, append=len(number)) == level.group
    return np.asarray(pieces.place[first[~(alike & whole)]])


def _uneven_counting(image: TableImage, level: TableLevel, pieces: _Pieces, runs: Runs) -> Indices:
    tables, group = image.tables, level.group
    ignored = tables.group_ignores
    for mask, _ in tables.address:
        ignored |= mask
    fresh = changes(runs.start, runs.size, pieces.word & ~np.uint64(ignored)) | changes(runs.physical, runs.size)
    first = np.flatnonzero(fresh)
    last = np.append(first[1:], len(fresh)) - 1
    begin, end = pieces.place[first], pieces.place[last] + pieces.count[last]
    shifted = ((runs.start[first] ^ runs.physical[first]) & np.uint64(group * level.entry_span - 1)) != 0
    # Groups do not cross tables, so places give their ends just as addresses do.
    heads = begin[(begin % group != 0) & ~shifted]
    tails = end[(end % group != 0) & ~shifted] - 1
    found = [heads, tails]
    for place, stop in zip(begin[shifted][:MAX_FAULTS].tolist(), end[shifted][:MAX_FAULTS].tolist(), strict=True):
        found.append(np.array([place, *range(place + group - place % group, stop, group)[:MAX_FAULTS]]))
    return np.concatenate(found)


class _Faults:
    """Faults of one level as they are found."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str]] = []

    def add(self, reason: str, places: Indices) -> None:
        self.found += [(place, reason) for place in places[:MAX_FAULTS].tolist()]

    def add_pieces(self, reason: str, pieces: _Pieces) -> None:
        """Every entry of ``pieces``."""
        for place, count in zip(pieces.place[:MAX_FAULTS].tolist(), pieces.count[:MAX_FAULTS].tolist(), strict=True):
            self.found += [(entry, reason) for entry in range(place, place + min(count, MAX_FAULTS))]
            if len(self.found) > 2 * MAX_FAULTS:
                return

    def judge(self, rule: EntryRule, pieces: _Pieces) -> None:
        masked = pieces.word & np.uint64(rule.mask)
        wrong = masked != 0 if rule.value is None else masked == np.uint64(rule.value)
        if wrong.any():
            self.add_pieces(rule.reason, pieces[wrong])

    def first(self) -> tuple[tuple[int, str], ...]:
        """The first of them, without repetition, in the order of places."""
        return tuple(sorted(set(self.found))[:MAX_FAULTS])


def breaks(words: Words, step: int, forced: Indices) -> Indices:
    """The indices in ``words`` whose entry is not the previous one plus ``step``; 0 and ``forced`` always count.

    ``words`` is one-dimensional. The cost is one pass over it.
    """
    total = len(words)
    differences = np.empty(min(_CHUNK, total), dtype=np.uint64)
    flags = np.empty(len(differences) + 8, dtype=np.bool_)
    stride = np.uint64(step)
    bounds = np.searchsorted(forced, np.arange(0, total + _CHUNK, _CHUNK))
    found: list[Indices] = []
    for number, low in enumerate(range(0, total, _CHUNK)):
        count = min(_CHUNK, total - low)
        head = 0 if low else 1
        part = differences[head:count]
        np.subtract(words[low + head : low + count], words[low + head - 1 : low + count - 1], out=part)
        np.not_equal(part, stride, out=flags[head:count])
        if head:
            flags[0] = True
        flags[forced[bounds[number] : bounds[number + 1]] - low] = True
        flags[count : count + 8] = False
        here = _true_positions(flags[: (count + 7) // 8 * 8])
        if len(here):
            found.append(here + low)
    return np.concatenate(found) if found else np.zeros(0, dtype=np.intp)


def _true_positions(flags: Flags) -> Indices:
    # Most of these are False: look for eight at a time first.
    eights = np.flatnonzero(flags.view(np.uint64))
    if len(eights) == 0:
        return eights
    row, column = np.nonzero(flags.reshape(-1, 8)[eights])
    return np.asarray(eights[row] * 8 + column)
