# SPDX-License-Identifier: GPL-2.0-or-later
"""riscv64's kernel page tables: arch/riscv/include/asm/pgtable{,-bits,-64}.h and arch/riscv/mm/ptdump.c (v6.12)."""

from __future__ import annotations

from collections.abc import Mapping

from harness.arch.modes import riscv64_bits
from harness.arch.pagetable import EntryRule, TableFormat, TableLevel, level_names
from harness.units import TOP

_PAGE_SHIFT, _ENTRIES = 12, 512
_V, _R, _W, _X, _U, _G, _A, _D = (1 << bit for bit in range(8))
_SOFT_SHIFT, _SOFT = 8, 3 << 8
_PFN_SHIFT = 10
_PFN = (1 << 54) - (1 << _PFN_SHIFT)
_RESERVED = (1 << 61) - (1 << 54)
_PBMT_SHIFT, _PBMT = 61, 3 << 61
_N = 1 << 63
_LEAF = _R | _W | _X

#: Svpbmt's memory types as ptdump prints them
_MEMORY_TYPES = ("", "MT(NC)", "MT(IO)", "MT(??)")
_COLUMNS = ((_D, "D"), (_A, "A"), (_G, "G"), (_U, "U"), (_X, "X"), (_W, "W"), (_R, "R"), (_V, "V"))
#: entries in a group of 64 KiB, the only size of Svnapot
_NAPOT_ENTRIES = 16


def riscv64_words(entry: int) -> tuple[str, ...]:
    """The words that ptdump prints for ``entry``, in its order (dump_prot, arch/riscv/mm/ptdump.c, v6.12)."""
    soft = (entry & _SOFT) >> _SOFT_SHIFT
    words = [
        "N" if entry & _N else "",
        _MEMORY_TYPES[(entry & _PBMT) >> _PBMT_SHIFT],
        f"RSW({soft})" if soft else "",
        *(word for bit, word in _COLUMNS if entry & bit),
    ]
    return tuple(filter(None, words))


def riscv64_tables(note: Mapping[str, str], page_size: int) -> TableFormat:
    """init_mm's tables of the boot whose vmcoreinfo is ``note``.

    VA_BITS is that of the mode in satp: 39, 48 or 57. The root lies in the kernel's image, whose address is in
    va_kernel_pa_offset since v6.3, except for XIP kernels. T-Head's own memory types, in bits 59 to 63, are not
    supported. Raises KeyError if the note lacks a key, ValueError for values that no kernel has.
    """
    if page_size != 1 << _PAGE_SHIFT:
        raise ValueError(f"invalid page size for riscv64: {page_size} bytes")
    bits = riscv64_bits(note)
    if bits not in (39, 48, 57):
        raise ValueError(f"riscv64 has no paging mode of {bits} bits")
    root = (int(note["SYMBOL(swapper_pg_dir)"], 16) - int(note["NUMBER(va_kernel_pa_offset)"], 0)) % TOP
    if root >= 1 << 56 or root % page_size:
        raise ValueError(f"invalid physical address of the kernel's root table: {root:#x}")
    return TableFormat(
        page_size=page_size,
        root=root,
        start=0,
        va_bits=bits,
        both_halves=True,
        levels=_levels((bits - _PAGE_SHIFT) // 9),
        table=(_V | _LEAF, _V),
        leaf=_LEAF,
        valid=_V,
        attributes=_N | _PBMT | _SOFT | 0xFF,
        address=((_PFN, _PAGE_SHIFT - _PFN_SHIFT),),
        contiguous=_N,
        napot=True,
        group_ignores=0,
        words=riscv64_words,
        dump_start=TOP - (1 << bits - 1),
    )


def _levels(count: int) -> tuple[TableLevel, ...]:
    shifts = [_PAGE_SHIFT + 9 * height for height in reversed(range(count))]
    return tuple(
        TableLevel(
            name=name,
            leaf_name=name,
            shift=shift,
            entries=_ENTRIES,
            leaves=True,
            group=_NAPOT_ENTRIES if shift == _PAGE_SHIFT else 0,
            leaf_rules=_leaf_rules(shift),
            table_rules=(
                EntryRule(_RESERVED | _PBMT | _N, None, "reserved bits are set"),
                EntryRule(_D | _A | _U, None, "bits of a mapping are set"),
            ),
        )
        for name, shift in zip(level_names(count), shifts, strict=True)
    )


def _leaf_rules(shift: int) -> tuple[EntryRule, ...]:
    rules = [
        EntryRule(_RESERVED, None, "reserved bits are set"),
        EntryRule(_U, None, "user mode has access"),
        EntryRule(_W | _R, _W, "writable, but not readable"),
        EntryRule(_PBMT, _PBMT, "a reserved memory type"),
    ]
    if shift > _PAGE_SHIFT:
        rules += [
            EntryRule(_N, None, "reserved bits are set"),
            EntryRule((1 << shift - _PAGE_SHIFT + _PFN_SHIFT) - (1 << _PFN_SHIFT), None, _UNALIGNED),
        ]
        return tuple(rules)
    rules.append(EntryRule(_V | _LEAF, _V, "not the entry of a page"))
    # Svnapot: the lowest four bits of the page number encode 64 KiB; no other size is defined.
    rules += [EntryRule(_N | 1 << bit, _N | 1 << bit, _NO_GROUP) for bit in range(_PFN_SHIFT, _PFN_SHIFT + 3)]
    rules.append(EntryRule(_N | 8 << _PFN_SHIFT, _N, _NO_GROUP))
    return tuple(rules)


_UNALIGNED = "the output address is not aligned"
_NO_GROUP = "the size of its contiguous group is reserved"
