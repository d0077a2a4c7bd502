# SPDX-License-Identifier: GPL-2.0-or-later
"""A made-up kernel with zones, memory blocks and counters, all in the linear map; and recorded real ones."""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kmem_sparse_guest import recorded_regions
from test_kmem_btf import Writer

from harness.arch import arch_named
from harness.kmem.address import DirectMap, Window, direct_map
from harness.kmem.btf import Btf
from harness.kmem.lookup import KernelReader
from harness.kmem.physical_memory import PhysicalMemory, Region
from harness.state import Zone
from harness.units import MIB, AddrRange

FIXTURES = Path(__file__).parent / "fixtures"
BASE, SIZE, LINEAR = 0x8000_0000, MIB, 0xFFFF_FF80_0000_0000
ZONES = ("DMA", "Normal", "Movable")
#: an arbitrary kernel's layouts, in bytes
ZONE_SIZE, PGDAT_SIZE, NODE_ZONES, NODE_STATS, NODE_DIFFS = 192, 1024, 64, 800, 4
ZONE_STATS, ZONE_DIFFS, START, MANAGED, SPANNED, PRESENT, NAME = 8, 0, 40, 56, 72, 80, 96
SLOTS, WIDTH, BLOCK_SIZE = 40, 64, 96
OF_ZONES = ("nr_free_pages", "nr_mlock", "nr_free_cma")
OF_NODES = ("nr_inactive_anon", "nr_anon_transparent_hugepages", "nr_page_table_pages")
#: index -> section, state, node, zone (address or 0)
Blocks = Mapping[int, tuple[int, int, int, int]]


def types(*, enum: bool = True) -> Btf:
    """The layouts as BTF; without ``enum`` the states of blocks are the macros of v6.1, in a long."""
    btf = Writer()
    long, word, byte = btf.int(), btf.int("int", 4), btf.int("char", 1)
    pointer = btf.add(2, "", 0)
    state = long
    if enum:
        state = btf.enum("memory_block_state", ("MEM_ONLINE", 0), ("MEM_GOING_OFFLINE", 1), ("MEM_OFFLINE", 2))
    btf.struct("xarray", 16, ("xa_lock", word, 0), ("xa_head", pointer, 64))
    btf.struct("xa_node", SLOTS + 8 * WIDTH, ("shift", byte, 0), ("slots", btf.array(pointer, WIDTH), 8 * SLOTS))
    btf.struct(
        "memory_block",
        BLOCK_SIZE,
        ("start_section_nr", long, 0),
        ("state", state, 64),
        ("nid", word, 160),
        ("zone", pointer, 512),
    )
    btf.struct(
        "zone",
        ZONE_SIZE,
        ("per_cpu_zonestats", pointer, 8 * ZONE_STATS),
        ("zone_start_pfn", long, 8 * START),
        ("managed_pages", long, 8 * MANAGED),
        ("spanned_pages", long, 8 * SPANNED),
        ("present_pages", long, 8 * PRESENT),
        ("name", pointer, 8 * NAME),
    )
    zone = len(btf.types)
    btf.struct(
        "pglist_data",
        PGDAT_SIZE,
        ("node_zones", btf.array(zone, len(ZONES)), 8 * NODE_ZONES),
        ("per_cpu_nodestats", pointer, 8 * NODE_STATS),
    )
    btf.struct("per_cpu_zonestat", 8, ("vm_stat_diff", btf.array(byte, len(OF_ZONES)), 8 * ZONE_DIFFS))
    btf.struct("per_cpu_nodestat", 8, ("vm_node_stat_diff", btf.array(byte, len(OF_NODES)), 8 * NODE_DIFFS))
    return Btf(btf.blob())


@dataclass
class VmGuest:
    """``path`` becomes its memory; ``symbols`` grow with what is put there."""

    path: Path
    symbols: dict[str, int] = field(default_factory=dict)
    note: dict[str, str] = field(default_factory=dict)
    zones: dict[tuple[int, str], int] = field(default_factory=dict)
    pgdats: dict[int, int] = field(default_factory=dict)
    _next: int = LINEAR

    def __post_init__(self) -> None:
        with self.path.open("w+b") as file:
            file.truncate(SIZE)
            self._map = mmap.mmap(file.fileno(), SIZE)

    def take(self, size: int) -> int:
        self._next += -self._next % 64 + size
        return self._next - size

    def write(self, address: int, data: bytes) -> int:
        self._map[address - LINEAR : address - LINEAR + len(data)] = data
        return address

    def put(self, address: int, *words: int) -> int:
        return self.write(address, struct.pack(f"<{len(words)}Q", *(word % (1 << 64) for word in words)))

    def text(self, text: str) -> int:
        return self.write(self.take(len(text) + 1), text.encode() + b"\0")

    def add_zones(self, zones: Sequence[Zone], *, online: Sequence[int] | None = None, numa: bool = True) -> None:
        """``zones`` are all of each node; with ``numa``, those of the nodes ``online`` count (None: of all)."""
        nodes = sorted({zone.node for zone in zones})
        names = {name: self.text(name) for name in ZONES}
        self.pgdats = {node: self.take(PGDAT_SIZE) for node in nodes}
        for zone in zones:
            at = self.pgdats[zone.node] + NODE_ZONES + ZONES.index(zone.name) * ZONE_SIZE
            self.zones[zone.node, zone.name] = at
            self.put(at + START, zone.start_pfn or 0)
            self.put(at + MANAGED, zone.managed)
            self.put(at + SPANNED, zone.spanned)
            self.put(at + PRESENT, zone.present)
            self.put(at + NAME, names[zone.name])
        if not numa:
            self.symbols["contig_page_data"] = self.pgdats[0]
            return
        self.symbols["node_data"] = self.put(self.take(8 * 64), *(self.pgdats.get(node, 0) for node in range(64)))
        mask = self.put(self.take(8), sum(1 << node for node in (nodes if online is None else online)))
        self.note |= {"SYMBOL(node_online_map)": f"{mask:x}", "SIZE(nodemask_t)": "8"}

    def add_blocks(self, blocks: Blocks, *, per_block: int = 1, enum: bool = True) -> None:
        entries = {}
        for index, (section, state, node, zone) in blocks.items():
            at = entries[index] = self.take(BLOCK_SIZE)
            self.put(at, section)
            self.write(at + 8, struct.pack("<I" if enum else "<Q", state))
            self.write(at + 20, struct.pack("<i", node))
            self.put(at + 64, zone)
        self.symbols["memory_blocks"] = self.put(self.take(16), 0, self.array(entries))
        self.symbols["sections_per_block"] = self.put(self.take(8), per_block)

    def array(self, entries: Mapping[int, int]) -> int:
        """The head of an xarray of ``entries``: nodes where lib/xarray.c would have them."""
        if not entries or list(entries) == [0]:
            return entries.get(0, 0)
        shift = (max(entries).bit_length() - 1) // 6 * 6
        return self._node(entries, shift)

    def _node(self, entries: Mapping[int, int], shift: int) -> int:
        at = self.write(self.take(SLOTS + 8 * WIDTH), bytes([shift]))
        for slot in {index >> shift for index in entries}:
            below = {index & (1 << shift) - 1: entry for index, entry in entries.items() if index >> shift == slot}
            self.put(at + SLOTS + 8 * slot, self._node(below, shift - 6) if shift else below[0])
        return at + 2

    def add_counters(
        self,
        zones: Sequence[int],
        nodes: Sequence[int],
        waiting: Mapping[int, tuple[Sequence[int], Sequence[int]]],
    ) -> None:
        """Totals of zones and nodes; ``waiting`` are each CPU's differences: for node 0's DMA zone, and for node 0."""
        names = (*OF_ZONES, "numa_hit", *OF_NODES)
        self.symbols["vmstat_text"] = self.put(self.take(8 * len(names)), *(self.text(name) for name in names))
        self.symbols["vm_zone_stat"] = self.put(self.take(8 * len(zones)), *zones)
        self.symbols["vm_node_stat"] = self.put(self.take(8 * len(nodes)), *nodes)
        areas = [self.take(4096) for _ in waiting]
        self.symbols["__per_cpu_offset"] = self.put(self.take(8 * 8), *areas)
        for place, at in self.zones.items():
            self.put(at + ZONE_STATS, 128 if place == (0, "DMA") else 0)
        for node, at in self.pgdats.items():
            self.put(at + NODE_STATS, 256 if node == 0 else 512)
        for area, (of_zone, of_node) in zip(areas, waiting.values(), strict=True):
            self.write(area + 128 + ZONE_DIFFS, struct.pack(f"{len(of_zone)}b", *of_zone))
            self.write(area + 256 + NODE_DIFFS, struct.pack(f"{len(of_node)}b", *of_node))

    def reader(self, memory: PhysicalMemory) -> KernelReader:
        note = {
            "OSRELEASE": "7.3.4",
            "NUMBER(VA_BITS)": "39",
            "NUMBER(MAX_PHYSMEM_BITS)": "48",
            "NUMBER(VMEMMAP_END)": "0xffffffffc0000000",
            "SYMBOL(swapper_pg_dir)": f"{BASE + SIZE - 4096 + (1 << 40):x}",
            "NUMBER(kimage_voffset)": f"{1 << 40:#x}",
        }
        direct = DirectMap((Window(AddrRange.sized(LINEAR, SIZE), LINEAR - BASE),))
        return KernelReader(memory, direct, arch_named("arm64").table_format(note, 4096))

    def memory(self) -> PhysicalMemory:
        return PhysicalMemory([Region(AddrRange.sized(BASE, SIZE), self.path)])


class RecordedVm:
    """A recorded guest (fixtures/records/ORIGIN.md), written back into sparse files."""

    def __init__(self, name: str, directory: Path) -> None:
        self.data: dict[str, Any] = json.loads((FIXTURES / "records" / name).read_text())
        self.note: dict[str, str] = self.data["note"]
        self.symbols: dict[str, int] = {name: int(at, 16) for name, at in self.data["symbols"].items()}
        self.arch = arch_named(self.data["arch"])
        self.regions = recorded_regions(self.data, directory)

    def reader(self, memory: PhysicalMemory) -> KernelReader:
        kernel = self.arch.kernel_layout(self.note, None)
        return KernelReader(memory, direct_map(kernel), self.arch.table_format(self.note, self.data["page_size"]))

    def types(self) -> Btf:
        btf = Writer()
        for name, (size, members) in self.data["types"].items():
            rows = []
            for member, (bits, width, length) in members.items():
                element = btf.int("", width // (length or 1))
                rows.append((member, btf.array(element, length) if length else element, bits))
            btf.struct(name, size, *rows)
        btf.enum("memory_block_state", *self.data["states"].items())
        return Btf(btf.blob())
