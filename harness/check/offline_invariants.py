# SPDX-License-Identifier: GPL-2.0-or-later
"""BLK-3: a notifier keeps a memory block online only if it must."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from harness.check.evidence import Evidence
from harness.check.registry import Broken, Outcome, invariant
from harness.check.sysfs import SOURCE
from harness.state import NotObserved
from harness.units import AddrRange

#: what is said of a range that is kept, END not included (can_unmap_without_split, arch/arm64/mm/mmu.c, v7.3)
_SPLIT = re.compile(r"\[([0-9a-f]{1,16}) ([0-9a-f]{1,16})\] splits a leaf entry in (?:linear map|vmemmap)")
#: what a notifier that returns NOTIFY_BAD makes of the write (notifier_to_errno)
_VETO = "EPERM"


@invariant(
    "BLK-3",
    "a notifier keeps a memory block online where it is boot memory that this kernel never gives up, or where a leaf "
    "of the linear map reaches beyond the block, and nowhere else",
    source="prevent_memory_remove_notifier, can_unmap_without_split (arch/arm64/mm/mmu.c, v7.3); offline_pages "
    "(mm/memory_hotplug.c)",
    motive="95a58852b0e5: arm64/mm: Reject memory removal that splits a kernel leaf mapping: it asks about the range "
    "behind a self-hosted memmap, whose own struct pages begin inside of a leaf",
    needs=("hotplug", "log", "tables"),
)
def blk_3(evidence: Evidence) -> Outcome:
    said, spanned, dmesg = dict(_said(evidence)), evidence.expected.spanned, evidence.observed.dmesg
    lost = NotObserved(evidence.observed.dmesg_lost) if evidence.observed.dmesg_lost else None
    unseen = dmesg if isinstance(dmesg, NotObserved) else lost
    if not said and not evidence.offlines:
        return unseen or []
    if isinstance(spanned, NotObserved):
        return spanned
    return [*_kept_for_nothing(evidence, said, spanned), *_let_go(evidence, spanned)] or unseen or []


def _said(evidence: Evidence) -> Iterator[tuple[int, str]]:
    """The blocks that the kernel kept for a leaf according to its log, and the line."""
    dmesg, size = evidence.observed.dmesg, evidence.layout.block_size
    for line in () if isinstance(dmesg, NotObserved) else dmesg:
        found = _SPLIT.fullmatch(line.text)
        if found is not None and int(found[1], 16) < int(found[2], 16):
            place = AddrRange(int(found[1], 16), int(found[2], 16)).align_outward(size)
            yield from ((part.start // size, line.text) for part in place.chunks(size))


def _kept_for_nothing(evidence: Evidence, said: Mapping[int, str], spanned: Mapping[int, str]) -> Iterator[Broken]:
    silent = {
        report.index: f"{report.error}, and the kernel's log does not say why"
        for report in evidence.offlines
        if report.error == _VETO
        and not _is_kept_boot_memory(evidence, report.index)
        and not isinstance(evidence.observed.dmesg, NotObserved)
        and not evidence.observed.dmesg_lost
    }
    wanted = "goes offline: no leaf of the linear map reaches beyond it"
    for index, text in sorted((silent | dict(said)).items()):
        if index not in spanned:
            yield Broken(f"memory{index}", wanted, f"stays online: {text}", "dmesg" if index in said else SOURCE)


def _is_kept_boot_memory(evidence: Evidence, index: int) -> bool:
    layout = evidence.layout
    block = AddrRange.sized(index * layout.block_size, layout.block_size)
    boot = any(block.overlaps(ram) for ram in layout.machine.node_ranges())
    # If it is unknown whether the kernel keeps boot memory, a veto is allowed.
    return boot and layout.features.keeps_boot_memory is not False


def _let_go(evidence: Evidence, spanned: Mapping[int, str]) -> Iterator[Broken]:
    if evidence.layout.features.keeps_spanned_blocks is not True:
        return
    for report in evidence.offlines:
        if report.error is None and report.index in spanned:
            yield Broken(f"memory{report.index}", f"stays online: {spanned[report.index]}", "went offline", SOURCE)
