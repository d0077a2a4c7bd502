# SPDX-License-Identifier: GPL-2.0-or-later
"""IOM-4: crash dumps hold the memory that /proc/iomem tells of: no removed range, and every range that was added."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.check.evidence import DumpReport, Evidence
from harness.check.registry import Broken, Outcome, invariant
from harness.state import IomemEntry, NotObserved
from harness.units import AddrRange, intersect_ranges, merge_ranges, subtract_ranges


@invariant(
    "IOM-4",
    "the segments of crash dumps (/proc/kcore, QEMU's dump-guest-memory) are exactly the System RAM of /proc/iomem",
    source="walk_system_ram_range (kernel/resource.c), kcore_ram_list (fs/proc/kcore.c), v6.12; dump/dump.c (QEMU 10)",
    motive="a dump of removed memory faults, one without added memory lacks what a crash is about",
)
def iom_4(evidence: Evidence) -> Outcome:
    if not evidence.dumps:
        return None
    if isinstance(evidence.observed.iomem, NotObserved):
        return evidence.observed.iomem
    ram = merge_ranges(_ram(evidence.observed.iomem))
    return [broken for dump in evidence.dumps for broken in _off(dump, ram)]


def _off(dump: DumpReport, ram: Sequence[AddrRange]) -> Iterator[Broken]:
    wanted, seen = intersect_ranges([dump.scope], ram), merge_ranges(dump.ranges)
    for part in subtract_ranges(wanted, seen):
        yield Broken(f"PT_LOAD of {part}", "in the dump", "missing", dump.source)
    for part in subtract_ranges(seen, wanted):
        yield Broken(f"PT_LOAD of {part}", "not in the dump", "there", dump.source)


def _ram(entries: Sequence[IomemEntry]) -> Iterator[AddrRange]:
    """What walk_system_ram_range (kernel/resource.c, v6.12) walks: System RAM of whatever driver, at any depth."""
    for entry in entries:
        if entry.name.startswith("System RAM"):
            yield entry.range
        else:
            yield from _ram(entry.children)
