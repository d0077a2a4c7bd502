# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted kernel's linear map and vmemmap, from its own vmcoreinfo note."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.arch.modes import riscv64_bits, va_bits_min
from harness.units import GIB, MIB, TOP, AddrRange, align_down


@dataclass(frozen=True, slots=True)
class KernelLayout:
    """Virtual layout of one boot.

    ``linear_start`` is the virtual address of physical address ``phys_offset`` (which may be negative); ``vmemmap`` the
    virtual address of the struct page of pfn 0 (which may lie below the mapped area); ``struct_page_size`` is bytes.
    ``leaf_levels`` are the levels at which RAM can be mapped, without folded levels.
    ``vmemmap_granule`` is the smallest size that populating vmemmap for part of a section maps: a page, or a PMD entry.
    ``linear_window`` and ``vmemmap_window`` are the virtual ranges set aside for the two, most of them not mapped:
    KASAN's shadow is no part of either.
    """

    linear_start: int
    phys_offset: int
    vmemmap: int
    struct_page_size: int
    page_size: int
    leaf_levels: frozenset[str]
    vmemmap_granule: int
    linear_window: AddrRange
    vmemmap_window: AddrRange

    def linear(self, physical: AddrRange) -> AddrRange:
        """Linear-map addresses of a physical range."""
        return physical.shift(self.linear_start - self.phys_offset)

    def physical(self, linear: AddrRange) -> AddrRange:
        """Physical range behind linear-map addresses."""
        return linear.shift(self.phys_offset - self.linear_start)

    def memmap(self, physical: AddrRange) -> AddrRange:
        """Addresses that populating the struct pages of a physical range maps."""
        return self.struct_pages(physical).align_outward(self.vmemmap_granule)

    def struct_pages(self, physical: AddrRange) -> AddrRange:
        """Addresses of the struct pages of a physical range."""
        first, last = physical.start // self.page_size, physical.end // self.page_size
        return AddrRange(self.vmemmap + first * self.struct_page_size, self.vmemmap + last * self.struct_page_size)


def _vmemmap_window(note: Mapping[str, str]) -> AddrRange:
    return AddrRange(int(note["NUMBER(VMEMMAP_START)"], 0), int(note["NUMBER(VMEMMAP_END)"], 0))


def has_regions_above_vmemmap(note: Mapping[str, str]) -> bool:
    """True if an arm64 kernel keeps its fixmap and PCI's I/O ports above vmemmap, which then ends a GiB below the top.

    So it is since v6.9 (b730b0f2b1fc, 031e011d8b22, 32697ff38287). The same series taught ptdump levels and address
    bits that are known only when the kernel runs. Raises KeyError, ValueError.
    """
    return int(note["NUMBER(VMEMMAP_END)"], 0) == TOP - GIB


def arm64_page_end(note: Mapping[str, str], shadow: AddrRange | None) -> int:
    """PAGE_END, arch/arm64/include/asm/memory.h (v6.1 to v7.3): where KASAN's ``shadow`` begins, None without it.

    Without it, the part that 52-bit kernels share with lesser hardware ends there. Raises KeyError.
    """
    least = va_bits_min(int(note["NUMBER(VA_BITS)"]), int(note["PAGESIZE"]))
    return shadow.start if shadow is not None else TOP - (1 << least - 1)


def arm64_layout(note: Mapping[str, str], shadow: AddrRange | None) -> KernelLayout:
    """arch_crash_save_vmcoreinfo, arch/arm64/kernel/vmcore_info.c (v6.12); raises KeyError for a missing key."""
    bits = int(note["NUMBER(VA_BITS)"])
    start = TOP - (1 << bits)
    page_size, page = int(note["PAGESIZE"]), int(note["SIZE(page)"])
    # A 52-bit kernel on 48-bit hardware moves its linear map down: PHYS_OFFSET is negative then.
    offset = int(note["NUMBER(PHYS_OFFSET)"], 0)
    offset -= TOP if offset >> 63 else 0
    window = _vmemmap_window(note)
    if "SYMBOL(vmemmap)" in note:
        vmemmap = int(note["SYMBOL(vmemmap)"], 16)
    else:
        # vmemmap, arch/arm64/include/asm/pgtable.h; in the note since v6.9
        vmemmap = window.start - offset // page_size * page
    return KernelLayout(
        linear_start=start,
        phys_offset=offset,
        vmemmap=vmemmap,
        struct_page_size=page,
        page_size=page_size,
        leaf_levels=frozenset({"PTE", "PMD", "PUD"}),
        # vmemmap_populate, arch/arm64/mm/mmu.c (v6.12): by pages where a section is partial
        vmemmap_granule=page_size,
        linear_window=AddrRange(start, arm64_page_end(note, shadow)),
        # The same kernel places its vmalloc area in the lower part of the vmemmap range for 52 bits.
        vmemmap_window=AddrRange(max(window.start, int(note["NUMBER(VMALLOC_END)"], 0)), window.end),
    )


#: best_map_size, arch/riscv/mm/init.c (v6.12): the level above the root's is never a leaf
_SATP_LEAVES = {39: ("PTE", "PMD"), 48: ("PTE", "PMD", "PUD"), 57: ("PTE", "PMD", "PUD", "P4D")}


def riscv64_shadow(note: Mapping[str, str]) -> AddrRange:
    """KASAN_SHADOW_START and KASAN_SHADOW_END, arch/riscv/include/asm/kasan.h (v6.1 to v7.3).

    There with KASAN or without: its end is MODULES_LOWEST_VADDR, where no KASLR has moved it, and it takes an eighth of
    the kernel's half, from the start of an entry of the root table on. Raises KeyError.
    """
    bits = riscv64_bits(note)
    end = int(note["NUMBER(KERNEL_LINK_ADDR)"], 0) - 2 * GIB
    return AddrRange(align_down(end - (1 << bits - 4), 1 << bits - 9), end)


def riscv64_layout(note: Mapping[str, str], shadow: AddrRange | None) -> KernelLayout:
    """arch_crash_save_vmcoreinfo, arch/riscv/kernel/vmcore_info.c (v6.12); raises KeyError for a missing key."""
    bits, start = riscv64_bits(note), int(note["NUMBER(PAGE_OFFSET)"], 0)
    return KernelLayout(
        linear_start=start,
        phys_offset=int(note["NUMBER(phys_ram_base)"], 0),
        vmemmap=int(note["SYMBOL(vmemmap)"], 16),
        struct_page_size=int(note["SIZE(page)"]),
        page_size=int(note["PAGESIZE"]),
        leaf_levels=frozenset(_SATP_LEAVES[bits]),
        # vmemmap_populate, arch/riscv/mm/init.c (v6.12): by PMD entries whatever the size
        vmemmap_granule=2 * MIB,
        # PAGE_END, arch/riscv/mm/init.c (v6.12), with KASAN or without
        linear_window=AddrRange(start, riscv64_shadow(note).start),
        vmemmap_window=_vmemmap_window(note),
    )
