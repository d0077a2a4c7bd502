# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs of page-table entries as arrays: where entries stop counting up, and which runs are adjacent."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Indices = NDArray[np.intp]
Flags = NDArray[np.bool_]

#: entries per pass: together with the results they fit in a CPU's second-level cache
_CHUNK = 1 << 15


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
