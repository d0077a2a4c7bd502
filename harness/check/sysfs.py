# SPDX-License-Identifier: GPL-2.0-or-later
"""BLK-*: memory blocks in sysfs; a notifier keeps one online only if it must.

Where sysfs was not read, they judge the blocks that the host read; XCK-3 proves that the two are equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from harness.check.evidence import Evidence
from harness.check.registry import Broken, Unobserved, invariant, observed, paired
from harness.state import MemoryBlock, NotObserved
from harness.units import AddrRange

SOURCE = "/sys/devices/system/memory"
BLOCKS = "the memory blocks in guest memory"
#: what is said of a range that is kept, END not included (can_unmap_without_split, arch/arm64/mm/mmu.c, v7.3)
_SPLIT = re.compile(r"\[([0-9a-f]{1,16}) ([0-9a-f]{1,16})\] splits a leaf entry in (?:linear map|vmemmap)")
#: what a notifier that returns NOTIFY_BAD makes of the write (notifier_to_errno)
_VETO = "EPERM"


def _pairs(evidence: Evidence) -> dict[int, tuple[MemoryBlock | None, MemoryBlock | None]]:
    return paired(evidence.expected.blocks, observed(evidence.observed.memory_blocks), lambda block: block.index)


@invariant(
    "BLK-1",
    "memory blocks are exactly those the ranges cover; phys_index, removable, valid_zones and node links agree",
    source="create_memory_block_devices, valid_zones_show (drivers/base/memory.c, v6.12)",
    motive="93866f55f7e2: mm/memory_hotplug: fix memory block reference leak on remove",
    reads=(SOURCE,),
    needs=("hotplug",),
)
def blk_1(evidence: Evidence) -> Iterator[Broken]:
    pairs = _pairs(evidence)
    size, wanted_size = evidence.layout.facts.memory_block_size, evidence.layout.block_size
    if size != wanted_size:
        yield Broken("block_size_bytes", f"{wanted_size:x}", f"{size:x}", SOURCE)
    for index, (wanted, seen) in pairs.items():
        where = f"memory{index}"
        if wanted is None or seen is None:
            must, there = ("absent" if block is None else "present" for block in (wanted, seen))
            yield Broken(where, must, there, SOURCE)
            continue
        if seen.phys_index != wanted.phys_index:
            yield Broken(f"{where}/phys_index", f"{wanted.phys_index:08x}", f"{seen.phys_index:08x}", SOURCE)
        if seen.removable not in (None, wanted.removable):
            yield Broken(f"{where}/removable", str(wanted.removable), str(seen.removable), SOURCE)
        if seen.valid_zones not in (None, wanted.valid_zones):
            yield Broken(f"{where}/valid_zones", _words(wanted.valid_zones), _words(seen.valid_zones), SOURCE)
        if seen.nodes != wanted.nodes:
            yield Broken(f"{where}/node*", _words(wanted.nodes), _words(seen.nodes), SOURCE)


def _words(values: tuple[object, ...] | None) -> str:
    return " ".join(map(str, values or ())) or "none"


@invariant(
    "BLK-2",
    "a block follows the requested online type; the auto-online policy, and a kmem device's state, are what was set",
    source="state_store, auto_online_blocks_store (drivers/base/memory.c, v6.12); state_show (drivers/dax/kmem.c, 7.3)",
    motive="a block that is online unasked hides every later refusal",
    reads=("/sys/bus/dax/devices",),
    needs=("hotplug",),
)
def blk_2(evidence: Evidence) -> Iterator[Broken]:
    for index, (wanted, seen) in _pairs(evidence).items():
        if wanted is not None and seen is not None and wanted.state != seen.state:
            yield Broken(f"memory{index}/state", wanted.state, seen.state, SOURCE)
    dax = evidence.observed.dax
    # daxX.Y/state is there while the kmem driver has the device, in kernels that have the file at all.
    for device in () if isinstance(dax, NotObserved) else dax:
        state = evidence.expected.dax_states.get(device.name)
        if device.state is not None and device.state != state:
            yield Broken(f"{device.name}/state", state or "absent", device.state, "/sys/bus/dax/devices")
    policy = observed(evidence.observed.auto_online)
    if policy != evidence.expected.auto_online:
        yield Broken("auto_online_blocks", evidence.expected.auto_online, policy, SOURCE)
    observed(dax)


@invariant(
    "BLK-3",
    "a notifier keeps a memory block online where it is boot memory that this kernel never gives up, or where a leaf "
    "of the linear map reaches beyond the block, and nowhere else; one with a hole or several zones is EINVAL",
    source="prevent_memory_remove_notifier, can_unmap_without_split (arch/arm64/mm/mmu.c, v7.3); offline_pages "
    "(mm/memory_hotplug.c)",
    motive="95a58852b0e5: arm64/mm: Reject memory removal that splits a kernel leaf mapping: it asks about the range "
    "behind a self-hosted memmap, whose own struct pages begin inside of a leaf",
    needs=("hotplug", "log", "tables"),
)
def blk_3(evidence: Evidence) -> Iterator[Broken]:
    said, broken = dict(_said(evidence)), evidence.expected.broken
    for report in evidence.offlines:
        if report.index in broken and report.error != "EINVAL":
            must = f"stays online (EINVAL): {broken[report.index]}"
            yield Broken(f"memory{report.index}", must, report.error or "went offline", SOURCE)
    if said or evidence.offlines:
        spanned = observed(evidence.expected.spanned)
        yield from _kept_for_nothing(evidence, said, spanned)
        if evidence.layout.features.keeps_spanned_blocks is True:
            for report in evidence.offlines:
                if report.error is None and report.index in spanned:
                    must = f"stays online: {spanned[report.index]}"
                    yield Broken(f"memory{report.index}", must, "went offline", SOURCE)
    observed(evidence.observed.dmesg)
    if evidence.observed.dmesg_lost:
        raise Unobserved(evidence.observed.dmesg_lost)


def _said(evidence: Evidence) -> Iterator[tuple[int, str]]:
    """The blocks that the kernel kept for a leaf according to its log, and the line."""
    dmesg, size = evidence.observed.dmesg, evidence.layout.block_size
    for line in () if isinstance(dmesg, NotObserved) else dmesg:
        match = _SPLIT.fullmatch(line.text)
        if match is not None and int(match[1], 16) < int(match[2], 16):
            place = AddrRange(int(match[1], 16), int(match[2], 16)).align_outward(size)
            yield from ((part.start // size, line.text) for part in place.chunks(size))


def _kept_for_nothing(evidence: Evidence, said: Mapping[int, str], spanned: Mapping[int, str]) -> Iterator[Broken]:
    silent = {
        report.index: f"{report.error}, and the kernel's log does not say why"
        for report in evidence.offlines
        if report.error == _VETO
        and report.index not in evidence.expected.broken
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
