# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's memory blocks (struct memory_block, include/linux/memory.h), as sysfs shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from harness.errors import InfraError
from harness.kmem.btf import Btf, Member
from harness.kmem.lookup import KernelReader
from harness.kmem.node_zones import NodeZones
from harness.kmem.xarray import ArrayLayout, array_layout, read_array
from harness.state import NotObserved

#: memory_blocks is an xarray since v5.8 (commit 4fb6eabf1037)
SYMBOLS = ("memory_blocks", "sections_per_block")
#: their struct pages would take 128 GB with the smallest blocks
_MOST_BLOCKS = 1 << 16
#: what state_show prints; other states have no name (drivers/base/memory.c)
_STATES = {"MEM_ONLINE": "online", "MEM_OFFLINE": "offline", "MEM_GOING_OFFLINE": "going-offline"}
#: the values of an unsigned long, before they became an enum (include/linux/memory.h, v6.1)
_MACROS = {"MEM_ONLINE": 1 << 0, "MEM_GOING_OFFLINE": 1 << 1, "MEM_OFFLINE": 1 << 2}
_MEMBERS = ("start_section_nr", "state", "nid", "zone")


@dataclass(frozen=True, slots=True)
class BlocksCopy:
    """The memory blocks of a paused guest: index, start_section_nr, state, node and address of the zone of each.

    ``places`` are the zones by address: node and name.
    """

    layout: BlockDevices
    rows: tuple[tuple[int, int, int, int, int], ...]
    per_block: int
    places: Mapping[int, tuple[int, str]]

    def text(self) -> bytes:
        """The files of sysfs, as far as memory tells their content.

        An offline block's valid_zones are not in memory. A block of boot memory that belongs to several nodes has the
        last of them there, and no zone (memory_block_add_nid_early).
        """
        return "".join(f"memory{line}\n" for line in self._lines()).encode()

    def _lines(self) -> Iterator[str]:
        for index, start, state, node, zone in self.rows:
            word = self.layout.states.get(state, f"ERROR-UNKNOWN-{state}")
            yield f"{index}/state:{word}"
            yield f"{index}/phys_index:{start // self.per_block:08x}"
            if word == "online":
                yield f"{index}/valid_zones:{self._zone(zone, node)}"
            if self.layout.zones.nodes.single is None and not node >> 31:
                yield f"{index}/node:{node}"

    def _zone(self, zone: int, node: int) -> str:
        if zone == 0:
            return "none"
        owner, name = self.places.get(zone, (node, f"{zone:#x}"))
        return name if owner == node or node >> 31 else f"{name} of node {owner}"


@dataclass(frozen=True, slots=True)
class BlockDevices:
    """Where the blocks are: addresses of ``memory_blocks`` and ``sections_per_block``, members of memory_block by name.

    ``states`` are the words for its states.
    """

    array: ArrayLayout
    blocks: int
    per_block: int
    members: Mapping[str, Member]
    states: Mapping[int, str]
    zones: NodeZones

    def copy(self, reader: KernelReader, before: object = None) -> BlocksCopy:
        """Read the blocks of a paused guest. Raises InfraError."""
        index, pointers = read_array(reader, self.array, self.blocks, _MOST_BLOCKS)
        size = max(member.offset + member.size for member in self.members.values())
        words, read = reader.gather(pointers, -(-size // 8))
        if not read.all() or not len(index):
            raise InfraError("the kernel's memory blocks cannot be read")
        data = words.astype("<u8", copy=False).view("u1")
        columns = [
            data[:, member.offset : member.offset + member.size].copy().view(f"<u{member.size}").ravel().tolist()
            for member in map(self.members.__getitem__, _MEMBERS)
        ]
        per_block = int.from_bytes(reader.read(self.per_block, 4), "little")
        if per_block == 0:
            raise InfraError("the kernel's memory blocks have no sections")
        places = {at: (node, name) for node, name, at in self.zones.addresses(reader)}
        return BlocksCopy(self, tuple(zip(index.tolist(), *columns, strict=True)), per_block, places)


def block_addresses(reader: KernelReader, layout: BlockDevices) -> dict[int, int]:
    """The address of each struct memory_block by its index, in a paused guest. Raises InfraError."""
    index, pointers = read_array(reader, layout.array, layout.blocks, _MOST_BLOCKS)
    return dict(zip(index.tolist(), pointers.tolist(), strict=True))


def block_devices(symbols: Mapping[str, int], types: Btf, zones: NodeZones | NotObserved) -> BlockDevices | NotObserved:
    """Find the blocks; ``symbols`` are the addresses of SYMBOLS. Raises ParseError for broken BTF."""
    missing = [name for name in SYMBOLS if name not in symbols]
    if missing:
        return NotObserved(f"the kernel's symbols have no {', '.join(missing)} (MEMORY_HOTPLUG, KALLSYMS_ALL)")
    array = array_layout(types)
    for part in (zones, array):
        if isinstance(part, NotObserved):
            return part
    assert not isinstance(zones, NotObserved) and not isinstance(array, NotObserved)
    members = {name: types.member("memory_block", name) for name in _MEMBERS}
    known = {name: member for name, member in members.items() if member is not None and member.size in (4, 8)}
    if len(known) != len(_MEMBERS):
        return NotObserved("the layout of struct memory_block is unknown")
    values = types.enumerators("MEM_ONLINE") or (_MACROS if known["state"].size == 8 else {})
    states = {values[name]: word for name, word in _STATES.items() if name in values}
    if len(states) != len(_STATES):
        return NotObserved("the numbers of the states of memory blocks are unknown")
    return BlockDevices(array, symbols["memory_blocks"], symbols["sections_per_block"], known, states, zones)
