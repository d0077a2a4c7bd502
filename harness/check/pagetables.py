# SPDX-License-Identifier: GPL-2.0-or-later
"""PGT-*: the page-table pages themselves, as the host finds them in the guest's memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from harness.check.evidence import Evidence
from harness.check.registry import Broken, Outcome, invariant
from harness.check.views import WALK, View
from harness.state import HostMapping, HostTables, NotObserved, TablePage
from harness.units import AddrRange, merge_ranges, subtract_ranges


def _walked(evidence: Evidence) -> tuple[HostTables, View] | NotObserved:
    pair, tables = evidence.views.walk, evidence.observed.host_tables
    if isinstance(pair, NotObserved):
        return pair
    assert not isinstance(tables, NotObserved)
    return tables, pair.now


@invariant(
    "PGT-2",
    "every entry of the kernel's page tables is sound; table pages lie in memory that the kernel may use, each in one "
    "place; linear map and vmemmap lead into memory that is there, and not to a page table's page as memmap",
    source="pgtable_alloc, GFP_PGTABLE_KERNEL (arch/arm64/mm/mmu.c); pagetable_alloc (arch/riscv/mm/init.c, v6.12)",
    motive="a table page that was freed while still linked is overwritten by its next owner",
)
def pgt_2(evidence: Evidence) -> Outcome:
    walked = _walked(evidence)
    if isinstance(walked, NotObserved):
        return walked
    tables, view = walked
    memmap = [leaf for leaf in view.vmemmap if isinstance(leaf, HostMapping)]
    linear = [leaf for leaf in view.linear if isinstance(leaf, HostMapping)]
    return [
        *_faults(tables),
        *_table_places(tables.pages, evidence.expected.kernel_memory),
        *_twice(tables.pages, memmap),
        *_nowhere([*linear, *memmap], _memory(evidence)),
    ]


def _faults(tables: HostTables) -> Iterator[Broken]:
    for fault in tables.faults:
        yield Broken(
            f"entry {fault.index} of the table at physical {fault.table:#x} (virtual {fault.range})",
            "a sound entry",
            f"{fault.entry:#018x}: {fault.reason}",
            WALK,
        )


def describe(page: TablePage) -> str:
    """A table page in words."""
    return f"{page.level} table at physical {page.address:#x} (virtual {page.range})"


def _table_places(pages: Sequence[TablePage], memory: Sequence[AddrRange]) -> Iterator[Broken]:
    allowed = ", ".join(map(str, memory))
    for page in pages:
        if not any(page.address in part for part in memory):
            yield Broken(describe(page), f"in {allowed}", f"at {page.address:#x}", WALK)


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
    devices = (device.range for device in evidence.expected.devices)
    return merge_ranges([*evidence.layout.machine.node_ranges(), *devices])


def _nowhere(leaves: Iterable[HostMapping], memory: Sequence[AddrRange]) -> Iterator[Broken]:
    for leaf in leaves:
        for part in subtract_ranges([AddrRange.sized(leaf.physical, leaf.range.size)], memory):
            where = AddrRange.sized(leaf.range.start + part.start - leaf.physical, part.size)
            yield Broken(f"virtual {where}", "leads to memory", f"leads to {part}, where there is none", WALK)
