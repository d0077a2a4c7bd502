# SPDX-License-Identifier: GPL-2.0-or-later
"""The entries of mem_section in memory: roots, then the pages of entries that they point to, and where their usage is.

struct mem_section_usage and its sub-section bitmap are found from sections with known content.

Kernels since v6.8, and stable ones with the same fix, begin struct mem_section_usage with a struct rcu_head.
vmcoreinfo does not say so. But all sub-sections of boot RAM are present, so their bits are set (subsection_map_init,
mm/sparse-vmemmap.c, v6.12), while the words before the bitmap are zero until the usage is freed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from harness.kmem.address import DirectMap
from harness.kmem.physical_memory import Indices, PhysicalMemory, Words
from harness.state import NotObserved, SectionFault
from harness.units import AddrRange

#: maximum number of used roots that are followed; 128 TiB of 128 MiB sections
MAX_ROOTS = 1 << 12
#: maximum number of used sections that are read; 32 TiB of 128 MiB sections
MAX_SECTIONS = 1 << 18
#: maximum number of faults that are reported one by one
MAX_FAULTS = 1000

_CHUNK = 1 << 18
#: possible offsets of the bitmap in bytes: behind nothing, or behind a struct of up to four words
_BITMAP_OFFSETS = (0, 8, 16, 24, 32)
_FULL = np.uint64((1 << 64) - 1)


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
    rows = memory.gather_rows(physical, array.per_root * array.entry_size // 8).reshape(-1, array.entry_size // 8)
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
        reason = bad_pointer("entries", int(pointers[place]), bool(direct_ones[place]))
        if fine[place]:
            reason = "a page of entries that another root points to, too"
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


def bad_pointer(target: str, pointer: int, direct: bool) -> str:
    """What is wrong with a pointer to ``target``; ``direct``: it is in the linear map."""
    if pointer & 7:
        return f"a pointer to {target} that is not aligned"
    return (
        f"a pointer to {target} outside of memory" if direct else f"a pointer to {target} that is not in the linear map"
    )


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


@dataclass(frozen=True, slots=True)
class UsagePlace:
    """Bytes into struct mem_section of the ``pointer``, and into struct mem_section_usage of the ``bitmap``."""

    pointer: int
    bitmap: int


def find_usage(
    memory: PhysicalMemory,
    direct: DirectMap,
    array: SectionArray,
    map_offset: int,
    section_size: int,
    subsection_size: int,
    ram: Iterable[AddrRange],
) -> UsagePlace | NotObserved:
    """The only place at which sections wholly inside ``ram`` have bitmaps with all bits set.

    Most of them must have them there (firmware may reserve part of some), and none anywhere else. Raises
    Untranslated or OutsideMemory if mem_section itself cannot be read.
    """
    whole = [piece.align_inward(section_size) for piece in ram]
    numbers = [n for piece in whole for n in range(piece.start // section_size, piece.end // section_size)]
    entries = read_entries(memory, direct, array, find_roots(memory, direct, array))
    words = entries.words[np.isin(entries.numbers, np.array(numbers, dtype=np.intp))]
    if len(words) == 0:
        return NotObserved("no section lies wholly in boot RAM, so the sub-section bitmap cannot be located")
    found = {}
    for pointer in range(0, array.entry_size, 8):
        if pointer == map_offset:
            continue
        physical, inside = direct.translate(words[:, pointer // 8])
        sound = physical[inside & (physical & np.uint64(7) == 0)]
        for bitmap in _BITMAP_OFFSETS:
            if full := _full(memory, sound + np.uint64(bitmap), section_size // subsection_size):
                found[UsagePlace(pointer, bitmap)] = full
    if len(found) == 1:
        [(place, full)] = found.items()
        if full * 2 > len(words):
            return place
    counts = ", ".join(f"{full} at {place.bitmap} behind {place.pointer}" for place, full in found.items()) or "none"
    return NotObserved(
        f"of {len(words)} whole sections of boot RAM these have all sub-sections, by place of the bitmap: {counts}"
    )


def _full(memory: PhysicalMemory, physical: Words, bits: int) -> int:
    """The number of addresses at which exactly the first ``bits`` bits are set."""
    count = -(-bits // 64)
    physical = physical[memory.holds(physical, count * 8)]
    words = memory.gather_rows(physical, count)
    last = np.uint64((1 << bits - (count - 1) * 64) - 1)
    return int(np.count_nonzero((words[:, :-1] == _FULL).all(axis=1) & (words[:, -1] == last)))
