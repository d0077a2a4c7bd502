# SPDX-License-Identifier: GPL-2.0-or-later
"""Crash dumps hold the memory that /proc/iomem tells of: no removed range, and every range that was added."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.check import Finding
from harness.state import GuestState, IomemEntry, NotObserved
from harness.units import AddrRange, intersect_ranges, merge_ranges, subtract_ranges


@dataclass(frozen=True, slots=True)
class DumpReport:
    """The physical ranges of ``source``'s PT_LOAD segments, as far as they lie in ``scope``."""

    source: str
    scope: AddrRange
    ranges: tuple[AddrRange, ...]


def dump_findings(dumps: Sequence[DumpReport], state: GuestState, step: str) -> tuple[Finding, ...]:
    """Findings of IOM-1 where a dump's segments are not the System RAM of /proc/iomem."""
    if isinstance(state.iomem, NotObserved):
        return ()
    ram = merge_ranges(_ram(state.iomem))
    out: list[Finding] = []
    for dump in dumps:
        wanted, seen = intersect_ranges([dump.scope], ram), merge_ranges(dump.ranges)
        for part in subtract_ranges(wanted, seen):
            out.append(Finding("IOM-1", f"PT_LOAD of {part}", "in the dump", "missing", dump.source, step))
        for part in subtract_ranges(seen, wanted):
            out.append(Finding("IOM-1", f"PT_LOAD of {part}", "not in the dump", "there", dump.source, step))
    return tuple(out)


def _ram(entries: Sequence[IomemEntry]) -> Iterator[AddrRange]:
    """What walk_system_ram_range (kernel/resource.c, v6.12) walks: System RAM of whatever driver, at any depth."""
    for entry in entries:
        if entry.name.startswith("System RAM"):
            yield entry.range
        else:
            yield from _ram(entry.children)
