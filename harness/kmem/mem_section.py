# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's mem_section, read from the guest's memory: a quick copy while the guest is paused, then the decoding.

::

    roots = find_roots(memory, direct, layout.array)         # any time
    image = copy_sections(memory, direct, layout, roots)     # with the guest paused
    found = decode_sections(image)                           # any time later
    found.sections; found.faults
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.kmem._sparse_entries import MAX_FAULTS, MAX_ROOTS, Entries, bad_pointer, earlier, find_roots, read_entries
from harness.kmem.address import DirectMap
from harness.kmem.physical_memory import Flags, Indices, PhysicalMemory, Words
from harness.kmem.structs import SparseLayout
from harness.state import NotObserved, Section, SectionFault

__all__ = ["Indices", "SectionImage", "Sections", "copy_sections", "decode_sections", "find_roots"]

#: bits of section_mem_map that never hold an address: the memmap, and pfn 0's place relative to it, are page-aligned
_FLAG_BITS = 12
_FLAG_MASK = (1 << _FLAG_BITS) - 1


@dataclass(frozen=True, slots=True)
class SectionImage:
    """A copy of all used sections: ``bitmaps`` has the words of each one's sub-section bitmap where ``readable``.

    ``direct`` says whether the usage is a valid pointer into the linear map.
    """

    layout: SparseLayout
    entries: Entries
    bitmaps: Words
    readable: Flags
    direct: Flags


@dataclass(frozen=True, slots=True)
class Sections:
    """The content of mem_section in the order of section numbers, and the parts that could not be read."""

    sections: tuple[Section, ...]
    faults: tuple[SectionFault, ...]


def copy_sections(
    memory: PhysicalMemory, direct: DirectMap, layout: SparseLayout, roots: Indices | None = None
) -> SectionImage:
    """Copy every used entry of mem_section and its sub-section bitmap.

    ``roots`` are those that ``find_roots`` found just before; with None they are searched here, which takes longer than
    all the rest. Those for the physical addresses of ``memory`` are always read: only there can the kernel have added
    roots since. A bad pointer only loses its own target. Raises Untranslated or OutsideMemory if mem_section itself
    cannot be read.
    """
    array = layout.array
    if roots is None:
        roots = find_roots(memory, direct, array)
    span = array.per_root * layout.section_size
    near = min(-(-max((piece.end for piece in memory.ranges), default=0) // span), array.roots, MAX_ROOTS)
    far = roots[roots >= near]
    entries = read_entries(memory, direct, array, np.concatenate([np.arange(near), far]))
    total = len(entries.numbers)
    if isinstance(layout.usage, NotObserved):
        none = np.zeros(total, dtype=np.bool_)
        return SectionImage(layout, entries, np.zeros((total, 0), dtype=np.uint64), none, none)
    count = -(-layout.subsections // 64)
    pointers = entries.words[:, layout.usage.pointer // 8]
    physical, inside = direct.translate(pointers)
    physical = physical + np.uint64(layout.usage.bitmap)
    readable = inside & (pointers & np.uint64(7) == 0) & memory.holds(physical, count * 8)
    bitmaps = np.zeros((total, count), dtype=np.uint64)
    bitmaps[readable] = memory.gather_rows(physical[readable], count)
    return SectionImage(layout, entries, bitmaps, readable, inside)


def decode_sections(image: SectionImage) -> Sections:
    """Decode a copy.

    A section whose usage cannot be read is returned without sub-sections and reported as a fault; a usage shared with
    another section is a fault, too. ``mem_map`` is section_mem_map without its low 12 bits, which are all flags.
    """
    layout, entries = image.layout, image.entries
    usage = (
        np.zeros(len(entries.numbers), dtype=np.uint64)
        if isinstance(layout.usage, NotObserved)
        else entries.words[:, layout.usage.pointer // 8]
    )
    names: dict[int, tuple[str, ...]] = {}
    found = []
    columns = (entries.numbers, entries.words[:, layout.map_offset // 8], usage, image.readable)
    for place, (number, word, pointer, readable) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        low = word & _FLAG_MASK
        if low not in names:
            names[low] = _names(low, layout.flags)
        bits = int.from_bytes(image.bitmaps[place].tobytes(), "little") if readable else None
        found.append(Section(number, names[low], word & ~_FLAG_MASK, pointer, bits))
    faults = sorted([*entries.faults, *_usage_faults(image, usage)], key=lambda fault: fault.first)
    return Sections(tuple(found), tuple(faults[:MAX_FAULTS]))


def _names(low: int, flags: tuple[str, ...]) -> tuple[str, ...]:
    known = dict(enumerate(flags))
    return tuple(known.get(bit, f"bit-{bit}") for bit in range(_FLAG_BITS) if low >> bit & 1)


def _usage_faults(image: SectionImage, usage: Words) -> list[SectionFault]:
    faults = []
    lost = np.flatnonzero((usage != 0) & ~image.readable)
    for place in lost[:MAX_FAULTS].tolist():
        reason = bad_pointer("mem_section_usage", int(usage[place]), bool(image.direct[place]))
        faults.append(SectionFault(int(image.entries.numbers[place]), 1, int(usage[place]), reason))
    readable = np.flatnonzero(image.readable)
    before = earlier(usage[readable])
    for at in np.flatnonzero(before >= 0)[:MAX_FAULTS].tolist():
        number, other = (int(image.entries.numbers[readable[place]]) for place in (at, before[at]))
        pointer = int(usage[readable[at]])
        faults.append(SectionFault(number, 1, pointer, f"shares its mem_section_usage with section {other}"))
    return faults
