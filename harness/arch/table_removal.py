# SPDX-License-Identifier: GPL-2.0-or-later
"""What each architecture does with the kernel's page tables on memory removal, and which parts of them are stable."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TableRules:
    """Rules of one architecture; every key is one of the vmcoreinfo note.

    ``preallocates``: every table directly below the root exists from boot on, for the whole windows of the linear map
    and vmemmap, and is never freed; other empty tables are. ``keeps_edges``: a table that reaches beyond its window is
    never freed once it exists; other empty tables are.

    ``volatile`` are the (start, end) keys of ranges that change at any time: vmalloc and modules. ``image_offset`` is
    the key of the kernel image's virtual minus physical address; the image lies inside the former and is stable.
    ``validity_words`` are the words of a dump that change when single pages of the linear map become inaccessible
    (debug_pagealloc, KFENCE).
    """

    preallocates: bool
    keeps_edges: bool
    volatile: tuple[tuple[str, str], ...]
    image_offset: str
    validity_words: frozenset[str]


_VMALLOC = ("NUMBER(VMALLOC_START)", "NUMBER(VMALLOC_END)")
_MODULES = ("NUMBER(MODULES_VADDR)", "NUMBER(MODULES_END)")

# arch/arm64/mm/mmu.c: free_empty_tables with the window as floor and ceiling (pgtable_range_aligned);
# arch/arm64/mm/pageattr.c: set_memory_valid, PTE_PRESENT_INVALID is nG's bit (v6.12)
ARM64_TABLE_RULES = TableRules(
    preallocates=False,
    keeps_edges=True,
    volatile=(_VMALLOC, _MODULES),
    image_offset="NUMBER(kimage_voffset)",
    validity_words=frozenset({"F", "NG"}),
)
# arch/riscv/mm/init.c: preallocate_pgd_pages_range; remove_{pud,p4d}_mapping free a table only where the level
# above it is not folded, remove_pgd_mapping frees none; arch/riscv/mm/pageattr.c: __kernel_map_pages,
# split_linear_mapping (v6.12)
RISCV64_TABLE_RULES = TableRules(
    preallocates=True,
    keeps_edges=False,
    volatile=(_VMALLOC, _MODULES),
    image_offset="NUMBER(va_kernel_pa_offset)",
    validity_words=frozenset({"V"}),
)
