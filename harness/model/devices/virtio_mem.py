# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-mem, following its driver (drivers/virtio/virtio_mem.c, v6.12)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from harness.model.actions import action
from harness.model.blocktable import Block, BlockTable
from harness.model.boot_layout import BootLayout
from harness.model.devices.device import (
    BACKEND_ALIGNMENT,
    Device,
    DeviceAction,
    VirtioDevice,
    free_place,
    free_virtio_index,
    plug,
    plugged,
)
from harness.model.expected import IomemAddition, LinearPiece
from harness.model.spanned_blocks import kept_blocks
from harness.model.zones import MOVABLE
from harness.state import MemoryDevice
from harness.units import GIB, AddrRange, merge_ranges

#: VIRTIO_MEM_DEFAULT_OFFLINE_THRESHOLD (drivers/virtio/virtio_mem.c, v6.12): bytes that a device adds ahead of onlining
OFFLINE_THRESHOLD = GIB


@action
@dataclass(frozen=True, slots=True)
class PlugVirtioMem(DeviceAction):
    """virtio-mem-pci ``id`` with a region of ``max_size`` bytes was hot-plugged below root port ``port``.

    ``address`` None: QEMU chose.
    """

    max_size: int
    block_size: int
    requested: int = 0
    node: int = 0
    port: str = ""
    address: int | None = None

    def follow(self, devices: dict[str, Device], blocks: BlockTable) -> None:
        layout = blocks.layout
        sub_block = max(self.block_size, layout.pageblock_size)
        if self.address is None:
            place = free_place(layout, devices, self.max_size, max(self.block_size, BACKEND_ALIGNMENT))
        else:
            place = AddrRange.sized(self.address, self.max_size)
        device = VirtioMem(
            id=self.id,
            range=place,
            virtio_index=free_virtio_index(layout, devices),
            port=self.port,
            node=self.node,
            block_size=self.block_size,
            memory_block=layout.block_size,
            sub_block=sub_block,
        )
        plug(blocks.layout, devices, device).resize(self.requested, blocks)


@action
@dataclass(frozen=True, slots=True)
class Resize(DeviceAction):
    """The requested size of virtio-mem ``id`` was set to ``requested`` bytes, and the device has settled."""

    requested: int

    def follow(self, devices: dict[str, Device], blocks: BlockTable) -> None:
        plugged(devices, self.id, VirtioMem).resize(self.requested, blocks)


@dataclass
class VirtioMem(VirtioDevice):
    """A virtio-mem device; ``blocks`` are the memory blocks that its driver added, by index.

    In sub-block mode the sub-blocks of a block are plugged lowest first and unplugged highest first, so that they
    always form a prefix. If a sub-block would be at least as large as a memory block, the driver uses big blocks of
    whole memory blocks, which are added and removed as a unit.
    """

    kind: ClassVar[str] = "virtio-mem"

    node: int
    block_size: int
    memory_block: int
    sub_block: int
    requested: int = 0
    blocks: dict[int, Block] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes that are plugged."""
        return sum(block.plugged for block in self.blocks.values())

    def qmp(self) -> MemoryDevice:
        return dataclasses.replace(
            super().qmp(),
            size=self.size,
            requested_size=self.requested,
            block_size=self.block_size,
            node=self.node,
        )

    def iomem(self, layout: BootLayout) -> Iterator[IomemAddition]:
        yield IomemAddition(self.range, self.virtio_name, self.id)
        for part in merge_ranges(self._place(index) for index in self.blocks):
            yield IomemAddition(part, "System RAM (virtio_mem)", self.id)

    def linear(self, layout: BootLayout) -> Iterator[LinearPiece]:
        """The ranges that the driver added by one call each, lowest first: memory blocks, or big blocks."""
        size = self.big_block or self.memory_block
        for start in sorted({index * self.memory_block // size * size for index in self.blocks}):
            yield LinearPiece(AddrRange.sized(start, size), self.id, "ram")

    def replug(self) -> PlugVirtioMem:
        return PlugVirtioMem(
            self.id, self.range.size, self.block_size, self.requested, self.node, self.port, self.range.start
        )

    @property
    def big_block(self) -> int | None:
        """Bytes of a big block, None in sub-block mode (virtio_mem_init)."""
        return None if self.sub_block < self.memory_block else self.sub_block

    def resize(self, requested: int, blocks: BlockTable) -> None:
        """virtio_mem_run_wq: set the requested size, and follow the driver."""
        self.requested = requested
        if self.big_block is not None:
            self._resize_by_big_blocks(requested, self.big_block, blocks)
            return
        grow = (requested - self.size) // self.sub_block * self.sub_block
        if grow > 0:
            for index in self._grow_order():
                if index not in self.blocks and not self._may_add(self.memory_block):
                    break
                there = self.blocks[index].plugged if index in self.blocks else 0
                self._grow(index, min(grow, self.memory_block - there), blocks)
                grow = (requested - self.size) // self.sub_block * self.sub_block
                if grow <= 0:
                    break
        shrink = (self.size - requested) // self.sub_block * self.sub_block
        if shrink > 0:
            for index in self._shrink_order():
                self._shrink(index, min(shrink, self.blocks[index].plugged), blocks)
                shrink = (self.size - requested) // self.sub_block * self.sub_block
                if shrink <= 0:
                    break

    def went_online(self, blocks: BlockTable) -> bool:
        """virtio_mem_memory_notifier_cb, MEM_ONLINE: it adds more once half of the offline threshold is free."""
        adds = self.requested > self.size and self._may_add(self._offline_threshold // 2)
        if adds:
            self.resize(self.requested, blocks)
        return adds

    def _place(self, index: int) -> AddrRange:
        return AddrRange.sized(index * self.memory_block, self.memory_block)

    def _resize_by_big_blocks(self, requested: int, size: int, blocks: BlockTable) -> None:
        """virtio_mem_bbm_plug_request, virtio_mem_bbm_unplug_request."""
        for parts in [parts for parts in self._big_blocks() if parts[0] not in self.blocks]:
            if requested - self.size < size or not self._may_add(size):
                break
            for index in parts:
                self._grow(index, self.memory_block, blocks)
        kept = kept_blocks(blocks.layout, self.linear(blocks.layout))
        for parts in self._present_big_blocks():
            if self.size - requested < size:
                break
            if any(index in kept and self.blocks[index].zone is not None for index in parts):
                continue
            for index in parts:
                self._shrink(index, self.memory_block, blocks)

    def _may_add(self, size: int) -> bool:
        """virtio_mem_could_add_memory: limits the memory that is offline."""
        offline = sum(block.zone is None for block in self.blocks.values()) * self.memory_block
        return offline + size <= self._offline_threshold

    @property
    def _offline_threshold(self) -> int:
        return max(2 * (self.big_block or self.memory_block), OFFLINE_THRESHOLD)

    def _grow(self, index: int, size: int, blocks: BlockTable) -> None:
        if index in self.blocks:
            blocks.change_plugged(self.blocks[index], size)
        else:
            blocks.add(self._place(index), self.node, self.id, plugged=size)
            self.blocks[index] = blocks.blocks[index]

    def _shrink(self, index: int, size: int, blocks: BlockTable) -> None:
        if size < self.blocks[index].plugged:
            blocks.change_plugged(self.blocks[index], -size)
        else:
            blocks.remove(index)
            del self.blocks[index]

    def _rank(self, index: int) -> int:
        """0: online in a kernel zone, 1: online movable, 2: offline."""
        return {None: 2, MOVABLE: 1}.get(self.blocks[index].zone, 0)

    def _usable_blocks(self) -> Sequence[int]:
        """Indexes of the memory blocks entirely inside the region (virtio_mem_init: first_mb_id, last_mb_id)."""
        inner = self.range.align_inward(self.memory_block)
        return [piece.start // self.memory_block for piece in inner.chunks(self.memory_block)]

    def _grow_order(self) -> list[int]:
        """Blocks in the order in which virtio_mem_sbm_plug_request() fills them."""
        partial = [index for index, block in self.blocks.items() if block.plugged < self.memory_block]
        absent = [index for index in self._usable_blocks() if index not in self.blocks]
        return sorted(partial, key=lambda index: (self._rank(index), index)) + absent

    def _shrink_order(self) -> list[int]:
        """Blocks in the order of virtio_mem_sbm_unplug_request(): partial before full, highest first."""

        def key(index: int) -> tuple[int, int]:
            partial = self.blocks[index].plugged < self.memory_block
            rank = self._rank(index)
            if rank == 2:
                return (0 if partial else 1, -index)
            if partial:
                return (2 if rank == 1 else 3, -index)
            return (4 if rank == 1 else 5, -index)

        return sorted(self.blocks, key=key)

    def _present_big_blocks(self) -> list[tuple[int, ...]]:
        """The memory blocks of each plugged big block, in the order in which the driver unplugs them.

        Offline ones first, then those without a block in a kernel zone, then the others; each group highest first.
        """

        def key(parts: tuple[int, ...]) -> tuple[int, int]:
            ranks = {self._rank(index) for index in parts}
            return (0 if ranks == {2} else 2 if 0 in ranks else 1, -parts[0])

        return sorted((parts for parts in self._big_blocks() if parts[0] in self.blocks), key=key)

    def _big_blocks(self) -> list[tuple[int, ...]]:
        inner = self.range.align_inward(self.sub_block)
        return [
            tuple(part.start // self.memory_block for part in piece.chunks(self.memory_block))
            for piece in inner.chunks(self.sub_block)
        ]
