# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory devices as the model sees them: what QEMU holds, and what each driver does with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.state import MemoryDevice
from harness.units import MIB, AddrRange, align_down, align_up

#: info block reserve of a pmem namespace (nd_info_block_reserve, drivers/nvdimm/pfn_devs.c, v6.12)
PMEM_INFO_BLOCK = 8 << 10
#: DAX_KMEM_UNPLUGGED (drivers/dax/dax-private.h, v7.3)
UNPLUGGED = "unplugged"


@dataclass
class Dimm:
    """A pc-dimm; the kernel adds it whole (acpi_memory_enable_device, drivers/acpi/acpi_memhotplug.c)."""

    id: str
    range: AddrRange
    node: int
    slot: int
    kernel_added: bool

    def qmp(self) -> MemoryDevice:
        return MemoryDevice(
            id=self.id,
            kind="dimm",
            range=self.range,
            size=self.range.size,
            max_size=self.range.size,
            requested_size=None,
            block_size=None,
            node=self.node,
            slot=self.slot,
            backend=f"mem-{self.id}",
        )


@dataclass
class VirtioMem:
    """A virtio-mem device as its driver uses it (drivers/virtio/virtio_mem.c, v6.12).

    ``plugged`` maps a memory block's index to the bytes plugged in it. In sub-block mode sub-blocks of a block are
    plugged lowest first and unplugged highest first, so that they always form a prefix. Where a sub-block would be as
    large as a memory block, the driver has big blocks of whole memory blocks, which come and go as one.
    """

    id: str
    range: AddrRange
    node: int
    block_size: int
    requested: int
    virtio_index: int
    port: str
    memory_block: int
    sub_block: int
    plugged: dict[int, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(self.plugged.values())

    def qmp(self) -> MemoryDevice:
        return MemoryDevice(
            id=self.id,
            kind="virtio-mem",
            range=self.range,
            size=self.size,
            max_size=self.range.size,
            requested_size=self.requested,
            block_size=self.block_size,
            node=self.node,
            slot=None,
            backend=f"mem-{self.id}",
        )

    def usable_blocks(self) -> Sequence[int]:
        """Indexes of the memory blocks that lie wholly in the region (virtio_mem_init: first_mb_id, last_mb_id)."""
        inner = self.range.align_inward(self.memory_block)
        return [piece.start // self.memory_block for piece in inner.chunks(self.memory_block)]

    @property
    def big_block(self) -> int | None:
        """Bytes of a big block, None in sub-block mode (virtio_mem_init)."""
        return None if self.sub_block < self.memory_block else self.sub_block

    def added(self) -> list[AddrRange]:
        """What the driver added in one go each, lowest first: memory blocks, or big blocks."""
        size = self.big_block or self.memory_block
        starts = sorted({index * self.memory_block // size * size for index in self.plugged})
        return [AddrRange.sized(start, size) for start in starts]

    def absent_big_blocks(self) -> list[tuple[int, ...]]:
        """Memory blocks of each big block that is not plugged, lowest first."""
        return [blocks for blocks in self._big_blocks() if blocks[0] not in self.plugged]

    def present_big_blocks(self, rank: dict[int, int]) -> list[tuple[int, ...]]:
        """Memory blocks of each plugged big block in the order in which they are given back; ``rank`` as below.

        Those that are offline go first, then those with nothing in a kernel zone, the highest first each time.
        """

        def key(blocks: tuple[int, ...]) -> tuple[int, int]:
            ranks = {rank[index] for index in blocks}
            return (0 if ranks == {2} else 2 if 0 in ranks else 1, -blocks[0])

        return sorted((blocks for blocks in self._big_blocks() if blocks[0] in self.plugged), key=key)

    def _big_blocks(self) -> list[tuple[int, ...]]:
        inner = self.range.align_inward(self.sub_block)
        return [
            tuple(part.start // self.memory_block for part in piece.chunks(self.memory_block))
            for piece in inner.chunks(self.sub_block)
        ]

    def grow_order(self, rank: dict[int, int]) -> list[int]:
        """Blocks in the order virtio_mem_sbm_plug_request() fills them.

        ``rank`` gives each present block 0 (online in a kernel zone), 1 (online movable) or 2 (offline).
        """
        partial = [index for index, size in self.plugged.items() if size < self.memory_block]
        absent = [index for index in self.usable_blocks() if index not in self.plugged]
        return sorted(partial, key=lambda index: (rank[index], index)) + absent

    def shrink_order(self, rank: dict[int, int]) -> list[int]:
        """Blocks in the order virtio_mem_sbm_unplug_request() empties them: partial before full, highest first."""

        def key(index: int) -> tuple[int, int]:
            partial = self.plugged[index] < self.memory_block
            offline, movable = rank[index] == 2, rank[index] == 1
            if offline:
                return (0 if partial else 1, -index)
            if partial:
                return (2 if movable else 3, -index)
            return (4 if movable else 5, -index)

        return sorted(self.plugged, key=key)


@dataclass
class Pmem:
    """A virtio-pmem device with the one label-less namespace that covers it (drivers/nvdimm/virtio_pmem.c, v6.12).

    ``dax_state`` is what daxX.Y/state says in kmem mode (drivers/dax/kmem.c, v7.3): ``unplugged``, or the online type
    that its memory was added with last, whatever became of single memory blocks since.
    """

    id: str
    range: AddrRange
    virtio_index: int
    port: str
    region_index: int
    raw_has_pages: bool
    mode: str = "raw"
    map: str = "mem"
    align: int = 2 * MIB
    dax_state: str = UNPLUGGED

    @property
    def is_ram(self) -> bool:
        """True if the kmem driver has it and has added its memory."""
        return self.mode == "kmem" and self.dax_state != UNPLUGGED

    @property
    def dax_name(self) -> str:
        return f"dax{self.region_index}.0"

    def qmp(self) -> MemoryDevice:
        return MemoryDevice(
            id=self.id,
            kind="virtio-pmem",
            range=self.range,
            size=self.range.size,
            max_size=self.range.size,
            requested_size=None,
            block_size=None,
            node=None,
            slot=None,
            backend=f"mem-{self.id}",
        )

    def data(self, page_size: int, max_struct_page: int) -> AddrRange:
        """The part that a device-dax namespace offers (nd_pfn_init, drivers/nvdimm/pfn_devs.c, v6.12)."""
        start, end = self.range.start, align_down(self.range.end, self.align)
        head = PMEM_INFO_BLOCK
        if self.map == "dev":
            head += max_struct_page * ((self.range.size - PMEM_INFO_BLOCK) // page_size)
        return AddrRange(align_up(start + head, self.align), end)

    @property
    def optimized(self) -> bool:
        """True if its struct pages may be folded: compound pages without an altmap (dev_dax_probe)."""
        return self.mode == "devdax" and self.map == "mem"

    def altmap(self, page_size: int, max_struct_page: int) -> AddrRange | None:
        """The part of the device that holds its own struct pages (__nvdimm_setup_pfn, drivers/nvdimm, v6.12).

        It lies between the info block and the data; None where the struct pages are in RAM.
        """
        if self.mode != "devdax" or self.map != "dev":
            return None
        start = self.range.start + align_up(PMEM_INFO_BLOCK, page_size)
        return AddrRange(start, self.data(page_size, max_struct_page).start)

    def pagemap(self) -> AddrRange | None:
        """The range that ZONE_DEVICE, linear map and vmemmap cover (devm_memremap_pages), None if there is none.

        A static device-dax region takes its metadata in; a raw namespace gets struct pages only where the kernel has
        a write-back pmem API (pmem_should_map_pages, drivers/nvdimm/namespace_devs.c, v6.12).
        """
        if self.mode == "devdax":
            return AddrRange(self.range.start, align_down(self.range.end, self.align))
        return self.range if self.mode == "raw" and self.raw_has_pages else None


Device = Dimm | VirtioMem | Pmem
