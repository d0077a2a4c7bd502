# SPDX-License-Identifier: GPL-2.0-or-later
"""How the cost of reading page tables grows with a guest's memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.bench.figures import Fact
from harness.bench.measure import Spread, Timing, fit_line
from harness.config.guest import GuestSpec
from harness.units import format_size

#: fraction of boot memory that page tables and struct pages of hot-added memory may take
_SPARE = 0.5
_ENTRY = 8
#: minimum growth factor of the number of tables for a meaningful fit
_GREW = 2


@dataclass(frozen=True, slots=True)
class Point:
    """The host's whole work with ``size`` hot-added bytes, which resulted in ``pages`` table pages."""

    size: int
    pages: int
    timing: Timing

    @property
    def each(self) -> Spread:
        """Seconds per table page."""
        return Spread(tuple(value / self.pages for value in self.timing.wall.values))

    def __str__(self) -> str:
        return f"+{format_size(self.size)}"


def affordable(
    growth: Sequence[int], spec: GuestSpec, page_size: int, struct_page: int
) -> tuple[tuple[int, ...], list[str]]:
    """The sizes of ``growth`` for which a guest has room, slots and memory, in order, and why not the others.

    Each page of hot-added memory takes a struct page of ``struct_page`` bytes and a page-table entry from boot memory.
    """
    sizes: list[int] = []
    notes = []
    for size in sorted(growth):
        takes = size // page_size * (struct_page + _ENTRY)
        if takes > _SPARE * spec.memory:
            why = f"its struct pages and tables take {format_size(takes)} of {format_size(spec.memory)} boot memory"
        elif size > spec.room:
            why = f"the guest has room for {format_size(spec.room)}"
        elif len(sizes) == spec.slots:
            why = f"the guest has {spec.slots} slots"
        else:
            sizes.append(size)
            continue
        notes.append(f"+{format_size(size)} not measured: {why}")
    return tuple(sizes), notes


def line_facts(points: Sequence[Point]) -> dict[str, Fact]:
    """A linear fit of the medians by table pages; empty if tables hardly grew."""
    pages = [point.pages for point in points]
    if len(points) < 3 or max(pages) < _GREW * min(pages):
        return {}
    line = fit_line([(point.pages, point.timing.wall.median) for point in points])
    facts: dict[str, Fact] = {
        "linear: fixed ms": round(line.fixed * 1e3, 3),
        "us a page": round(line.slope * 1e6, 3),
        "largest deviation %": round(line.worst * 100, 1),
    }
    # More reliable on a busy host: CPU time does not include waiting.
    cpu = [(point.pages, point.timing.cpu.median) for point in points if point.timing.cpu is not None]
    if len(cpu) == len(points):
        facts["by CPU time %"] = round(fit_line(cpu).worst * 100, 1)
    return facts
