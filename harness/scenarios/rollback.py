# SPDX-License-Identifier: GPL-2.0-or-later
"""After what failed, everything is as it was: two snapshots compared with each other, not with the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from harness.check import CheckResult, Finding
from harness.state import GuestState, NotObserved, Section

#: fields of GuestState that only memory hotplug changes, and the invariant that says so
_FIELDS = {
    "iomem": "IOM-2",
    "blocks": "BLK-1",
    "auto_online": "BLK-2",
    "zones": "ZON-1",
    "dax": "BLK-1",
    "sections": "SEC-1",
}
_MEMMAP = ("nr_memmap", "nr_memmap_pages", "nr_memmap_boot", "nr_memmap_boot_pages")
_SOURCE = "the snapshot before"


def unchanged(before: GuestState, after: GuestState, step: str) -> tuple[Finding, ...]:
    """Findings for whatever an action that failed has left behind; a source that was not read twice tells nothing.

    Page tables are not compared: which of their pages may stay is the business of PGT-1, which knows the architecture.
    """
    pairs = [*_fields(before, after), *_counters(before, after)]
    return tuple(Finding(invariant, where, was, now, _SOURCE, step) for invariant, where, was, now in pairs)


def with_findings(checks: Sequence[CheckResult], findings: Sequence[Finding]) -> tuple[CheckResult, ...]:
    """``checks`` with ``findings`` added to those of the same invariants."""
    out: list[CheckResult] = []
    for check in checks:
        more = tuple(finding for finding in findings if finding.invariant == check.invariant)
        joined = CheckResult(check.invariant, "fail", (*check.findings, *more), note=check.note)
        out.append(joined if more else check)
    known = {check.invariant for check in checks}
    for invariant in dict.fromkeys(finding.invariant for finding in findings if finding.invariant not in known):
        out.append(CheckResult(invariant, "fail", tuple(found for found in findings if found.invariant == invariant)))
    return tuple(out)


def _fields(before: GuestState, after: GuestState) -> Iterator[tuple[str, str, str, str]]:
    for name, invariant in _FIELDS.items():
        was, now = getattr(before, name), getattr(after, name)
        if isinstance(was, NotObserved) or isinstance(now, NotObserved):
            continue
        if name == "sections":
            was, now = _without_addresses(was), _without_addresses(now)
        if was == now:
            continue
        if isinstance(was, str):
            yield invariant, name, was, now
            continue
        lost = [str(item) for item in was if item not in now]
        come = [str(item) for item in now if item not in was]
        yield invariant, name, _some(lost) or "no more than before", _some(come) or "less than before"


def _without_addresses(sections: Sequence[Section]) -> tuple[Section, ...]:
    """Where a section's usage map was allocated is no state: one that came back has another."""
    return tuple(replace(section, usage=int(section.usage != 0)) for section in sections)


def _some(items: Sequence[str]) -> str:
    return "; ".join(items[:4]) + (f" and {len(items) - 4} more" if len(items) > 4 else "")


def _counters(before: GuestState, after: GuestState) -> Iterator[tuple[str, str, str, str]]:
    if not isinstance(before.meminfo, NotObserved) and not isinstance(after.meminfo, NotObserved):
        was, now = before.meminfo["MemTotal"], after.meminfo["MemTotal"]
        if was != now:
            yield "MEM-1", "MemTotal", f"{was >> 10} kB", f"{now >> 10} kB"
    if isinstance(before.vmstat, NotObserved) or isinstance(after.vmstat, NotObserved):
        return
    for name in _MEMMAP:
        if name in before.vmstat and before.vmstat[name] != after.vmstat.get(name):
            yield "MEM-2", name, str(before.vmstat[name]), str(after.vmstat.get(name))
