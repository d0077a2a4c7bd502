# SPDX-License-Identifier: GPL-2.0-or-later
"""ZON-1 and MEM-*: zones, MemTotal, the balance sheet, and what grows in each round of a soak.

Where the guest's files were not read, they judge what the host read; XCK-4 and XCK-5 prove that the two are equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from harness.arch import features
from harness.check.evidence import Evidence
from harness.check.folded import folded_pages
from harness.check.registry import Broken, Seen, Unobserved, invariant, observed, paired
from harness.check.tablebalance import page_tables
from harness.model.boot_layout import BootLayout
from harness.state import GuestState, NotObserved, Zone
from harness.units import AddrRange, intersect_ranges

#: names of the same counter in different kernels (mm/vmstat.c: v6.11, v6.12)
_MEMMAP = ("nr_memmap_pages", "nr_memmap")
_MEMMAP_BOOT = ("nr_memmap_boot_pages", "nr_memmap_boot")
#: the slab cache for directories of memory blocks in sysfs (fs/kernfs/dir.c)
SLAB = "kernfs_node_cache"


@invariant(
    "ZON-1",
    "spanned, present and managed pages of every zone of every node equal the model",
    source="move_pfn_range_to_zone, remove_pfn_range_from_zone, adjust_present_page_count (mm/memory_hotplug.c, v6.12)",
    motive="a span that is too wide makes compaction walk a memmap that is gone",
    reads=("/proc/zoneinfo",),
    needs=("memmap-counters",),
)
def zon_1(evidence: Evidence) -> Iterator[Broken]:
    zones, freed = observed(evidence.observed.memory_zones), _freed_at_boot(evidence)
    pairs = paired(evidence.expected.zones, zones, lambda zone: (zone.node, zone.name))
    yield from _present_at_boot(evidence)
    anywhere = False
    if freed:
        total, managed = (sum(zone.managed for zone in part) for part in (evidence.expected.zones, zones))
        if managed != total + freed:
            yield Broken("all zones", f"managed {total + freed}", f"managed {managed}", "/proc/zoneinfo")
        else:
            # Only the kernel knows in which zones they are.
            anywhere = all(seen.managed >= wanted.managed for wanted, seen in pairs.values() if wanted and seen)
    for (node, name), (wanted, seen) in pairs.items():
        if anywhere and wanted is not None and seen is not None:
            wanted = dataclasses.replace(wanted, managed=seen.managed)
        if wanted != seen:
            yield Broken(f"node {node} zone {name}", show_zone(wanted), show_zone(seen), "/proc/zoneinfo")


def _present_at_boot(evidence: Evidence) -> Iterator[Broken]:
    """After boot, all boot memory is present (calculate_node_totalpages, mm/mm_init.c, v6.12), and else only blocks.

    Those are of devices that were there at boot, if the kernel has put them online on its own.
    """
    layout, zones = evidence.layout, observed(evidence.layout.baseline.zones)
    for node, ram in enumerate(layout.machine.node_ranges()):
        size = sum(part.size for part in intersect_ranges([ram], layout.boot_memory()))
        wanted = (size + _online_at_boot(layout, node)) // layout.page_size
        seen = sum(zone.present for zone in zones if zone.node == node)
        if seen != wanted:
            yield Broken(f"node {node} after boot", f"present {wanted}", f"present {seen}", "/proc/zoneinfo")


def _online_at_boot(layout: BootLayout, node: int) -> int:
    """Bytes of the blocks of ``node`` that were online in the first look, and have no boot memory."""
    blocks, size = layout.baseline.blocks, layout.block_size
    online = [] if isinstance(blocks, NotObserved) else [b for b in blocks if b.state == "online" and node in b.nodes]
    places = [AddrRange.sized(block.index * size, size) for block in online]
    return size * sum(not any(part.overlaps(place) for part in layout.machine.node_ranges()) for place in places)


def _freed_at_boot(evidence: Evidence) -> int:
    """How many frames of boot memory's memmap folding has freed to the page allocator.

    The kernel counts each of them once, when it is freed (free_vmemmap_page, mm/hugetlb_vmemmap.c, v6.12: decrements
    nr_memmap_boot, free_reserved_page); unfolding takes ordinary memory. MEM-2 balances that count.
    """
    if not evidence.expected.memmap_split:
        return 0
    before, now = (_first(state, _MEMMAP_BOOT) for state in _boot_and_now(evidence))
    if before is None or now is None:
        raise Unobserved(f"what was freed of boot memory's memmap is unknown: no {_MEMMAP_BOOT[-1]} (since v6.11)")
    return before - now


def show_zone(zone: Zone | None) -> str:
    """``spanned 8, present 8, managed 7, start_pfn 4096``, or absent."""
    if zone is None:
        return "absent"
    fields = [field.name for field in dataclasses.fields(Zone)[2:]]
    return ", ".join(f"{name} {getattr(zone, name)}" for name in fields)


@invariant(
    "MEM-1",
    "MemTotal moves by exactly the onlined bytes minus the self-hosted memmap, and back to the byte",
    source="adjust_managed_page_count, generic_online_page (mm/page_alloc.c, mm/memory_hotplug.c, v6.12)",
    motive="peers accept 10 to 15 % here, which hides six missing memory blocks in a change of 5 GiB",
    reads=("/proc/meminfo",),
    needs=("memmap-counters",),
)
def mem_1(evidence: Evidence) -> Iterator[Broken]:
    seen = observed(evidence.observed.totals)["MemTotal"]
    baseline, freed = observed(evidence.layout.baseline.totals)["MemTotal"], _freed_at_boot(evidence)
    wanted = baseline + evidence.expected.managed_bytes + freed * evidence.layout.page_size
    if wanted != seen:
        off = f"{seen >> 10} kB ({(seen - wanted) >> 10:+d} kB)"
        yield Broken("MemTotal", f"{wanted >> 10} kB", off, "/proc/meminfo")


@invariant(
    "MEM-2",
    "nr_memmap, nr_memmap_boot, nr_page_table_pages, the processes' own accounts of their page tables, and the host "
    "memory of the backends balance, to the page",
    source="memmap_pages_add (mm/sparse-vmemmap.c, v6.12); pagetable_pte_ctor, pagetable_dtor (include/linux/mm.h); "
    "ram_block_discard_range (QEMU 10.0)",
    motive="arm64: mm: call pagetable dtor when freeing hot-removed page tables; 9d8573111024: memmap accounting",
    reads=("/proc/vmstat", "/proc/slabinfo"),
    needs=("counted-tables", "memmap-counters"),
)
def mem_2(evidence: Evidence) -> Seen | list[Broken]:
    for state in _boot_and_now(evidence):
        observed(state.counters)
    broken, unseen = [*memmap_pages(evidence)], list[str]()
    for part in (page_tables, _backends):
        try:
            broken.extend(part(evidence))
        except Unobserved as missing:
            unseen.append(missing.reason)
    if not unseen and not counts_memmap(evidence):
        if features.counts_memmap(evidence.layout.facts) is not True:
            return Seen(broken, "this kernel has no nr_memmap (since v6.11)")
        unseen.append("/proc/vmstat has no nr_memmap, which is there since v6.11")
    if unseen and not broken:
        raise Unobserved(unseen[0])
    return broken


def _first(state: GuestState, names: tuple[str, ...]) -> int | None:
    counters = state.counters
    return (
        None
        if isinstance(counters, NotObserved)
        else next((counters[name] for name in names if name in counters), None)
    )


def counts_memmap(evidence: Evidence) -> bool:
    """True if this kernel counts the pages of struct pages, and both counters were observed."""
    return all(
        _first(state, names) is not None for state in _boot_and_now(evidence) for names in (_MEMMAP, _MEMMAP_BOOT)
    )


def memmap_pages(evidence: Evidence) -> Iterator[Broken]:
    """The differences of nr_memmap and nr_memmap_boot from what the present memory needs."""
    baseline = evidence.layout.baseline
    if evidence.expected.memmap_split:
        yield from _memmap_pages_of_both(evidence)
        return
    for names, change in ((_MEMMAP, evidence.expected.memmap_pages), (_MEMMAP_BOOT, 0)):
        before, now = _first(baseline, names), _first(evidence.observed, names)
        if before is not None and now != before + change:
            yield Broken(names[0], str(before + change), str(now), "/proc/vmstat")


def _memmap_pages_of_both(evidence: Evidence) -> Iterator[Broken]:
    """Folding frees frames allocated at boot, and unfolding takes others: only the sum of both counters balances."""
    counts = [[_first(state, names) for names in (_MEMMAP, _MEMMAP_BOOT)] for state in _boot_and_now(evidence)]
    before, now = ([count for count in pair if count is not None] for pair in counts)
    wanted = sum(before) + evidence.expected.memmap_pages - folded_pages(evidence)
    if len(before) == 2 and sum(now) != wanted:
        yield Broken(f"{_MEMMAP[0]} and {_MEMMAP_BOOT[0]}", str(wanted), str(sum(now)), "/proc/vmstat")


def _boot_and_now(evidence: Evidence) -> tuple[GuestState, GuestState]:
    return evidence.layout.baseline, evidence.observed


def _backends(evidence: Evidence) -> Iterator[Broken]:
    at_boot = observed(evidence.layout.baseline.backends)
    seen = {id: used for id, used in observed(evidence.observed.backends).items() if id not in at_boot}
    wanted = {device.backend: device for device in evidence.expected.devices}
    for id in sorted(seen.keys() ^ wanted.keys()):
        here, there = ("absent", "present") if id in seen else ("present", "absent")
        yield Broken(f"backend {id}", here, there, "QEMU's file descriptors")
    for id in sorted(seen.keys() & wanted.keys()):
        # Only plugged blocks can hold memory: unplugging discards them.
        if seen[id] > wanted[id].size:
            yield Broken(f"backend {id}", f"at most {wanted[id].size} bytes", f"{seen[id]} bytes", "host memory")


@invariant(
    "MEM-3",
    "over the rounds of a soak, every counter, the objects of memory blocks in sysfs and what each allocation site "
    "holds stay level",
    source="memory_block_release (drivers/base/memory.c), memmap_pages_add (mm/sparse-vmemmap.c), v6.12",
    motive="a few bytes that each round leaves behind show in no single step",
    needs=("slabs",),
    when=lambda evidence: evidence.slopes or evidence.unread,
)
def mem_3(evidence: Evidence) -> Iterator[Broken]:
    for slope in evidence.slopes:
        if slope.leaks:
            yield Broken(slope.name, "slope 0", slope.spelled, "least squares")
    if evidence.unread:
        raise Unobserved("; ".join(evidence.unread))
