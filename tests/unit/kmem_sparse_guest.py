# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests for the tests of the sparse reader in harness.kmem: made-up ones in a file, and recorded ones."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.arch import arch_named
from harness.arch.config_queries import Build
from harness.arch.kernel_layout import KernelLayout
from harness.kmem.address import DirectMap, direct_map
from harness.kmem.physical_memory import PhysicalMemory, Region
from harness.kmem.structs import BootedMemory, SparseLayout, sparse_layout
from harness.state import HostMapping, NotObserved
from harness.units import GIB, MIB, AddrRange

FIXTURES = Path(__file__).parent / "fixtures"

BASE = 0x8000_0000
LINEAR = 0xFFFF_0000_0000_0000
VMEMMAP = 0xFFFF_FC00_0000_0000
CONFIG = {"SPARSEMEM_VMEMMAP": "y", "ZONE_DEVICE": "y", "ZONE_DMA32": "y", "NUMA": "y", "NODES_SHIFT": "2"}
PRESENT, MAPPED, ONLINE, EARLY, DEVICE = 1, 2, 4, 8, 16


@dataclass
class SparseGuest:
    """A guest whose memory is the file ``path``: 128 MiB sections (or ``section_bits``) from BASE on.

    ``bitmap`` is the offset of the sub-section bitmap in the usage, ``pointer`` that of its address in an entry.
    """

    path: Path
    page_size: int = 4096
    section_bits: int = 27
    memory_bits: int = 40
    entry_size: int = 16
    pointer: int = 8
    bitmap: int = 16
    extreme: bool = True
    size: int = GIB
    usages: dict[int, int] = field(default_factory=dict)
    _next: int = MIB

    def __post_init__(self) -> None:
        with self.path.open("wb") as file:
            file.truncate(self.size)
        self.per_root = self.page_size // self.entry_size if self.extreme else 1
        self.roots = -(-(1 << self.memory_bits - self.section_bits) // self.per_root)
        self.array = self.allocate(self.roots * (8 if self.extreme else self.entry_size), 64)
        self.pages: dict[int, int] = {}

    @property
    def subsections(self) -> int:
        return 1 << self.section_bits - 21

    @property
    def ram(self) -> tuple[AddrRange, ...]:
        return (AddrRange.sized(BASE, self.size),)

    def allocate(self, size: int, alignment: int = 8) -> int:
        """Allocate ``size`` bytes; return their physical address."""
        self._next += -self._next % alignment
        self._next += size
        return BASE + self._next - size

    def write(self, physical: int, data: bytes) -> None:
        fd = os.open(self.path, os.O_WRONLY)
        os.pwrite(fd, data, physical - BASE)
        os.close(fd)

    def put(self, physical: int, *words: int) -> None:
        self.write(physical, b"".join((word % (1 << 64)).to_bytes(8, "little") for word in words))

    def entry(self, number: int) -> int:
        """Physical address of a section's entry; creates its root if it is missing."""
        if not self.extreme:
            return self.array + number * self.entry_size
        root, index = divmod(number, self.per_root)
        if root not in self.pages:
            self.pages[root] = self.allocate(self.per_root * self.entry_size, 64)
            self.put(self.root(root), virtual(self.pages[root]))
        return self.pages[root] + index * self.entry_size

    def root(self, number: int) -> int:
        """Physical address of the pointer to a page of entries."""
        return self.array + number * 8

    def add(self, number: int, flags: int, bits: int | None) -> int:
        """Add a section, without a usage if ``bits`` is None. Returns the physical address of its bitmap or 0."""
        usage = 0
        if bits is not None:
            words = -(-self.subsections // 64)
            usage = self.usages[number] = self.allocate(self.bitmap + words * 8 + 32)
            self.put(usage + self.bitmap, *(bits >> 64 * word & (1 << 64) - 1 for word in range(words)))
            self.put(usage + self.bitmap + words * 8, 0x1111_1111_1111_1111)
        self.put(self.entry(number), VMEMMAP | flags)
        self.put(self.entry(number) + self.pointer, virtual(usage) if usage else 0)
        return usage + self.bitmap if usage else 0

    def boot(self) -> range:
        """Add all sections of boot RAM, as after boot; returns their numbers."""
        numbers = range(BASE >> self.section_bits, BASE + self.size >> self.section_bits)
        for number in numbers:
            self.add(number, PRESENT | MAPPED | ONLINE | EARLY, (1 << self.subsections) - 1)
        return numbers

    def note(self) -> dict[str, str]:
        return {
            "SYMBOL(mem_section)": f"{virtual(self.array):x}",
            "LENGTH(mem_section)": str(self.roots),
            "SIZE(mem_section)": str(self.entry_size),
            "OFFSET(mem_section.section_mem_map)": "0",
            "NUMBER(SECTION_SIZE_BITS)": str(self.section_bits),
            "NUMBER(MAX_PHYSMEM_BITS)": str(self.memory_bits),
            "SIZE(page)": "64",
            "OFFSET(page.flags)": "0",
            "OFFSET(page._refcount)": "52",
        }

    def kernel(self) -> KernelLayout:
        return KernelLayout(
            linear_start=LINEAR,
            phys_offset=BASE,
            vmemmap=VMEMMAP,
            struct_page_size=64,
            page_size=self.page_size,
            leaf_levels=frozenset(),
            vmemmap_granule=self.page_size,
            linear_window=AddrRange.sized(LINEAR, 1 << 47),
            vmemmap_window=AddrRange.sized(VMEMMAP, 1 << 40),
        )

    def direct(self) -> DirectMap:
        return direct_map(self.kernel())

    def memory(self) -> PhysicalMemory:
        return PhysicalMemory([Region(piece, self.path) for piece in self.ram])

    def layout(self, **config: str) -> SparseLayout:
        with self.memory() as memory:
            found = sparse_layout(
                self.note(),
                self.kernel(),
                subsection_size=2 * MIB,
                build=Build(CONFIG | config),
                btf=None,
                evidence=BootedMemory(memory, self.direct(), self.ram),
            )
        assert isinstance(found, SparseLayout), found
        return found


def virtual(physical: int) -> int:
    """Linear-map address."""
    return physical - BASE + LINEAR


def recorded_regions(data: Mapping[str, Any], directory: Path) -> list[Region]:
    """The recorded pieces of a guest's memory as files below ``directory``, with holes where nothing was recorded."""
    regions = [Region(AddrRange(*piece), directory / f"memory{index}") for index, piece in enumerate(data["regions"])]
    for region in regions:
        with region.path.open("wb") as file:
            file.truncate(region.range.size)
            for address, text in data["memory"].items():
                if int(address, 16) in region.range:
                    os.pwrite(file.fileno(), bytes.fromhex(text), int(address, 16) - region.range.start)
    return regions


class RecordedGuest:
    """A recorded guest (fixtures/sparse-*/ORIGIN.md), written back into a sparse file."""

    def __init__(self, name: str, directory: Path) -> None:
        self.data: dict[str, Any] = json.loads((FIXTURES / name).read_text())
        self.arch = arch_named(self.data["arch"])
        self.note: dict[str, str] = self.data["note"]
        self.config: dict[str, str] = self.data["config"]
        self.kernel = self.arch.kernel_layout(self.note, None)
        self.ram = tuple(AddrRange(*piece) for piece in self.data["ram"])
        self.regions = recorded_regions(self.data, directory)

    def sparse_layout(self, memory: PhysicalMemory) -> SparseLayout | NotObserved:
        """The guest's tables as described by vmcoreinfo and configuration, without BTF; ``memory`` is open."""
        return sparse_layout(
            self.note,
            self.kernel,
            subsection_size=self.arch.subsection_size,
            build=Build(self.config),
            btf=None,
            evidence=BootedMemory(memory, direct_map(self.kernel), self.ram),
        )

    def mappings(self) -> Iterable[HostMapping]:
        """The recorded part of vmemmap."""
        for start, end, physical, level, *attrs in self.data["vmemmap"]:
            yield HostMapping(AddrRange(start, end), physical, level, tuple(attrs))
