# SPDX-License-Identifier: GPL-2.0-or-later
"""arm64's kernel page tables: arch/arm64/include/asm/pgtable{,-hwdef,-prot}.h and arch/arm64/mm/ptdump.c (v6.12)."""

from __future__ import annotations

from collections.abc import Mapping

from harness.arch.kernel_layout import has_regions_above_vmemmap
from harness.arch.modes import arm64_bits
from harness.arch.pagetable import ENTRY_SIZE, EntryRule, TableFormat, TableLevel, level_names
from harness.units import TOP

_VALID, _TABLE_BIT, _USER = 1 << 0, 1 << 1, 1 << 6
_RDONLY, _SHARED, _AF, _NG = 1 << 7, 3 << 8, 1 << 10, 1 << 11
_GP, _CONT, _PXN, _UXN = 1 << 50, 1 << 52, 1 << 53, 1 << 54
_INDEX_SHIFT, _INDEX = 2, 7 << 2
#: software bits: dirty, special, devmap, userfaultfd and bit 63 (PTE_SWBITS_MASK)
_SOFTWARE = 1 << 63 | 0xF << 55

#: PTE_PRESENT_INVALID is the bit of nG (v6.12): an invalid entry is only a mapping with this bit
_PRESENT = _VALID | _NG

#: ptdump's columns: mask, word if all its bits are set, word if not
_COLUMNS = (
    (_VALID, "", "F"),
    (_USER, "USR", ""),
    (_RDONLY, "ro", "RW"),
    (_PXN, "NX", "x"),
    (_SHARED, "SHD", ""),
    (_AF, "AF", ""),
    (_NG, "NG", ""),
    (_CONT, "CON", ""),
    (_TABLE_BIT, "", "BLK"),
    (_UXN, "UXN", ""),
    (_GP, "GP", ""),
)
#: by MAIR index: MT_*, arch/arm64/include/asm/memory.h (v6.12); 5 to 7 are free
_MEMORY_TYPES = ("MEM/NORMAL", "MEM/NORMAL-TAGGED", "MEM/NORMAL-NC", "DEVICE/nGnRnE", "DEVICE/nGnRE")

_ATTRIBUTES = _INDEX
for _mask, _, _ in _COLUMNS:
    _ATTRIBUTES |= _mask

#: entries with one contiguous hint, by page size: CONT_PTES, CONT_PMDS; level 1 has it with 4K pages only
_GROUPS = {12: {"PTE": 16, "PMD": 16, "PUD": 16}, 14: {"PTE": 128, "PMD": 32}, 16: {"PTE": 32, "PMD": 32}}


def arm64_words(entry: int) -> tuple[str, ...]:
    """The words that ptdump prints for ``entry``, in its order (pte_bits, arch/arm64/mm/ptdump.c, v6.12)."""
    words = [word for mask, full, rest in _COLUMNS if (word := full if entry & mask == mask else rest)]
    index = (entry & _INDEX) >> _INDEX_SHIFT
    return (*words, *_MEMORY_TYPES[index : index + 1])


def arm64_tables(note: Mapping[str, str], page_size: int) -> TableFormat:
    """init_mm's tables of the boot whose vmcoreinfo is ``note``.

    A kernel for 52-bit addresses falls back to 48 (47 with 16K pages) on hardware with fewer; TCR_EL1_T1SZ shows it.
    If that removes a level, the root is used as a table of the next level (early_map_kernel,
    arch/arm64/kernel/pi/map_kernel.c, v6.9 on), otherwise only its last entries are used. 4K and 16K pages with 52-bit
    addresses imply LPA2 descriptors (ARM64_LPA2, arch/arm64/Kconfig), 64K pages with 52-bit physical addresses LPA's.

    Raises KeyError if the note lacks a key, ValueError for values that no kernel has.
    """
    shift = page_size.bit_length() - 1
    if page_size not in (1 << 12, 1 << 14, 1 << 16):
        raise ValueError(f"invalid page size for arm64: {page_size} bytes")
    configured = int(note["NUMBER(VA_BITS)"])
    used = arm64_bits(note)
    if not 36 <= used <= configured <= 52:
        raise ValueError(f"{used} bits of virtual addresses where the kernel has {configured}")
    count = _level_count(used, shift)
    bits = used if count != _level_count(configured, shift) else configured
    large = int(note["NUMBER(MAX_PHYSMEM_BITS)"]) > 48
    address, reserved = _address(shift, lpa=large and shift == 16, lpa2=used > 48 and shift < 16)
    # ptdump then begins with the addresses in use, and names a block in a folded PMD a PMD.
    recent = has_regions_above_vmemmap(note)
    root = int(note["SYMBOL(swapper_pg_dir)"], 16) - int(note["NUMBER(kimage_voffset)"], 0)
    entries = 1 << bits - (shift + (count - 1) * (shift - 3))
    if not 0 <= root < 1 << 52 or root % (entries * ENTRY_SIZE):
        raise ValueError(f"invalid physical address of the kernel's root table: {root:#x}")
    return TableFormat(
        page_size=page_size,
        root=root,
        start=TOP - (1 << bits),
        va_bits=bits,
        both_halves=False,
        levels=_levels(count, shift, entries, reserved, pmd_is_named=recent),
        table=(_VALID | _TABLE_BIT, _VALID | _TABLE_BIT),
        leaf=_PRESENT,
        valid=_VALID,
        attributes=_ATTRIBUTES,
        address=address,
        contiguous=_CONT,
        napot=False,
        group_ignores=_SOFTWARE | _AF,
        words=arm64_words,
        dump_start=TOP - (1 << (used if recent else configured)),
    )


def _level_count(bits: int, page_shift: int) -> int:
    # ARM64_HW_PGTABLE_LEVELS
    return (bits - 4) // (page_shift - 3)


def _address(shift: int, *, lpa: bool, lpa2: bool) -> tuple[tuple[tuple[int, int], ...], int]:
    """The position of the physical address in an entry, and the bits that must be zero."""
    below_page = (1 << shift) - (1 << 12)
    if lpa2:
        return (((1 << 50) - (1 << shift), 0), (3 << 8, 42)), below_page
    low = ((1 << 48) - (1 << shift), 0)
    if lpa:
        return (low, (0xF << 12, 36)), 3 << 48
    return (low,), 3 << 48 | below_page


def _levels(count: int, shift: int, root_entries: int, reserved: int, *, pmd_is_named: bool) -> tuple[TableLevel, ...]:
    levels = []
    for depth, name in enumerate(level_names(count)):
        number = 4 - count + depth
        span = shift + (3 - number) * (shift - 3)
        # Level 1 is the PUD even if it is folded into the PGD; blocks there need 4K pages (pud_sect_supported).
        leaves = number >= 2 or (number == 1 and shift == 12)
        own = {3: "PTE", 2: "PMD", 1: "PUD"}.get(number, name)
        levels.append(
            TableLevel(
                name=name,
                leaf_name="PMD" if number == 2 and pmd_is_named else name,
                shift=span,
                entries=1 << (shift - 3) if depth else root_entries,
                leaves=leaves,
                group=_GROUPS[shift].get(own, 0) if leaves else 0,
                leaf_rules=_leaf_rules(number, shift, span, reserved),
                table_rules=(EntryRule(reserved, None, "reserved bits are set"),),
            )
        )
    return tuple(levels)


def _leaf_rules(number: int, shift: int, span: int, reserved: int) -> tuple[EntryRule, ...]:
    free = "a memory type that the kernel does not use"
    rules = [
        EntryRule(reserved, None, "reserved bits are set"),
        EntryRule(_USER, None, "user mode has access"),
        EntryRule(4 << _INDEX_SHIFT | 1 << _INDEX_SHIFT, 4 << _INDEX_SHIFT | 1 << _INDEX_SHIFT, free),
        EntryRule(4 << _INDEX_SHIFT | 2 << _INDEX_SHIFT, 4 << _INDEX_SHIFT | 2 << _INDEX_SHIFT, free),
    ]
    if number == 3:
        rules.append(EntryRule(_TABLE_BIT, 0, "not the descriptor of a page"))
    else:
        rules.append(EntryRule((1 << min(span, 48)) - (1 << shift), None, "the output address is not aligned"))
    return tuple(rules)
