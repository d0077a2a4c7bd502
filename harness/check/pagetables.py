# SPDX-License-Identifier: GPL-2.0-or-later
"""PGT-*: the page-table pages themselves, read by the host from the guest's memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from harness.check.evidence import Evidence
from harness.check.registry import Broken, Unobserved, invariant, observed
from harness.check.witnesses import WALK, View, walked, wanted_memmap
from harness.model.kept_tables import Slot, kept_tables
from harness.state import HostMapping, HostTables, TablePage
from harness.units import AddrRange, merge_ranges, subtract_ranges


def _walked(evidence: Evidence) -> tuple[HostTables, View]:
    view = observed(evidence.views.walk).now
    return observed(evidence.observed.host_tables), view


@invariant(
    "PGT-1",
    "no page-table page of linear map and vmemmap is left where nothing is mapped any more, but for boot's own and "
    "exactly those that the architecture keeps",
    source="free_empty_tables, pgtable_range_aligned (arch/arm64/mm/mmu.c); remove_pgd_mapping, "
    "preallocate_pgd_pages_range (arch/riscv/mm/init.c, v6.12)",
    motive="a table left behind holds a page for ever, and the next removal below it may find it in the way",
    needs=("walk",),
)
def pgt_1(evidence: Evidence) -> Iterator[Broken]:
    tables, view = _walked(evidence)
    kept = _kept(evidence, view)
    yield from _left_over(evidence, tables, view, kept)
    yield from _given_up(evidence, tables, view, kept)


def _kept(evidence: Evidence, view: View) -> frozenset[Slot]:
    layout, kernel = evidence.layout, view.kernel
    arch, note = layout.machine.arch, observed(layout.facts.vmcoreinfo)
    try:
        levels = arch.table_format(note, layout.page_size).levels
    except (KeyError, ValueError) as error:
        raise Unobserved(f"the shape of the page tables is unknown: {error}") from None
    windows = (kernel.linear_window, kernel.vmemmap_window)
    return kept_tables(arch.table_rules, levels, windows, [*_boot(evidence), *_once(evidence, view)])


def _boot(evidence: Evidence) -> tuple[AddrRange, ...]:
    """The virtual ranges that linear map and vmemmap cover after boot."""
    boot = observed(evidence.views.walk).boot
    return merge_ranges(leaf.range for leaf in [*boot.linear, *boot.vmemmap])


def _once(evidence: Evidence, view: View) -> tuple[AddrRange, ...]:
    """The virtual ranges that hot-added memory had at any time."""
    once, kernel = evidence.expected.once, view.kernel
    return merge_ranges([*map(kernel.linear, once), *map(kernel.memmap, once)])


def _left_over(evidence: Evidence, tables: HostTables, view: View, kept: frozenset[Slot]) -> Iterator[Broken]:
    kernel, expected, baseline = view.kernel, evidence.expected, observed(evidence.layout.baseline.host_tables)
    linear = (kernel.linear(piece.range) for piece in expected.linear)
    used = merge_ranges([*_boot(evidence), *linear, *wanted_memmap(expected, kernel)])
    starts, ends = [part.start for part in used], [0, *(part.end for part in used)]
    unused = [page for page in tables.pages if ends[bisect_left(starts, page.range.end)] <= page.range.start]
    allowed = kept | _slots(baseline, (page.range for page in unused))
    for page in unused:
        if _is_own(page, view) and (page.level, page.range) not in allowed:
            yield Broken(describe(page), "freed: nothing is mapped there", f"{page.entries} entries in use", WALK)


def _is_own(page: TablePage, view: View) -> bool:
    """Whether a table is used only for the linear map, or only for vmemmap."""
    return view.kernel.linear_window.covers(page.range) or view.kernel.vmemmap_window.covers(page.range)


def _slots(tables: HostTables, places: Iterable[AddrRange]) -> frozenset[Slot]:
    """The tables that begin where one of ``places`` does: comparing numbers, not ranges, saves most of the time."""
    starts = {place.start for place in places}
    return frozenset((page.level, page.range) for page in tables.pages if page.range.start in starts)


def _given_up(evidence: Evidence, tables: HostTables, view: View, kept: frozenset[Slot]) -> Iterator[Broken]:
    """Missing tables that are never freed: the kept ones, and empty ones of boot where no memory was added since."""
    baseline, once = observed(evidence.layout.baseline.host_tables), _once(evidence, view)
    boot = {
        (page.level, page.range)
        for page in baseline.pages
        if not page.entries and _is_own(page, view) and not any(page.range.overlaps(piece) for piece in once)
    }
    never_freed = kept | boot
    there = _slots(tables, (place for _, place in never_freed))
    for level, place in sorted(never_freed - there, key=lambda slot: slot[1]):
        yield Broken(f"{level} table of virtual {place}", "kept", "absent", WALK)


@invariant(
    "PGT-2",
    "every entry of the kernel's page tables is sound; each table page is one page of the kernel's own memory; linear "
    "map and vmemmap lead into memory that is there",
    source="pgtable_alloc, GFP_PGTABLE_KERNEL (arch/arm64/mm/mmu.c); pagetable_alloc (arch/riscv/mm/init.c, v6.12)",
    motive="a table page that was freed while still linked is overwritten by its next owner",
    needs=("walk",),
)
def pgt_2(evidence: Evidence) -> Iterator[Broken]:
    tables, view = _walked(evidence)
    for fault in tables.faults:
        where = f"entry {fault.index} of the table at physical {fault.table:#x} (virtual {fault.range})"
        yield Broken(where, "a sound entry", f"{fault.entry:#018x}: {fault.reason}", WALK)
    memory = evidence.expected.kernel_memory
    addresses = sorted(page.address for page in tables.pages)
    inside = {address for part in memory for address in _inside(addresses, part)}
    for page in tables.pages:
        if page.address not in inside:
            yield Broken(describe(page), f"in {', '.join(map(str, memory))}", f"at {page.address:#x}", WALK)
    memmap = walked(view.vmemmap)
    yield from _twice(tables.pages, memmap)
    yield from _nowhere([*walked(view.linear), *memmap], _memory(evidence))


def describe(page: TablePage) -> str:
    """A table page in words."""
    return f"{page.level} table at physical {page.address:#x} (virtual {page.range})"


def _twice(pages: Sequence[TablePage], memmap: Sequence[HostMapping]) -> Iterator[Broken]:
    owners: dict[int, TablePage] = {}
    for page in pages:
        first = owners.setdefault(page.address, page)
        if first is not page:
            yield Broken(describe(page), "a page of its own", f"also the {describe(first)}", WALK)
    addresses = sorted(owners)
    for leaf in memmap:
        frames = AddrRange.sized(leaf.physical, leaf.range.size)
        for address in _inside(addresses, frames):
            where = leaf.range.start + address - frames.start
            yield Broken(describe(owners[address]), "a page of its own", f"mapped as memmap at {where:#x} too", WALK)


def _inside(addresses: Sequence[int], place: AddrRange) -> Sequence[int]:
    return addresses[bisect_left(addresses, place.start) : bisect_left(addresses, place.end)]


def _memory(evidence: Evidence) -> tuple[AddrRange, ...]:
    # Of a resizable device, only what its driver added is memory.
    devices = [device.range for device in evidence.expected.devices if device.requested_size is None]
    return merge_ranges([*evidence.layout.machine.node_ranges(), *evidence.expected.hot, *devices])


def _nowhere(leaves: Iterable[HostMapping], memory: Sequence[AddrRange]) -> Iterator[Broken]:
    for leaf in leaves:
        place = AddrRange.sized(leaf.physical, leaf.range.size)
        for part in () if any(there.covers(place) for there in memory) else subtract_ranges([place], memory):
            where = AddrRange.sized(leaf.range.start + part.start - leaf.physical, part.size)
            yield Broken(f"virtual {where}", "leads to memory", f"leads to {part}, where there is none", WALK)
