# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds struct mem_section_usage and its sub-section bitmap from sections with known content.

Kernels since v6.8, and stable ones with the same fix, begin struct mem_section_usage with a struct rcu_head.
vmcoreinfo does not say so. But all sub-sections of boot RAM are present, so their bits are set (subsection_map_init,
mm/sparse-vmemmap.c, v6.12), while the words before the bitmap are zero until the usage is freed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from harness.kmem._sparse_entries import SectionArray, find_roots, read_entries
from harness.kmem.address import DirectMap, Words
from harness.kmem.physical_memory import PhysicalMemory
from harness.state import NotObserved
from harness.units import AddrRange

#: possible offsets of the bitmap in bytes: behind nothing, or behind a struct of up to four words
_BITMAP_OFFSETS = (0, 8, 16, 24, 32)
_FULL = np.uint64((1 << 64) - 1)


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
    cells = physical[:, None] + np.arange(count, dtype=np.uint64) * np.uint64(8)
    words = memory.gather(cells.ravel(), 8).reshape(-1, count)
    last = np.uint64((1 << bits - (count - 1) * 64) - 1)
    return int(np.count_nonzero((words[:, :-1] == _FULL).all(axis=1) & (words[:, -1] == last)))
