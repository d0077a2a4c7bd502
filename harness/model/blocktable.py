# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory blocks of a guest, and their zones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import UsageError
from harness.model.actions import ONLINE_TYPES
from harness.model.boot_layout import BootLayout
from harness.model.zones import MIXED, MOVABLE, ZoneTable
from harness.state import MemoryBlock, Zone
from harness.units import AddrRange, merge_ranges

#: their struct pages would take 128 GB with the smallest blocks
MAX_BLOCKS = 1 << 16


@dataclass
class Block:
    """One memory block: ``plugged`` bytes of it are present, of which ``self_hosted`` hold its own struct pages.

    ``owner`` is its device, None for boot memory; ``zone`` is None while it is offline, MIXED if it has pages of
    several zones.
    """

    index: int
    node: int
    owner: str | None
    zone: str | None
    plugged: int
    self_hosted: int = 0

    @property
    def managed(self) -> int:
        """Bytes that the buddy allocator gets while it is online."""
        return self.plugged - self.self_hosted


class BlockTable:
    """All memory blocks by index; ``policy`` is the value of auto_online_blocks."""

    def __init__(self, layout: BootLayout, zones: Sequence[Zone], policy: str) -> None:
        ram = layout.machine.node_ranges()
        self.layout = layout
        self.policy = policy
        self.zones = ZoneTable(zones, ram, layout.page_size)
        self.blocks: dict[int, Block] = {}
        self._offlined_boot: set[int] = set()
        for node, piece in enumerate(ram):
            for part in piece.chunks(layout.block_size):
                index = part.start // layout.block_size
                self.blocks[index] = Block(index, node, None, self._boot_zone(node, part), part.size)

    def _boot_zone(self, node: int, piece: AddrRange) -> str:
        names = [
            zone.name
            for zone in self.zones.to_state()
            if zone.node == node and (span := self.zones.get(node, zone.name).span) is not None and span.overlaps(piece)
        ]
        return names[0] if len(names) == 1 else MIXED

    def range_of(self, index: int) -> AddrRange:
        """Physical range of memory block ``index``."""
        return AddrRange.sized(index * self.layout.block_size, self.layout.block_size)

    def of(self, owner: str | None) -> tuple[int, ...]:
        """Indexes of the memory blocks of device ``owner``; of boot memory for None."""
        return tuple(sorted(index for index, block in self.blocks.items() if block.owner == owner))

    def add(
        self,
        place: AddrRange,
        node: int,
        owner: str,
        *,
        self_hosted: int = 0,
        plugged: int | None = None,
        policy: str | None = None,
    ) -> None:
        """add_memory_resource (mm/memory_hotplug.c, v6.12): new blocks, onlined by ``policy`` (None: the guest's).

        ``plugged`` bytes of each are present, all for None. Raises UsageError for more than MAX_BLOCKS.
        """
        size, policy = self.layout.block_size, policy or self.policy
        if len(self.blocks) + place.size // size > MAX_BLOCKS:
            raise UsageError(f"{owner} would bring the guest to more than {MAX_BLOCKS} memory blocks")
        self.zones.bring_online(node)
        for part in place.chunks(size):
            index = part.start // size
            self.blocks[index] = Block(index, node, owner, None, size if plugged is None else plugged, self_hosted)
        if policy in ONLINE_TYPES:
            for part in place.chunks(size):
                self.set_state(part.start // size, policy)

    def remove(self, index: int) -> None:
        """try_remove_memory (mm/memory_hotplug.c, v6.12) of one block, after offlining it if necessary."""
        block = self.blocks[index]
        if block.zone is not None:
            self.set_state(index, "offline")
        del self.blocks[index]
        self._try_offline_node(block.node)

    def _try_offline_node(self, node: int) -> None:
        """try_offline_node (mm/memory_hotplug.c, v6.12): a node without memory, blocks and CPUs goes offline."""
        used = any(block.node == node for block in self.blocks.values())
        if not used and self.zones.is_empty(node) and not self.layout.machine.has_cpu(node):
            self.zones.take_offline(node)

    def change_plugged(self, block: Block, change: int) -> None:
        """Plug ``change`` more bytes of ``block``, or unplug them if negative."""
        block.plugged += change
        if block.zone is not None:
            self.zones.get(block.node, block.zone).managed += change // self.layout.page_size

    def set_state(self, index: int, state: str) -> None:
        """Set a block online (one of ONLINE_TYPES) or offline; raises UsageError if there is no such block or state."""
        if state not in (*ONLINE_TYPES, "offline"):
            raise UsageError(f"memory{index} cannot be {state[:40]!r}")
        block = self.blocks.get(index)
        if block is None:
            raise UsageError(f"memory{index} does not exist")
        piece, pages = self.range_of(index), block.managed // self.layout.page_size
        if block.zone not in (None, MIXED):
            self.zones.get(block.node, block.zone).remove(piece, pages)
        block.zone = None
        if block.owner is None:
            (self._offlined_boot.add if state == "offline" else self._offlined_boot.discard)(index)
        if state != "offline":
            block.zone = self.zones.zone_for(block.node, piece, state)
            self.zones.get(block.node, block.zone).add(piece, pages)

    def is_online(self, section: int, early: bool) -> bool:
        """True if a section, which is one memory block, is online."""
        if early:
            return section not in self._offlined_boot
        block = self.blocks.get(section)
        return block is not None and block.zone is not None

    def onlined_since_boot(self) -> int:
        """The number of online blocks less those after boot."""
        online = sum(block.owner is not None and block.zone is not None for block in self.blocks.values())
        return online - len(self._offlined_boot)

    def kernel_memory(self) -> tuple[AddrRange, ...]:
        """Where the kernel's own pages can be: boot memory, and memory online in a kernel zone."""
        lent = [
            AddrRange(place.start + block.self_hosted, place.end)
            for block in self.blocks.values()
            if block.zone not in (None, MOVABLE)
            for place in (self.range_of(block.index),)
        ]
        return merge_ranges([*self.layout.machine.node_ranges(), *lent])

    def to_state(self) -> tuple[MemoryBlock, ...]:
        return tuple(self._to_state(self.blocks[index]) for index in sorted(self.blocks))

    def _to_state(self, block: Block) -> MemoryBlock:
        if block.zone is not None:
            zones: tuple[str, ...] = (block.zone,)
        else:
            zones = self.zones.valid_zones(block.node, self.range_of(block.index))
        return MemoryBlock(
            index=block.index,
            phys_index=block.index,
            state="offline" if block.zone is None else "online",
            removable=True,
            valid_zones=zones,
            nodes=(block.node,),
        )
