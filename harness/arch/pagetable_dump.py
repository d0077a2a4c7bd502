# SPDX-License-Identifier: GPL-2.0-or-later
"""/sys/kernel/debug/kernel_page_tables, written from a walk: mm/ptdump.c, arch/{arm64,riscv}/mm/ptdump.c (v6.12)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.arch.pagetable import DumpStyle, TableFormat
from harness.state import HostTables, TablePage
from harness.units import align_up

_TOP = 1 << 64
_UNITS = "KMGTPE"


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Entries that ptdump notes one after another with the same outcome; ``attrs`` is None where nothing is mapped."""

    start: int
    end: int
    span: int
    level: str
    attrs: tuple[str, ...] | None
    physical: int

    def same(self, other: _Stretch) -> bool:
        return (self.level, self.attrs) == (other.level, other.attrs)


def dump_lines(tables: HostTables, form: TableFormat, markers: Sequence[tuple[int, str]]) -> Iterator[str]:
    """The lines of the kernel's own dump, without their ends.

    ``markers`` are the sorted addresses and names of the regions, which only the kernel knows exactly. Entries that
    are faults are printed as holes.
    """
    printer = _Printer(form.dump, markers or [(form.dump.start, "Page tables")])
    for stretch in _stretches(tables, form):
        yield from printer.take(stretch)
    yield from printer.flush(_TOP)


class _Printer:
    """note_page: what is pending, and the marker it stands under."""

    def __init__(self, style: DumpStyle, markers: Sequence[tuple[int, str]]) -> None:
        self.style = style
        self.markers = markers
        self.number = 0
        self.pending: _Stretch | None = None
        self.begin = self.physical = 0

    def take(self, stretch: _Stretch) -> Iterator[str]:
        """All entries of ``stretch``; only those at which something is printed are looked at."""
        at = stretch.start
        while at < stretch.end:
            yield from self.note(at, stretch)
            following = self.following
            at = at + stretch.span if following <= at else max(at + stretch.span, align_up(following, stretch.span))

    @property
    def following(self) -> int:
        """Where the next marker stands."""
        return self.markers[self.number + 1][0] if self.number + 1 < len(self.markers) else _TOP

    def note(self, at: int, stretch: _Stretch) -> Iterator[str]:
        if self.pending is None:
            yield self.marker()
            self.restart(at, stretch)
            return
        if not self.pending.same(stretch) or at >= self.following:
            yield from self.flush(at)
            for _ in range(self.style.markers):
                if at >= self.following:
                    self.number += 1
                    yield self.marker()
            self.restart(at, stretch)

    def restart(self, at: int, stretch: _Stretch) -> None:
        self.pending, self.begin = stretch, at
        self.physical = stretch.physical + at - stretch.start

    def marker(self) -> str:
        return f"---[ {self.markers[self.number][1]} ]---"

    def flush(self, end: int) -> Iterator[str]:
        """The line of what is pending."""
        if self.pending is None or (self.pending.attrs is None and not self.style.holes):
            return
        where = f" {self.physical:#018x} " if self.style.physical else ""
        columns = "" if self.pending.attrs is None else _columns(self.pending.attrs, self.style)
        size = _size(end - self.begin)
        yield f"{self.begin:#018x}-{end % _TOP:#018x}   {where}{size} {self.pending.level}{columns}"


def _columns(attrs: tuple[str, ...], style: DumpStyle) -> str:
    left, shown = list(attrs), []
    for column in style.columns:
        text = next((text for text in column if left and text.strip() == left[0]), None)
        if text is None:
            text = next((text for text in column if not text.strip(" .")), "")
        else:
            left.pop(0)
        shown.append(text)
    return "".join(f" {text}" for text in (*shown, *left))


def _size(size: int) -> str:
    amount, unit = size >> 10, 0
    while not amount & 1023 and unit + 1 < len(_UNITS):
        amount, unit = amount >> 10, unit + 1
    return f"{amount:9d}{_UNITS[unit]}"


def _stretches(tables: HostTables, form: TableFormat) -> Iterator[_Stretch]:
    """Mappings and the holes between them, from the start of the dump to the end of all addresses."""
    spans = {level.leaf_name: level.entry_span for level in form.levels}
    at = form.dump.start
    holes = _Holes(tables.pages, form)
    for run in tables.mappings:
        if run.range.start < at:
            continue
        yield from holes.between(at, run.range.start)
        yield _Stretch(run.range.start, run.range.end, spans[run.level], run.level, run.attrs, run.physical)
        at = run.range.end
    yield from holes.between(at, _TOP)


class _Holes:
    """Names the tables in which the entries of a hole stand; asked for one hole after another."""

    def __init__(self, pages: Iterable[TablePage], form: TableFormat) -> None:
        self.spans = {level.name: level.entry_span for level in form.levels}
        self.pages = list(pages)
        self.next = 0
        #: the tables around the current address, the root first
        self.around: list[TablePage] = []

    def between(self, start: int, end: int) -> Iterator[_Stretch]:
        at = start
        while at < end:
            self.advance(at)
            table = self.around[-1]
            stop = min(end, table.range.end)
            if self.next < len(self.pages):
                stop = min(stop, self.pages[self.next].range.start)
            yield _Stretch(at, stop, self.spans[table.level], table.level, None, 0)
            at = stop

    def advance(self, at: int) -> None:
        """Find the tables around ``at``, which only grows."""
        while self.next < len(self.pages) and self.pages[self.next].range.start <= at:
            self.around.append(self.pages[self.next])
            self.next += 1
        # A table that ended lies anywhere among them: what came later may be deeper, or beside it.
        self.around = [page for page in self.around if at < page.range.end]
