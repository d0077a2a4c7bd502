# SPDX-License-Identifier: GPL-2.0-or-later
"""LOG-1 and LIV-1: the kernel's own reports, and whether the memory works."""

from __future__ import annotations

import re
from collections.abc import Iterator

from harness.check.evidence import Evidence
from harness.check.known import bare
from harness.check.registry import Broken, Unobserved, invariant, observed
from harness.check.starvation import excused, starving
from harness.state import NotObserved


@invariant(
    "LOG-1",
    "no new WARN, BUG, Oops, Internal error, Bad page state, lockdep, KASAN, KFENCE, RCU stall or hung-task line",
    source="lib/bug.c, kernel/panic.c, mm/page_alloc.c bad_page, arch/{arm64,riscv}/kernel/traps.c (v6.12)",
    motive="21f1b85c8912: riscv: mm: Do not call pmd dtor on vmemmap page table teardown (Bad page state)",
    posthumous=True,
    needs=("log",),
)
def log_1(evidence: Evidence) -> Iterator[Broken]:
    dmesg, console = evidence.observed.log, evidence.observed.console
    starved = excused(evidence.host)
    for line in () if evidence.alarms or isinstance(dmesg, NotObserved) else dmesg:
        if line.alarm and bare(line.text) not in starved and not _boot_race(evidence, line.text):
            yield Broken(f"[{line.seconds:.6f}]", f"no {line.alarm}", line.text, "dmesg")
    for text in evidence.alarms or (() if isinstance(console, NotObserved) else console):
        if bare(text) not in starved and (evidence.alarms or not _boot_race(evidence, text)):
            yield Broken("console", "no alarming line", text, "serial console")
    if starved:
        raise Unobserved(starving(evidence.host))
    observed(dmesg)
    observed(console)
    if evidence.observed.dmesg_lost:
        raise Unobserved(evidence.observed.dmesg_lost)


def _boot_race(evidence: Evidence, text: str) -> bool:
    """True for a known report during boot: before the first snapshot, no memory was changed."""
    layout, observed = evidence.layout, evidence.observed
    first = (observed.boot_id, observed.uptime) == (layout.baseline.boot_id, layout.baseline.uptime)
    return first and (race := layout.machine.arch.boot_race) is not None and re.search(race, text) is not None


@invariant(
    "LIV-1",
    "the guest is alive and useful: added memory can be allocated, written and read back with its pattern intact",
    source="fs/proc/task_mmu.c pagemap_read (v6.12)",
    motive="memory that is counted but lost its contents or its translation",
    when=lambda evidence: evidence.touches or _has_rebooted(evidence),
)
def liv_1(evidence: Evidence) -> Iterator[Broken]:
    before, now = evidence.layout.baseline.boot_id, evidence.observed.boot_id
    if _has_rebooted(evidence):
        yield Broken("boot_id", f"{before} (the boot that was tested)", f"{now}: the guest has rebooted", "procfs")
    for report in evidence.touches:
        if report.mismatches:
            yield Broken("touched memory", "pattern intact", f"{report.mismatches} pages differ", "touch-memory")
        for where, used in report.used:
            if not used:
                yield Broken(str(where), "allocations land here", "not one page of it was handed out", "touch-memory")


def _has_rebooted(evidence: Evidence) -> bool:
    return evidence.layout.baseline.boot_id != evidence.observed.boot_id
