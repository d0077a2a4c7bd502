# SPDX-License-Identifier: GPL-2.0-or-later
"""RBK-1: a failed action changes nothing: two snapshots are compared with each other, not with the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from harness.check.evidence import Evidence
from harness.check.registry import Broken, Unobserved, invariant
from harness.state import GuestState, KernelRecords, NotObserved, Section

#: fields of GuestState that only memory hotplug changes
_FIELDS = ("iomem", "blocks", "auto_online", "zones", "dax", "sections")
_MEMMAP = ("nr_memmap", "nr_memmap_pages", "nr_memmap_boot", "nr_memmap_boot_pages")
_SOURCE = "the snapshot before"


@invariant(
    "RBK-1",
    "an action that failed leaves iomem, memory blocks, policy, zones, dax devices, sections, MemTotal and the "
    "counters of struct pages as they were",
    source="the error paths of add_memory_resource, online_pages, offline_pages (mm/memory_hotplug.c, v6.12) and "
    "dev_dax_kmem_probe (drivers/dax/kmem.c)",
    motive="add_pages that fails half-way leaves behind the sections that it has added",
    needs=("hotplug", "sections"),
    when=lambda evidence: evidence.failed,
)
def rbk_1(evidence: Evidence) -> Iterator[Broken]:
    """Page tables are not compared: PGT-1 decides which of their pages may remain."""
    before, after = evidence.before, evidence.observed
    if before is None:
        raise Unobserved("there is no snapshot before the step")
    yield from _fields(before, after)
    yield from _counters(before, after)
    for name in (*_FIELDS, "meminfo", "vmstat"):
        for source in _alike(name, before, after):
            if isinstance(source, NotObserved):
                raise Unobserved(f"{name}: {source.reason}")


def _alike(name: str, *states: GuestState) -> tuple[Any, ...]:
    """A field of ``states`` from one witness: their text, or what the host read where the text of one was not read."""
    texts = tuple(getattr(state, name) for state in states)
    if not hasattr(KernelRecords, name) or not any(isinstance(text, NotObserved) for text in texts):
        return texts
    records = tuple(getattr(state.records, name) for state in states)
    return texts if any(isinstance(record, NotObserved) for record in records) else records


def _fields(before: GuestState, after: GuestState) -> Iterator[Broken]:
    for name in _FIELDS:
        was, now = _alike(name, before, after)
        if isinstance(was, NotObserved) or isinstance(now, NotObserved):
            continue
        if name == "sections":
            was, now = _without_addresses(was), _without_addresses(now)
        if was == now:
            continue
        if isinstance(was, str):
            yield Broken(name, was, now, _SOURCE)
            continue
        lost = [str(item) for item in was if item not in now]
        come = [str(item) for item in now if item not in was]
        yield Broken(name, _some(lost) or "no more than before", _some(come) or "less than before", _SOURCE)


def _without_addresses(sections: Sequence[Section]) -> tuple[Section, ...]:
    """The sections without the address of their usage map, which changes if it is allocated again."""
    return tuple(replace(section, usage=int(section.usage != 0)) for section in sections)


def _some(items: Sequence[str]) -> str:
    return "; ".join(items[:4]) + (f" and {len(items) - 4} more" if len(items) > 4 else "")


def _counters(before: GuestState, after: GuestState) -> Iterator[Broken]:
    totals, counters = (_alike(name, before, after) for name in ("meminfo", "vmstat"))
    if not any(isinstance(source, NotObserved) for source in totals):
        was, now = (source["MemTotal"] for source in totals)
        if was != now:
            yield Broken("MemTotal", f"{was >> 10} kB", f"{now >> 10} kB", _SOURCE)
    if not any(isinstance(source, NotObserved) for source in counters):
        old, new = counters
        for name in _MEMMAP:
            if name in old and old[name] != new.get(name):
                yield Broken(name, str(old[name]), str(new.get(name)), _SOURCE)
