# SPDX-License-Identifier: GPL-2.0-or-later
"""The format of a kernel's page tables during one boot: their root, their levels, and their entries."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

from harness.state import HostMapping, Mapping
from harness.units import AddrRange, align_up

ENTRY_SIZE = 8
#: the kernel's names of table levels, the root's first
LEVEL_NAMES = ("PGD", "P4D", "PUD", "PMD", "PTE")


@dataclass(frozen=True, slots=True)
class EntryRule:
    """An entry is wrong for ``reason`` if ``entry & mask == value``; without a value, if it has any bit of ``mask``."""

    mask: int
    value: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class TableLevel:
    """One level of tables.

    ``name`` is the kernel's name of the table, ``leaf_name`` ptdump's name for a mapping in it (different only for a
    folded level). An entry spans ``1 << shift`` bytes; a table has ``entries`` of them. ``leaves`` is
    True if an entry may be a mapping. ``group`` is how many entries share one contiguous hint, 0 where none can.
    ``leaf_rules`` and ``table_rules`` are the rules for entries that are mappings, or point to tables.
    """

    name: str
    leaf_name: str
    shift: int
    entries: int
    leaves: bool
    group: int
    leaf_rules: tuple[EntryRule, ...]
    table_rules: tuple[EntryRule, ...]

    @property
    def entry_span(self) -> int:
        """Bytes of virtual addresses that one entry spans."""
        return 1 << self.shift

    @property
    def table_span(self) -> int:
        """Bytes of virtual addresses that a whole table spans."""
        return self.entries << self.shift

    @property
    def table_size(self) -> int:
        """Bytes of a table."""
        return self.entries * ENTRY_SIZE


@dataclass(frozen=True, slots=True)
class TableFormat:
    """init_mm's page tables during one boot.

    ``levels`` goes from the root to the PTEs. ``root`` is the physical address of the root, ``start`` the virtual
    address of its first entry; with ``both_halves`` its second half is that of the sign-extended addresses
    (``va_bits`` wide).

    Above the PTEs an entry points to a table if ``entry & table[0] == table[1]``; otherwise it is a mapping if it has a
    bit of ``leaf``. A PTE is a mapping if it has a bit of ``attributes``, which are the bits that ptdump distinguishes.
    ``valid`` is the bit without which hardware ignores an entry. The physical address is composed from
    ``address``, pairs of a mask and how far to shift the bits below it to the left. ``contiguous`` marks the members
    of a group; with ``napot`` they are all the same word, otherwise they count up; hardware lets them differ in
    ``group_ignores``. ``words`` gives the attributes of an entry as ptdump words them; ptdump begins at virtual
    ``dump_start``.
    """

    page_size: int
    root: int
    start: int
    va_bits: int
    both_halves: bool
    levels: tuple[TableLevel, ...]
    table: tuple[int, int]
    leaf: int
    valid: int
    attributes: int
    address: tuple[tuple[int, int], ...]
    contiguous: int
    napot: bool
    group_ignores: int
    words: Callable[[int], tuple[str, ...]]
    dump_start: int

    def physical(self, entry: int) -> int:
        """The physical address in ``entry``."""
        total = 0
        for mask, shift in self.address:
            part = entry & mask
            total |= part << shift if shift >= 0 else part >> -shift
        return total

    def step(self, level: TableLevel) -> int:
        """The difference between entries of ``level`` for two mappings adjacent in physical memory."""
        return level.entry_span >> self.address[0][1]


def level_names(count: int) -> tuple[str, ...]:
    """The names of ``count`` levels: the root is the PGD, the folded levels are next to it."""
    return LEVEL_NAMES[:1] + LEVEL_NAMES[len(LEVEL_NAMES) - count + 1 :]


def coalesce(
    mappings: Iterable[HostMapping], tables: TableFormat, markers: Sequence[tuple[int, str]]
) -> Iterator[Mapping]:
    """Join runs as ptdump does: neighbours with the same level and attributes, whatever their physical addresses.

    ``mappings`` are in address order, ``markers`` the sorted addresses and names of the regions. A run ends at the
    first entry that begins at or behind a marker (note_page, arch/{arm64,riscv}/mm/ptdump.c, v6.12). Runs below the
    first marker belong to it, runs below ptdump's own start are omitted.
    """
    spans = {level.leaf_name: level.entry_span for level in tables.levels}
    markers = markers or [(tables.dump_start, "")]
    pending: Mapping | None = None
    for run in mappings:
        if run.range.start < tables.dump_start:
            continue
        for piece, region in _cut(run.range, spans[run.level], markers):
            if (
                pending is not None
                and pending.range.end == piece.start
                and (pending.level, pending.attrs, pending.region) == (run.level, run.attrs, region)
            ):
                pending = Mapping(AddrRange(pending.range.start, piece.end), run.level, run.attrs, region)
                continue
            if pending is not None:
                yield pending
            pending = Mapping(piece, run.level, run.attrs, region)
    if pending is not None:
        yield pending


def _cut(run: AddrRange, span: int, markers: Sequence[tuple[int, str]]) -> Iterator[tuple[AddrRange, str]]:
    """``run``, made of entries of ``span`` bytes, cut at the markers in it, each piece with its region."""
    number = bisect_right(markers, run.start, key=itemgetter(0))
    at = run.start
    while at < run.end:
        stop = run.end
        if number < len(markers):
            stop = min(stop, align_up(markers[number][0], span))
        if stop > at:
            yield AddrRange(at, stop), markers[max(number, 1) - 1][1]
        at = max(at, stop)
        number += 1
