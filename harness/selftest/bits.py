# SPDX-License-Identifier: GPL-2.0-or-later
"""The corruptions of each architecture's page-table entries, and of its dump."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BitChange:
    """A change of an entry: bits are cleared, then set, then toggled."""

    clear: int = 0
    set: int = 0
    flip: int = 0

    def of(self, entry: int) -> int:
        """``entry`` after the change."""
        return (entry & ~self.clear | self.set) ^ self.flip


@dataclass(frozen=True, slots=True)
class ArchBits:
    """One architecture's share of the corruptions.

    ``leaf`` has changes of a mapping by name, without those that the architecture lacks; ``table`` those of an entry
    that points to a table. ``page`` turns a mapping of a higher level into one of the lowest, ``block`` the reverse.
    ``junk`` is an entry above the lowest level that is neither empty, nor a table, nor a mapping. ``dump`` has edits of
    a line of /sys/kernel/debug/kernel_page_tables by name: a regular expression, and its replacement.
    """

    leaf: Mapping[str, BitChange]
    table: Mapping[str, BitChange]
    page: BitChange
    block: BitChange
    junk: int
    dump: Mapping[str, tuple[str, str]]


_ARM64 = ArchBits(
    # arch/arm64/include/asm/pgtable-hwdef.h, pgtable-prot.h, memory.h (MT_*) (v6.12)
    leaf={
        "read-only": BitChange(set=1 << 7),
        "writable": BitChange(clear=1 << 7),
        "executable": BitChange(clear=1 << 53),
        "not-executable": BitChange(set=1 << 53),
        "uncached": BitChange(clear=7 << 2, set=2 << 2),
        "device-memory": BitChange(clear=7 << 2, set=3 << 2),
        "untagged": BitChange(clear=7 << 2),
        "unknown-memory-type": BitChange(set=7 << 2),
        "not-accessed": BitChange(clear=1 << 10),
        "other-address-space": BitChange(flip=1 << 11),
        "not-shareable": BitChange(clear=3 << 8),
        "user-executable": BitChange(clear=1 << 54),
        "guarded": BitChange(flip=1 << 50),
        "user-accessible": BitChange(set=1 << 6),
        "not-valid": BitChange(clear=1 << 0, set=1 << 11),
        "no-page": BitChange(clear=1 << 1),
    },
    table={},
    page=BitChange(set=1 << 1),
    block=BitChange(clear=1 << 1),
    junk=1 << 55,
    dump={
        "read-only": (r" RW ", " ro "),
        "executable": (r" RW NX ", " RW x  "),
        "untagged": (r"MEM/NORMAL-TAGGED", "MEM/NORMAL"),
        "uncached": (r"MEM/NORMAL(-TAGGED)?", "MEM/NORMAL-NC"),
        "contiguous-lost": (r" CON ", "     "),
        "not-accessed": (r" AF ", "    "),
        # Unmapped ranges have a line, too (note_page, mm/ptdump.c).
        "gone": (r"^(0x\S+ +\S+ \w+).*$", r"\1"),
    },
)

_RISCV64 = ArchBits(
    # arch/riscv/include/asm/pgtable-bits.h, pgtable-64.h (v6.12)
    leaf={
        "read-only": BitChange(clear=1 << 2),
        "writable": BitChange(set=1 << 2),
        "executable": BitChange(set=1 << 3),
        "not-executable": BitChange(clear=1 << 3),
        "write-only": BitChange(clear=1 << 1),
        "uncached": BitChange(set=1 << 61),
        "device-memory": BitChange(set=2 << 61),
        "unknown-memory-type": BitChange(set=3 << 61),
        "not-accessed": BitChange(clear=1 << 6),
        "not-dirty": BitChange(clear=1 << 7),
        "other-address-space": BitChange(flip=1 << 5),
        "user-accessible": BitChange(set=1 << 4),
        "software-bits": BitChange(flip=1 << 8),
        "not-valid": BitChange(clear=1 << 0),
        "no-page": BitChange(clear=7 << 1),
        "group-of-no-size": BitChange(set=1 << 63 | 3 << 10),
    },
    table={"accessed": BitChange(set=1 << 6), "memory-type": BitChange(set=1 << 61)},
    page=BitChange(),
    block=BitChange(),
    junk=1 << 10,
    dump={
        "read-only": (r" W R V$", " . R V"),
        "executable": (r" \. W R V$", " X W R V"),
        "uncached": (r"  \.\.  ", "MT(NC)"),
        "not-accessed": (r" D A ", " D . "),
        "gone": (r"^.*\n", ""),
    },
)

#: by the architecture's name
BITS: Mapping[str, ArchBits] = {"arm64": _ARM64, "riscv64": _RISCV64}
