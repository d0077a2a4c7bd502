# SPDX-License-Identifier: GPL-2.0-or-later
"""Corruptions of memory blocks, zones and counters in guest memory, with and without the guest's own text."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness.kmem.block_devices import BlockDevices, block_addresses
from harness.kmem.node_zones import COUNTS, NodeZones
from harness.kmem.tablecount import root_tables
from harness.kmem.vm_counters import TotalMemory, VmCounters
from harness.selftest.corruption import Case, MemoryCorruption, Stroke, memory
from harness.selftest.live import Live
from harness.selftest.scene import Inapplicable, observed
from harness.state import MemoryBlock


def _block(member: str, value: Callable[[Live, BlockDevices, MemoryBlock], int]) -> Stroke:
    """Put another value into a member of an online, hot-added block."""

    def apply(live: Live) -> str:
        layout, block = live.record("host_blocks", BlockDevices), live.scene.block("online")
        reader = live.reader()
        place, size = layout.members[member].offset, layout.members[member].size
        address = block_addresses(reader, layout)[block.index] + place
        data = value(live, layout, block).to_bytes(size, "little")
        live.editor.write(reader.physical(address), data)
        return f"{member} of memory{block.index}"

    return apply


def _state(word: str) -> Stroke:
    def number(live: Live, layout: BlockDevices, block: MemoryBlock) -> int:
        return next(number for number, text in layout.states.items() if text == word)

    return _block("state", number)


def _zones(live: Live) -> Mapping[tuple[int, str], int]:
    layout = live.record("host_zoneinfo", NodeZones)
    return {(node, name): at for node, name, at in layout.addresses(live.reader())}


def _other_zone(live: Live, layout: BlockDevices, block: MemoryBlock) -> int:
    assert block.valid_zones is not None
    mine = (block.nodes[0], block.valid_zones[0])
    return next(at for place, at in _zones(live).items() if place[0] == mine[0] and place != mine)


def _zone(member: str, by: int) -> Stroke:
    """Add to a count of the zone of an online, hot-added block."""

    def apply(live: Live) -> str:
        layout, block = live.record("host_zoneinfo", NodeZones), live.scene.block("online")
        assert block.valid_zones is not None
        node, name = block.nodes[0], block.valid_zones[0]
        _add(live, _zones(live)[node, name] + layout.counts[COUNTS.index(member)], by)
        return f"{member} of zone {name} of node {node}"

    return apply


def _memmap(live: Live) -> str:
    singles = live.record("host_vmstat", VmCounters).singles
    if not singles:
        raise Inapplicable("the kernel has no variable for nr_memmap (since v6.12)")
    name, address = next(iter(singles.items()))
    _add(live, address, 1)
    return name


def _total(live: Live) -> str:
    _add(live, live.record("host_meminfo", TotalMemory).address, 1)
    return "_totalram_pages"


def _account(live: Live) -> str:
    layout, reader = live.counting, live.reader()
    tables = observed(observed(live.scene.evidence.observed.host_tables).count)
    if layout.account is None or tables.astray is None:
        raise Inapplicable("the processes' own accounts cannot be compared")
    mm = next(mm for mm, _ in root_tables(reader, layout) if mm not in layout.others)
    _add(live, mm + layout.account, live.tables.page_size)
    return "pgtables_bytes of a process"


def _add(live: Live, address: int, by: int) -> None:
    place = live.reader().physical(address)
    live.editor.write_word(place, (live.editor.read_word(place) + by) % (1 << 64))


def _both(source: str, cross_check: str, *cases: Case[Stroke]) -> tuple[MemoryCorruption, ...]:
    """Each case twice: ``cross_check`` names it where the text ``source`` was read, the case's invariants otherwise."""
    found = []
    for case in cases:
        target = f"what is behind {source}"
        found.append(MemoryCorruption(case.name, target, case.summary, frozenset({cross_check}), case.how))
        summary = f"{case.summary}, and nobody reads {source}"
        found.append(
            MemoryCorruption(f"{case.name}-unread", target, summary, case.invariants, case.how, left_out=source)
        )
    return tuple(found)


CORRUPTIONS = (
    *_both(
        "blocks",
        "XCK-3",
        Case("held-block-offline", "an online memory block is offline in memory", "BLK-2", _state("offline")),
        Case("held-block-zone", "an online memory block has the zone of another", "BLK-1", _block("zone", _other_zone)),
        Case("held-block-no-zone", "an online memory block has no zone", "BLK-1", _block("zone", lambda *_: 0)),
        Case(
            "held-block-elsewhere",
            "a memory block belongs to another node",
            "BLK-1",
            _block("nid", lambda live, layout, block: block.nodes[0] + 1),
        ),
        Case(
            "held-block-moved",
            "a memory block begins elsewhere",
            "BLK-1",
            _block("start_section_nr", lambda *_: 0),
        ),
    ),
    *_both(
        "zoneinfo",
        "XCK-4",
        Case("held-zone-spanned", "a zone spans one section too many", "ZON-1", _zone("spanned_pages", 1 << 15)),
        Case("held-zone-present", "one present page too many", "ZON-1", _zone("present_pages", 1)),
        Case("held-zone-managed", "one managed page is missing", "ZON-1", _zone("managed_pages", -1)),
        Case("held-zone-start", "a zone begins one section too early", "ZON-1", _zone("zone_start_pfn", -(1 << 15))),
    ),
    *_both("vmstat", "XCK-5", Case("held-memmap", "one page of memmap too many is counted", "MEM-2", _memmap)),
    *memory("mm_struct", Case("held-account", "a process accounts for one page table too many", "MEM-2", _account)),
    *_both("meminfo", "XCK-5", Case("held-total", "the total is one page too large", "MEM-1", _total)),
)
