# SPDX-License-Identifier: GPL-2.0-or-later
"""A page-table walk entry by entry, the reference for the real one; and vmcoreinfo notes of all table formats."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.arch.pagetable import TableFormat, TableLevel
from harness.arch.pagetable_arm64 import arm64_tables
from harness.arch.pagetable_riscv64 import riscv64_tables
from harness.kmem.physical_memory import PhysicalMemory, Region
from harness.state import HostMapping, TablePage
from harness.units import AddrRange

TOP = 1 << 64
BASE = 0x4000_0000
KIB = 1 << 10


def arm64_note(bits: int, used: int | None = None, physical: int = 48, root: int = BASE) -> dict[str, str]:
    voffset = 0xFFFF_8000_0000_0000
    return {
        "OSRELEASE": "6.12.107",
        "NUMBER(VA_BITS)": str(bits),
        "NUMBER(TCR_EL1_T1SZ)": hex(64 - (used or bits)),
        "NUMBER(MAX_PHYSMEM_BITS)": str(physical),
        "NUMBER(VMEMMAP_END)": hex(TOP - (1 << 30)),
        "NUMBER(kimage_voffset)": hex(voffset),
        "SYMBOL(swapper_pg_dir)": f"{voffset + root:x}",
    }


def riscv64_note(bits: int, root: int = BASE) -> dict[str, str]:
    return {
        "OSRELEASE": "6.12.107",
        "NUMBER(VA_BITS)": str(bits),
        "NUMBER(va_kernel_pa_offset)": "0xffffffff00000000",
        "SYMBOL(swapper_pg_dir)": f"{0xFFFF_FFFF_0000_0000 + root:x}",
    }


#: every geometry that a kernel can be built for or can fall back to
FORMATS: Mapping[str, TableFormat] = {
    "arm64-4k-39": arm64_tables(arm64_note(39), 4 * KIB),
    "arm64-4k-48": arm64_tables(arm64_note(48), 4 * KIB),
    "arm64-4k-52": arm64_tables(arm64_note(52, physical=52), 4 * KIB),
    "arm64-4k-52-on-48": arm64_tables(arm64_note(52, 48, physical=52), 4 * KIB),
    "arm64-16k-36": arm64_tables(arm64_note(36), 16 * KIB),
    "arm64-16k-47": arm64_tables(arm64_note(47), 16 * KIB),
    "arm64-16k-48": arm64_tables(arm64_note(48), 16 * KIB),
    "arm64-16k-52": arm64_tables(arm64_note(52, physical=52), 16 * KIB),
    "arm64-16k-52-on-47": arm64_tables(arm64_note(52, 47, physical=52), 16 * KIB),
    "arm64-64k-42": arm64_tables(arm64_note(42), 64 * KIB),
    "arm64-64k-48": arm64_tables(arm64_note(48), 64 * KIB),
    "arm64-64k-52": arm64_tables(arm64_note(52, physical=52), 64 * KIB),
    "arm64-64k-52-on-48": arm64_tables(arm64_note(52, 48, physical=48), 64 * KIB),
    "riscv64-sv39": riscv64_tables(riscv64_note(39), 4 * KIB),
    "riscv64-sv48": riscv64_tables(riscv64_note(48), 4 * KIB),
    "riscv64-sv57": riscv64_tables(riscv64_note(57), 4 * KIB),
}


@contextmanager
def memory_of(words: NDArray[np.uint64], base: int = BASE) -> Iterator[PhysicalMemory]:
    """A guest with ``words`` as its only memory."""
    with tempfile.NamedTemporaryFile(prefix="memhp-walk-") as file:
        file.write(words.astype("<u8").tobytes())
        file.flush()
        with PhysicalMemory([Region(AddrRange.sized(base, words.nbytes), Path(file.name))]) as memory:
            yield memory


class Oracle:
    """Walks ``words``, which are the memory from ``base`` on, using only integers and loops."""

    def __init__(self, tables: TableFormat, words: NDArray[np.uint64], base: int = BASE) -> None:
        self.tables = tables
        self.leaves: list[HostMapping] = []
        self.pages: list[TablePage] = []
        #: (table, index, reason) of rules and pointers; contiguous groups are kept separately, as (level, group number)
        self.faults: set[tuple[int, int, str]] = set()
        self.groups: set[tuple[int, int]] = set()
        self.content = {
            base + number * tables.page_size: row
            for number, row in enumerate(words.reshape(-1, tables.page_size // 8).tolist())
        }
        self.walk()

    def walk(self) -> None:
        page = self.tables.root - self.tables.root % self.tables.page_size
        met = {page}
        first = (self.tables.root - page) // 8
        todo = [
            (self.tables.root, self.tables.start, self.content[page][first : first + self.tables.levels[0].entries])
        ]
        for depth, level in enumerate(self.tables.levels):
            below: list[tuple[int, int, list[int]]] = []
            for address, start, row in todo:
                used = sum(entry != 0 for entry in row)
                span = TOP if depth == 0 and self.tables.both_halves else level.table_span
                self.pages.append(TablePage(address, level.name, AddrRange(start, start + span), used))
                self.groups_of(depth, level, start, row)
                for index, entry in enumerate(row):
                    virtual = start + (index << level.shift)
                    if depth == 0 and self.tables.both_halves and index >= len(row) // 2:
                        virtual += TOP - (1 << self.tables.va_bits)
                    child = self.entry(depth, level, address, index, entry, virtual)
                    if child is None:
                        continue
                    if child not in self.content:
                        self.faults.add((address, index, "leads to a table outside of memory"))
                    elif child in met:
                        self.faults.add((address, index, "leads to a table that is reachable another way too"))
                    else:
                        below.append((child, virtual, self.content[child]))
                        met.add(child)
            todo = below
        self.leaves.sort(key=lambda leaf: leaf.range.start)
        self.pages.sort(key=lambda item: item.range.start)

    def entry(self, depth: int, level: TableLevel, table: int, index: int, entry: int, virtual: int) -> int | None:
        """Record ``entry``; return the address of the table that it points to, None if it is no table entry."""
        if entry == 0:
            return None
        tables, last = self.tables, depth == len(self.tables.levels) - 1
        leaf = entry & (tables.attributes if last else tables.leaf)
        if not last and entry & tables.table[0] == tables.table[1]:
            rules, child = level.table_rules, tables.physical(entry)
        elif leaf and (level.leaves or last):
            rules, child = level.leaf_rules, None
            where = tables.physical(entry)
            if tables.napot and level.group and entry & tables.contiguous:
                where = where - where % (16 * tables.page_size) + virtual % (16 * tables.page_size)
            words = tables.words(entry)
            self.leaves.append(HostMapping(AddrRange.sized(virtual, level.entry_span), where, level.leaf_name, words))
        else:
            what = "a mapping at a level that has none" if leaf else "neither empty, nor a table, nor a mapping"
            self.faults.add((table, index, what))
            return None
        for rule in rules:
            masked = entry & rule.mask
            if masked == rule.value or (rule.value is None and masked):
                self.faults.add((table, index, rule.reason))
        return child

    def groups_of(self, depth: int, level: TableLevel, start: int, row: list[int]) -> None:
        if not level.group:
            return
        tables, last = self.tables, depth == len(self.tables.levels) - 1
        ignored = tables.group_ignores | sum(mask for mask, _ in tables.address)
        for first in range(0, len(row), level.group):
            group = row[first : first + level.group]
            if not any(group):
                continue
            hinted = [
                entry & tables.contiguous != 0
                and (last or entry & tables.table[0] != tables.table[1])
                and (last or entry & tables.leaf != 0)
                for entry in group
            ]
            if not any(hinted):
                continue
            if tables.napot:
                even = len(set(group)) == 1
            else:
                base = tables.physical(group[0])
                even = (
                    all(hinted)
                    and base % (level.group * level.entry_span) == 0
                    and len({entry & ~ignored for entry in group}) == 1
                    and all(tables.physical(e) == base + n * level.entry_span for n, e in enumerate(group))
                )
            if not even:
                self.groups.add((depth, (start >> level.shift) + first))

    def runs(self) -> list[HostMapping]:
        """The leaves, merged one by one."""
        out: list[HostMapping] = []
        for leaf in self.leaves:
            before = out[-1] if out else None
            if (
                before is not None
                and (before.range.end, before.physical + before.range.size) == (leaf.range.start, leaf.physical)
                and (before.level, before.attrs) == (leaf.level, leaf.attrs)
            ):
                out[-1] = HostMapping(
                    AddrRange(before.range.start, leaf.range.end), before.physical, leaf.level, leaf.attrs
                )
            else:
                out.append(leaf)
        return out
