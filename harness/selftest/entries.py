# SPDX-License-Identifier: GPL-2.0-or-later
"""Single entries of a guest's page tables: their address and content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.arch.pagetable import ENTRY_SIZE, TableFormat, TableLevel
from harness.units import AddrRange, align_down

#: reads the 64-bit word at a physical address
ReadWord = Callable[[int], int]


@dataclass(frozen=True, slots=True)
class Place:
    """Entry ``index`` of the table at physical ``table``, ``depth`` levels below the root.

    ``range`` are the virtual addresses it spans, ``entry`` its content.
    """

    depth: int
    level: TableLevel
    table: int
    index: int
    range: AddrRange
    entry: int

    @property
    def address(self) -> int:
        """Its physical address."""
        return self.table + self.index * ENTRY_SIZE

    def __str__(self) -> str:
        return f"{self.level.name} entry of virtual {self.range}"


def locate(read: ReadWord, tables: TableFormat, address: int) -> tuple[Place, ...]:
    """The entries on the walk to a virtual address, from the root down to a mapping or an empty entry."""
    found: list[Place] = []
    table = tables.root
    for depth, level in enumerate(tables.levels):
        index = (address >> level.shift) % level.entries
        entry = read(table + index * ENTRY_SIZE)
        place = AddrRange.sized(align_down(address, level.entry_span), level.entry_span)
        found.append(Place(depth, level, table, index, place, entry))
        if not leads_to_table(tables, found[-1]):
            break
        table = tables.physical(entry)
    return tuple(found)


def leads_to_table(tables: TableFormat, place: Place) -> bool:
    """True if the entry points to another table."""
    mask, value = tables.table
    return place.depth < len(tables.levels) - 1 and place.entry & mask == value


def is_leaf(tables: TableFormat, place: Place) -> bool:
    """True if the entry is a mapping."""
    if place.depth == len(tables.levels) - 1:
        return place.entry & tables.attributes != 0
    return not leads_to_table(tables, place) and place.entry & tables.leaf != 0


def with_physical(tables: TableFormat, entry: int, physical: int) -> int:
    """``entry`` with another physical address. Raises ValueError for one that an entry cannot hold."""
    for mask, shift in tables.address:
        part = physical >> shift if shift >= 0 else physical << -shift
        entry = entry & ~mask | part & mask
    if tables.physical(entry) != physical:
        raise ValueError(f"no page-table entry can hold physical {physical:#x}")
    return entry
