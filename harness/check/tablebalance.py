# SPDX-License-Identifier: GPL-2.0-or-later
"""nr_page_table_pages, to the page: the kernel's counter against its tables.

Which tables a kernel counts depends on its version and architecture, and on their region and level; each table tells
for itself (harness/kmem/tablecount.py), so that the balance is exact for every kernel and at every step: while memory
is hot, while loads run, after vmalloc was used, after a reboot. What was off at the step before is that step's finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from harness.check.evidence import Evidence
from harness.check.registry import Broken, observed
from harness.state import HostTables, NotObserved, TableCount, TablePage
from harness.units import AddrRange

COUNTER = "nr_page_table_pages"
_ACCOUNTS = "mm_struct of each process and its tables, read by the host in one moment"
_SOURCE = "vm_node_stat and the type of each table's struct page, read by the host in one moment"
#: regions of the kernel's half of the addresses: the keys of vmcoreinfo that bound them
_BOUNDS = {"vmalloc": ("VMALLOC_START", "VMALLOC_END"), "modules": ("MODULES_VADDR", "MODULES_END")}


def page_tables(evidence: Evidence) -> Iterator[Broken]:
    """The difference between the changes of nr_page_table_pages and of the tables that it counts.

    ``where`` names the region if the tables that went away there explain it: "nr_page_table_pages: vmemmap tables" for
    those of the memmap that were uncounted though they had never been counted.
    """
    tables = observed(evidence.observed.host_tables)
    count = observed(tables.count)
    before, was = _counted_before(evidence)
    yield from _accounts(count, before)
    off = count.stray - was
    if off == 0:
        return
    where, why = (COUNTER, "") if before is None else _explain(evidence, off, before, tables)
    drift = f", {was:+d} as at the step before" if was else ""
    wanted = f"{count.counter - off} ({count.kernel} tables of the kernel, {count.users} of processes{drift})"
    yield Broken(where, wanted, f"{count.counter} ({off:+d}{why})", _SOURCE)


def _accounts(count: TableCount, before: HostTables | None) -> Iterator[Broken]:
    """Whether processes have as many tables as they say (mm_struct.pgtables_bytes); by the difference from before."""
    last = None if before is None else before.count
    was = 0 if last is None or isinstance(last, NotObserved) or last.astray is None else last.astray
    if count.astray is not None and count.astray != was:
        off = count.astray - was
        yield Broken("pgtables_bytes of processes", "the bytes of their tables", f"{off:+d} tables", _ACCOUNTS)


def _counted_before(evidence: Evidence) -> tuple[HostTables | None, int]:
    """The tables of the previous step, and by how much the counter was off then (0 after a fresh boot)."""
    before, baseline = evidence.before, evidence.layout.baseline
    if before is None or before.boot_id != evidence.observed.boot_id:
        return None, 0
    tables = before.host_tables
    if isinstance(tables, NotObserved) or isinstance(tables.count, NotObserved):
        return None, 0
    return tables, 0 if before.uptime == baseline.uptime else tables.count.stray


def _explain(evidence: Evidence, off: int, before: HostTables, now: HostTables) -> tuple[str, str]:
    """The region whose removed tables explain the difference, if there is exactly one.

    Too few: they were not counted, and were uncounted all the same. Too many: they were counted, and still are.
    """
    left = {(page.level, page.range) for page in now.pages}
    gone = [page for page in before.pages if (page.level, page.range) not in left]
    suspects = Counter(_region(evidence, page) for page in gone if page.counted is (off > 0))
    exact = [region for region, number in suspects.items() if number == abs(off)]
    enough = exact or [region for region, number in suspects.items() if number > abs(off)]
    if len(enough) != 1:
        return COUNTER, ""
    [region] = enough
    levels = Counter(page.level for page in gone if page.counted is (off > 0) and _region(evidence, page) == region)
    joint = " and "
    if sum(levels.values()) != abs(off):
        # Which of them it was does not show where several levels lost as many as are off.
        levels = Counter({level: number for level, number in levels.items() if number == abs(off)}) or levels
        joint = " or "
    counts = joint.join(f"{number} {level}" for level, number in sorted(levels.items()))
    what = "were counted, and still are" if off > 0 else "were never counted, and were uncounted"
    return f"{COUNTER}: {region} tables", f": {counts} tables that went away {what}"


def _region(evidence: Evidence, page: TablePage) -> str:
    """The region of a table's addresses: ``linear-map``, ``vmemmap``, ``vmalloc``, ``modules`` or ``other``."""
    return next((name for name, place in _regions(evidence) if place.overlaps(page.range)), "other")


def _regions(evidence: Evidence) -> Iterator[tuple[str, AddrRange]]:
    kernel, note = evidence.layout.kernel, evidence.layout.facts.vmcoreinfo
    if kernel is None or isinstance(note, NotObserved):
        return
    yield "vmemmap", kernel.vmemmap_window
    yield "linear-map", kernel.linear_window
    for name, keys in _BOUNDS.items():
        start, end = (note.get(f"NUMBER({key})") for key in keys)
        if start is not None and end is not None:
            yield name, AddrRange(int(start, 0), int(end, 0))
