# SPDX-License-Identifier: GPL-2.0-or-later
"""The entries of mem_section as they stand in memory: roots, then the pages of entries that they lead to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.kmem.address import DirectMap, Words
from harness.kmem.memory import PhysicalMemory

#: roots in use that are followed; 128 TiB of 128 MiB sections
MAX_ROOTS = 1 << 12
#: sections in use that are read; 32 TiB of 128 MiB sections
MAX_SECTIONS = 1 << 18
#: faults that are told one by one
MAX_FAULTS = 1000

_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class SectionArray:
    """Where the kernel keeps its struct mem_section (include/linux/mmzone.h and mm/sparse.c, v6.12).

    ``address`` is virtual: with SPARSEMEM_EXTREME (``extreme``) of ``roots`` pointers to ``per_root`` entries each,
    otherwise of all entries, which are ``roots`` then, one per root. ``entry_size`` is bytes.
    """

    address: int
    extreme: bool
    roots: int
    per_root: int
    entry_size: int


@dataclass(frozen=True, slots=True)
class SectionFault:
    """Something in the way of reading sections: ``count`` of them from number ``first`` on.

    ``address`` is the virtual address at fault.
    """

    first: int
    count: int
    address: int
    reason: str


@dataclass(frozen=True, slots=True)
class Entries:
    """All entries with anything in them: section ``numbers``, in order, and ``words`` of shape (n, words per entry)."""

    numbers: NDArray[np.intp]
    words: Words
    faults: tuple[SectionFault, ...]


def read_entries(memory: PhysicalMemory, direct: DirectMap, array: SectionArray) -> Entries:
    """Copy all used entries.

    What cannot be followed becomes a fault, at most MAX_FAULTS of them. Raises Untranslated or OutsideMemory if the
    array itself cannot be read.
    """
    start = direct.physical(array.address)
    if not array.extreme:
        data = np.frombuffer(memory.read(start, array.roots * array.entry_size), dtype="<u8")
        rows = data.reshape(array.roots, -1)
        numbers = np.flatnonzero(rows.any(axis=1))
        return _bounded(array, numbers, rows[numbers], [])
    indices, pointers = _used_roots(memory, start, array.roots)
    faults: list[SectionFault] = []
    good = _good_roots(memory, direct, array, indices, pointers, faults)
    physical = direct.translate(pointers[good])[0]
    stride = array.per_root * array.entry_size // 8
    cells = physical[:, None] + np.arange(stride, dtype=np.uint64) * np.uint64(8)
    rows = memory.gather(cells.ravel(), 8).reshape(len(physical) * array.per_root, -1)
    used = np.flatnonzero(rows.any(axis=1))
    numbers = indices[good][used // array.per_root] * array.per_root + used % array.per_root
    return _bounded(array, numbers, rows[used], faults)


def _used_roots(memory: PhysicalMemory, start: int, count: int) -> tuple[NDArray[np.intp], Words]:
    """Indices and contents of the roots that are not zero. There may be millions, nearly all of them zero."""
    indices, pointers = [], []
    for offset in range(0, count * 8, _CHUNK):
        chunk = np.frombuffer(memory.read(start + offset, min(_CHUNK, count * 8 - offset)), dtype="<u8")
        used = np.flatnonzero(chunk)
        indices.append(used + offset // 8)
        pointers.append(chunk[used])
    return np.concatenate(indices), np.concatenate(pointers)


def _good_roots(
    memory: PhysicalMemory,
    direct: DirectMap,
    array: SectionArray,
    indices: NDArray[np.intp],
    pointers: Words,
    faults: list[SectionFault],
) -> NDArray[np.intp]:
    """Positions in ``indices`` of the roots that lead to entries; faults for the others."""
    physical, direct_ones = direct.translate(pointers)
    aligned = pointers & np.uint64(7) == 0
    fine = direct_ones & aligned & memory.holds(physical, array.per_root * array.entry_size)
    again = np.ones(len(pointers), dtype=np.bool_)
    again[np.unique(pointers, return_index=True)[1]] = False
    for place in np.flatnonzero(~fine | again)[:MAX_FAULTS].tolist():
        if fine[place]:
            reason = "the page of entries of another root, too"
        elif not aligned[place]:
            reason = "a pointer to entries that is not aligned"
        elif not direct_ones[place]:
            reason = "a pointer to entries that is not in the linear map"
        else:
            reason = "a pointer to entries outside of memory"
        faults.append(SectionFault(int(indices[place]) * array.per_root, array.per_root, int(pointers[place]), reason))
    good = np.flatnonzero(fine & ~again)
    if len(good) > MAX_ROOTS:
        first = good[MAX_ROOTS]
        count = len(good) - MAX_ROOTS
        faults.append(
            SectionFault(
                int(indices[first]) * array.per_root,
                count * array.per_root,
                int(pointers[first]),
                f"{count} more roots than anybody has; they were not read",
            )
        )
    return good[:MAX_ROOTS]


def _bounded(array: SectionArray, numbers: NDArray[np.intp], words: Words, faults: list[SectionFault]) -> Entries:
    left = len(numbers) - MAX_SECTIONS
    if left > 0:
        reason = f"{left} more sections than anybody has; they were not read"
        faults.append(SectionFault(int(numbers[MAX_SECTIONS]), left, array.address, reason))
    return Entries(numbers[:MAX_SECTIONS], words[:MAX_SECTIONS], tuple(faults))
