# SPDX-License-Identifier: GPL-2.0-or-later
"""What each architecture does with the kernel's page tables when memory goes, and which parts of them hold still."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.units import AddrRange, align_down

_TOP = 1 << 64


@dataclass(frozen=True, slots=True)
class TableRules:
    """Rules of one architecture; every key is one of the vmcoreinfo note.

    ``preallocates`` tells that every table directly below the root exists from boot on, for all of the linear map's and
    vmemmap's windows, and is never freed; other empty tables are. ``keeps_edges`` tells that a table which reaches
    beyond its window is never freed once it exists; other empty tables are.

    ``volatile`` are the (start, end) keys of ranges that change while a guest does nothing in particular: vmalloc and
    modules. ``image_offset`` is the key of the kernel image's virtual minus physical address; the image lies among the
    former and holds still. ``validity_words`` are the words of a dump that come and go as single pages of the linear
    map are made inaccessible (debug_pagealloc, KFENCE). ``splits`` tells that the linear map's larger leaves are split
    while the kernel runs, where the pages of a module or of BPF code lie whose permissions it changes.

    ``shadow`` is KASAN's shadow memory by note and configuration, None without it; raises KeyError, ValueError. It
    changes whenever memory comes or goes, and takes its place from the linear map's window where it lies in it.
    """

    preallocates: bool
    keeps_edges: bool
    volatile: tuple[tuple[str, str], ...]
    image_offset: str
    validity_words: frozenset[str]
    splits: bool
    shadow: Callable[[Mapping[str, str], Mapping[str, str]], AddrRange | None]


def _arm64_shadow(note: Mapping[str, str], config: Mapping[str, str]) -> AddrRange | None:
    """KASAN_SHADOW_START, arch/arm64/include/asm/memory.h (v6.12)."""
    scale = next((bits for name, bits in (("KASAN_GENERIC", 3), ("KASAN_SW_TAGS", 4)) if name in config), None)
    if scale is None:
        return None
    end = ((1 << 64 - scale) + int(config["KASAN_SHADOW_OFFSET"], 0)) % _TOP
    return AddrRange(end - (1 << 64 - int(note["NUMBER(TCR_EL1_T1SZ)"], 0) - scale), end)


def _riscv64_shadow(note: Mapping[str, str], config: Mapping[str, str]) -> AddrRange | None:
    """KASAN_SHADOW_START, arch/riscv/include/asm/kasan.h (v6.12)."""
    if "KASAN_GENERIC" not in config:
        return None
    bits = int(note["NUMBER(VA_BITS)"])
    end = align_down(_TOP - (4 << 30), 1 << bits - 9)
    return AddrRange(end - (1 << bits - 4), end)


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
    splits=False,
    shadow=_arm64_shadow,
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
    splits=True,
    shadow=_riscv64_shadow,
)
