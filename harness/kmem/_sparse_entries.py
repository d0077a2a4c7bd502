# SPDX-License-Identifier: GPL-2.0-or-later
"""The entries of mem_section in memory: roots, then the pages of entries that they point to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.kmem.address import DirectMap, Words
from harness.kmem.physical_memory import PhysicalMemory
from harness.state import SectionFault

Indices = NDArray[np.intp]

#: maximum number of used roots that are followed; 128 TiB of 128 MiB sections
MAX_ROOTS = 1 << 12
#: maximum number of used sections that are read; 32 TiB of 128 MiB sections
MAX_SECTIONS = 1 << 18
#: maximum number of faults that are reported one by one
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
class Entries:
    """All entries that are not zero: section ``numbers``, in order, and ``words`` of shape (n, words per entry)."""

    numbers: Indices
    words: Words
    faults: tuple[SectionFault, ...]


def find_roots(memory: PhysicalMemory, direct: DirectMap, array: SectionArray) -> Indices:
    """Indices of the roots that are not zero, in order; none where there are no roots.

    There may be millions, nearly all of them zero: 16 MiB to search on riscv64. But a root that is set never changes
    (sparse_index_init, mm/sparse.c, v6.12), so the guest need not be paused. Raises the same errors as
    ``read_entries``.
    """
    if not array.extreme:
        return np.zeros(0, dtype=np.intp)
    start, size = direct.physical(array.address), array.roots * 8
    found = []
    for offset in range(0, size, _CHUNK):
        chunk = np.frombuffer(memory.read(start + offset, min(_CHUNK, size - offset)), dtype="<u8")
        found.append(np.flatnonzero(chunk) + offset // 8)
    return np.concatenate(found)


def read_entries(memory: PhysicalMemory, direct: DirectMap, array: SectionArray, roots: Indices) -> Entries:
    """Copy all used entries below ``roots`` (all used entries, if the array has no roots).

    A root that cannot be followed becomes a fault, at most MAX_FAULTS of them. Raises Untranslated or OutsideMemory if
    the array itself cannot be read.
    """
    start = direct.physical(array.address)
    if not array.extreme:
        data = np.frombuffer(memory.read(start, array.roots * array.entry_size), dtype="<u8")
        rows = data.reshape(array.roots, -1)
        numbers = np.flatnonzero(rows.any(axis=1))
        return _bounded(array, numbers, rows[numbers], [])
    pointers = memory.gather(np.uint64(start) + roots.astype(np.uint64) * np.uint64(8), 8)[:, 0]
    used = np.flatnonzero(pointers)
    indices, pointers = roots[used], pointers[used]
    faults: list[SectionFault] = []
    good = _good_roots(memory, direct, array, indices, pointers, faults)
    physical = direct.translate(pointers[good])[0]
    stride = array.per_root * array.entry_size // 8
    cells = physical[:, None] + np.arange(stride, dtype=np.uint64) * np.uint64(8)
    rows = memory.gather(cells.ravel(), 8).reshape(-1, array.entry_size // 8)
    used = np.flatnonzero(rows.any(axis=1))
    numbers = indices[good][used // array.per_root] * array.per_root + used % array.per_root
    return _bounded(array, numbers, rows[used], faults)


def _good_roots(
    memory: PhysicalMemory,
    direct: DirectMap,
    array: SectionArray,
    indices: Indices,
    pointers: Words,
    faults: list[SectionFault],
) -> Indices:
    """Positions in ``indices`` of the roots that point to entries; faults for the others."""
    physical, direct_ones = direct.translate(pointers)
    aligned = pointers & np.uint64(7) == 0
    fine = direct_ones & aligned & memory.holds(physical, array.per_root * array.entry_size)
    again = earlier(pointers) >= 0
    for place in np.flatnonzero(~fine | again)[:MAX_FAULTS].tolist():
        if fine[place]:
            reason = "a page of entries that another root points to, too"
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
                f"{count} more roots than any machine has; they were not read",
            )
        )
    return good[:MAX_ROOTS]


def earlier(pointers: Words) -> Indices:
    """For each pointer the index of an earlier equal one, -1 for the first."""
    # np.unique would do, but its first call imports numpy.ma, which extends the guest's pause by ten milliseconds.
    order = np.argsort(pointers, kind="stable")
    found = np.full(len(pointers), -1, dtype=np.intp)
    same = np.flatnonzero(pointers[order][1:] == pointers[order][:-1])
    found[order[same + 1]] = order[same]
    return found


def _bounded(array: SectionArray, numbers: Indices, words: Words, faults: list[SectionFault]) -> Entries:
    left = len(numbers) - MAX_SECTIONS
    if left > 0:
        reason = f"{left} more sections than any machine has; they were not read"
        faults.append(SectionFault(int(numbers[MAX_SECTIONS]), left, array.address, reason))
    return Entries(numbers[:MAX_SECTIONS], words[:MAX_SECTIONS], tuple(faults))
