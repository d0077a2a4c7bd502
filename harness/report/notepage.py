# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own dump format for page tables that the host walked.

ptdump_walk_pgd (mm/ptdump.c) has walk_page_range_debug (mm/pagewalk.c) call note_page (arch/{arm64,riscv}/mm/ptdump.c)
for every entry that does not point to a table, empty or not; v6.12.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from harness.arch.architecture import ArchSpec
from harness.arch.markers import MarkerSet
from harness.errors import InfraError
from harness.report.ptdump_text import Dump, DumpFormat, Run, dump_format
from harness.state import HostMapping, HostTables, TablePage
from harness.units import TOP, AddrRange, align_up


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Consecutive equal entries of ``step`` bytes each, all in tables of one level."""

    start: int
    end: int
    step: int
    level: str
    attrs: tuple[str, ...] = ()
    physical: int | None = None


_HEIGHTS = {"PTE": 0, "PMD": 1, "PUD": 2, "P4D": 3}
_ROOT = "PGD"


def dump_tables(tables: HostTables, arch: ArchSpec, page_size: int, places: MarkerSet) -> Dump:
    """The kernel's dump of ``tables``, which the host walked in a guest with pages of ``page_size`` bytes.

    A faulty entry that maps nothing counts as empty. Raises InfraError for impossible tables: without a root,
    overlapping, or with an attribute that has no column in this architecture's dump.
    """
    form = dump_format(arch.name)
    stretches = _stretches(tables, page_size, places.start)
    lines = tuple(_note(stretches, places.markers, form))
    addresses = {name: address for address, name in places.markers}
    dump = Dump(arch.name, lines, (), True, addresses)
    return replace(dump, pieces=tuple(_pieces(dump.runs, tables.mappings)))


def _stretches(tables: HostTables, page_size: int, start: int) -> Iterator[_Stretch]:
    """All entries from ``start`` to the top of the address space in the order in which the kernel walks them."""
    mappings = [run for run in tables.mappings if run.range.end > start]
    for lower, upper in itertools.pairwise(mappings):
        if upper.range.start < lower.range.end:
            raise InfraError(f"two mappings of the walk overlap at {upper.range.start:#x}")
    number = 0
    for place in _around(tables.pages, page_size, start):
        at = place.start
        while number < len(mappings) and mappings[number].range.start < place.end:
            run = mappings[number]
            first, last = max(run.range.start, at), min(run.range.end, place.end)
            if first > at:
                yield replace(place, end=first, start=at)
            yield _Stretch(first, last, place.step, run.level, run.attrs, run.physical + first - run.range.start)
            at = last
            if run.range.end > place.end:
                break
            number += 1
        if at < place.end:
            yield replace(place, start=at)


def _around(pages: Sequence[TablePage], page_size: int, start: int) -> Iterator[_Stretch]:
    """The address space split by the deepest table for each address, as stretches of empty entries."""
    spans = _entry_spans(pages, page_size)
    # The root may span both halves of the address space, the second one sign-extended: it encloses everything.
    around = [replace(page, range=AddrRange(start, TOP)) for page in pages if page.level == _ROOT]
    below = [page for page in pages if page.level != _ROOT and page.range.end > start]
    at = start

    def leave(stop: int) -> Iterator[_Stretch]:
        """The empty entries before ``stop``; pops the tables that end there."""
        nonlocal at
        while around:
            table = around[-1]
            end = min(stop, table.range.end)
            if end > at:
                yield _Stretch(at, end, spans[table.level], table.level)
                at = end
            if table.range.end > stop:
                return
            around.pop()

    for page in sorted(below, key=lambda page: (page.range.start, -page.range.end)):
        yield from leave(page.range.start)
        if not around or page.range.end > around[-1].range.end:
            raise InfraError(f"the table at physical {page.address:#x} extends beyond its parent table")
        around.append(page)
    yield from leave(TOP)


def _entry_spans(pages: Sequence[TablePage], page_size: int) -> dict[str, int]:
    """Bytes mapped by one entry, by level; the root is one level above the highest other one."""
    heights = {page.level: _HEIGHTS[page.level] for page in pages if page.level != _ROOT}
    if not heights or sum(page.level == _ROOT for page in pages) != 1:
        raise InfraError("the walk found no root table, or nothing below it")
    heights[_ROOT] = 1 + max(heights.values())
    return {level: page_size * (page_size // 8) ** height for level, height in heights.items()}


def _note(stretches: Iterable[_Stretch], markers: Sequence[tuple[int, str]], form: DumpFormat) -> Iterator[str | Run]:
    """note_page for every entry, skipping those where it does nothing: no change, and no marker reached."""
    names = [name for _, name in markers]
    bounds = [address for address, _ in markers[1:]] + [TOP]
    number = 0
    pending: Run | None = None
    for stretch in stretches:
        at = stretch.start
        while at < stretch.end:
            limit = form.further
            if pending is None:
                yield names[0]
                limit = form.first
            elif (pending.level, pending.attrs) == (stretch.level, stretch.attrs) and at < bounds[number]:
                at = stretch.start + align_up(bounds[number] - stretch.start, stretch.step)
                continue
            elif pending.attrs or form.holes:
                yield replace(pending, range=AddrRange(pending.range.start, at))
            while limit and at >= bounds[number]:
                number, limit = number + 1, limit - 1
                yield names[number]
            physical = None if stretch.physical is None else stretch.physical + at - stretch.start
            pending = Run(AddrRange(at, TOP), stretch.level, stretch.attrs, physical, names[number])
            at += stretch.step
    if pending is not None and (pending.attrs or form.holes):
        yield pending


def _pieces(runs: Iterable[Run], mappings: Sequence[HostMapping]) -> Iterator[Run]:
    """The mapped ``runs``, split where physical addresses are not contiguous."""
    number = 0
    for run in runs:
        while number < len(mappings) and mappings[number].range.start < run.range.end:
            mapping = mappings[number]
            shared = mapping.range.intersect(run.range)
            if run.attrs and shared is not None:
                yield replace(run, range=shared, physical=mapping.physical + shared.start - mapping.range.start)
            if mapping.range.end > run.range.end:
                break
            number += 1
