# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a booted kernel keeps its linear map and vmemmap, from its own vmcoreinfo note."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.units import MIB, AddrRange


@dataclass(frozen=True, slots=True)
class KernelLayout:
    """Virtual layout of one boot.

    ``linear_start`` is the virtual address of physical address ``phys_offset``; ``vmemmap`` the virtual address of
    the struct page of pfn 0 (which may lie below the mapped area); ``struct_page_size`` is bytes. ``leaf_levels`` are
    the levels at which RAM can be mapped: no level that the paging mode folds. ``vmemmap_granule`` is the least that
    populating vmemmap for part of a section maps: a page, or a whole PMD entry.
    """

    linear_start: int
    phys_offset: int
    vmemmap: int
    struct_page_size: int
    page_size: int
    leaf_levels: frozenset[str]
    vmemmap_granule: int

    def linear(self, physical: AddrRange) -> AddrRange:
        """Linear-map addresses of a physical range."""
        return physical.shift(self.linear_start - self.phys_offset)

    def physical(self, linear: AddrRange) -> AddrRange:
        """Physical range behind linear-map addresses."""
        return linear.shift(self.phys_offset - self.linear_start)

    def memmap(self, physical: AddrRange) -> AddrRange:
        """Addresses that populating the struct pages of a physical range maps."""
        first, last = physical.start // self.page_size, physical.end // self.page_size
        exact = AddrRange(self.vmemmap + first * self.struct_page_size, self.vmemmap + last * self.struct_page_size)
        return exact.align_outward(self.vmemmap_granule)


def arm64_layout(note: Mapping[str, str]) -> KernelLayout:
    """arch_crash_save_vmcoreinfo, arch/arm64/kernel/vmcore_info.c (v6.12); raises KeyError for a missing key."""
    return KernelLayout(
        linear_start=(1 << 64) - (1 << int(note["NUMBER(VA_BITS)"])),
        phys_offset=int(note["NUMBER(PHYS_OFFSET)"], 0),
        vmemmap=int(note["SYMBOL(vmemmap)"], 16),
        struct_page_size=int(note["SIZE(page)"]),
        page_size=int(note["PAGESIZE"]),
        leaf_levels=frozenset({"PTE", "PMD", "PUD"}),
        # vmemmap_populate, arch/arm64/mm/mmu.c (v6.12): by pages where a section is partial
        vmemmap_granule=int(note["PAGESIZE"]),
    )


#: best_map_size, arch/riscv/mm/init.c (v6.12): the level above the root's is never a leaf
_SATP_LEAVES = {39: ("PTE", "PMD"), 48: ("PTE", "PMD", "PUD"), 57: ("PTE", "PMD", "PUD", "P4D")}


def riscv64_layout(note: Mapping[str, str]) -> KernelLayout:
    """arch_crash_save_vmcoreinfo, arch/riscv/kernel/vmcore_info.c (v6.12); raises KeyError for a missing key."""
    return KernelLayout(
        linear_start=int(note["NUMBER(PAGE_OFFSET)"], 0),
        phys_offset=int(note["NUMBER(phys_ram_base)"], 0),
        vmemmap=int(note["SYMBOL(vmemmap)"], 16),
        struct_page_size=int(note["SIZE(page)"]),
        page_size=int(note["PAGESIZE"]),
        leaf_levels=frozenset(_SATP_LEAVES[int(note["NUMBER(VA_BITS)"])]),
        # vmemmap_populate, arch/riscv/mm/init.c (v6.12): by PMD entries whatever the size
        vmemmap_granule=2 * MIB,
    )
