# SPDX-License-Identifier: GPL-2.0-or-later
"""struct page of chosen pages, read from the guest's memory through the kernel's own mappings of vmemmap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.kmem.address import Translation
from harness.kmem.physical_memory import Flags, PhysicalMemory, Words
from harness.kmem.structs import BitField, PageLayout
from harness.state import NotObserved, StructPage

#: PAGE_POISON_PATTERN, include/linux/page-flags.h: kernels with CONFIG_DEBUG_VM begin with that (page_init_poison)
_POISON = (1 << 64) - 1


def read_struct_pages(
    memory: PhysicalMemory, layout: PageLayout, vmemmap: Translation, pfns: Sequence[int]
) -> tuple[StructPage | NotObserved, ...]:
    """The struct page of each of ``pfns``, in their order.

    ``vmemmap`` translates its addresses: a ``PageMap`` of the mappings that a page-table walk found. A struct page that
    is not mapped to memory is not observed; neither is one that is still poisoned: memory that was added but never
    online. A zone number without a name becomes ``zone-N``.
    """
    numbers = np.array(pfns, dtype=np.uint64)
    addresses = np.uint64(layout.vmemmap) + numbers * np.uint64(layout.size)
    flags, known = _fetch(memory, vmemmap, addresses + np.uint64(layout.flags))
    # _refcount is an int: 4-byte aligned, in the lower or the upper half of a word
    counts, also = _fetch(memory, vmemmap, addresses + np.uint64(layout.refcount & ~7))
    counts = counts >> np.uint64(layout.refcount % 8 * 8)
    found: list[StructPage | NotObserved] = []
    columns = (numbers, addresses, flags, counts, known & also)
    for pfn, address, word, count, there in zip(*(column.tolist() for column in columns), strict=True):
        if not there:
            found.append(NotObserved(f"the struct page of pfn {pfn:#x}, at {address:#x}, is not mapped to memory"))
            continue
        if word == _POISON:
            found.append(NotObserved(f"the struct page of pfn {pfn:#x} is poisoned: it was never initialised"))
            continue
        zone = _field(word, layout.zone)
        found.append(
            StructPage(
                pfn=pfn,
                flags=word,
                refcount=_signed(count),
                node=_field(word, layout.node),
                zone=layout.zones[zone] if zone < len(layout.zones) else f"zone-{zone}",
            )
        )
    return tuple(found)


def _fetch(memory: PhysicalMemory, vmemmap: Translation, addresses: Words) -> tuple[Words, Flags]:
    physical, mapped = vmemmap.translate(addresses)
    there = mapped & memory.holds(physical, 8) & (physical & np.uint64(7) == 0)
    words = np.zeros(len(addresses), dtype=np.uint64)
    words[there] = memory.gather(physical[there], 8)[:, 0]
    return words, there


def _field(word: int, field: BitField) -> int:
    return word >> field.shift & (1 << field.width) - 1


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value
