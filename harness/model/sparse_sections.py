# SPDX-License-Identifier: GPL-2.0-or-later
"""mem_section after each change, as by mm/sparse.c and mm/memory_hotplug.c (v6.12)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from harness.model.expected import ExpectedSection
from harness.units import AddrRange


@dataclass
class _Section:
    """``bits`` is the sub-section bitmap; ``device`` the taint by ZONE_DEVICE."""

    bits: int
    early: bool
    device: bool = False


class SectionTable:
    """All present sections of a guest; addresses are physical bytes."""

    def __init__(self, section_size: int, subsection_size: int, boot: Iterable[AddrRange]) -> None:
        self.section_size = section_size
        self.subsection_size = subsection_size
        self._sections: dict[int, _Section] = {}
        # memory_present, sparse_init_subsection_map: every sub-section that contains boot memory
        for number, bits in self._parts(boot):
            self._sections.setdefault(number, _Section(0, early=True)).bits |= bits

    def _parts(self, pieces: Iterable[AddrRange]) -> Iterator[tuple[int, int]]:
        """(section, bitmap) of each section that one of ``pieces`` overlaps."""
        for piece in pieces:
            for part in piece.align_outward(self.subsection_size).chunks(self.section_size):
                number, offset = divmod(part.start, self.section_size)
                first, count = offset // self.subsection_size, part.size // self.subsection_size
                yield number, ((1 << count) - 1) << first

    def add(self, piece: AddrRange, *, device: bool) -> None:
        """sparse_add_section for each section of ``piece``; ``device`` memory immediately joins ZONE_DEVICE.

        move_pfn_range_to_zone taints the sections that a ZONE_DEVICE range covers in part.
        """
        for number, bits in self._parts([piece]):
            self._sections.setdefault(number, _Section(0, early=False)).bits |= bits
        if device:
            for edge in (piece.start, piece.end):
                if edge % self.section_size:
                    self._sections[edge // self.section_size].device = True

    def remove(self, piece: AddrRange) -> None:
        """section_deactivate: a section and its flags are removed with its last sub-section."""
        for number, bits in self._parts([piece]):
            section = self._sections[number]
            section.bits &= ~bits
            if not section.bits:
                del self._sections[number]

    def to_state(self, online: Callable[[int, bool], bool]) -> tuple[ExpectedSection, ...]:
        """The sections in order; ``online(number, early)`` is True for online ones."""
        found = []
        for number, section in sorted(self._sections.items()):
            flags = {"present", "has-mem-map"}
            if online(number, section.early):
                flags.add("online")
            if section.early:
                flags.add("early")
            if section.device:
                flags.add("zone-device")
            found.append(ExpectedSection(number, frozenset(flags), section.bits))
        return tuple(found)
