# SPDX-License-Identifier: GPL-2.0-or-later
"""Persistent memory as libnvdimm, device-dax and kmem show and map it (drivers/nvdimm, drivers/dax, v6.12)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from harness.model.actions import action
from harness.model.blocktable import BlockTable
from harness.model.boot_layout import BootLayout
from harness.model.devices.device import Device, DeviceAction, free_index, plugged
from harness.model.expected import IomemAddition, LinearPiece
from harness.model.zones import DEVICE
from harness.units import MIB, AddrRange, align_down, align_up

#: info block reserve of a pmem namespace (nd_info_block_reserve, drivers/nvdimm/pfn_devs.c, v6.12)
PMEM_INFO_BLOCK = 8 << 10
#: DAX_KMEM_UNPLUGGED (drivers/dax/dax-private.h, v7.3)
UNPLUGGED = "unplugged"


@action
@dataclass(frozen=True, slots=True)
class SetPmemMode(DeviceAction):
    """pmem ``id`` went to ``mode`` (raw, devdax, kmem); its memmap is in ``map`` (mem, dev), ``align`` bytes."""

    mode: str
    map: str = "mem"
    align: int = 2 << 20

    def follow(self, devices: dict[str, Device], blocks: BlockTable) -> None:
        device = plugged(devices, self.id, Pmem)
        device.set_dax_state(UNPLUGGED, blocks)
        device.mode, device.map, device.align = self.mode, self.map, self.align
        device.span_zone(blocks)
        if device.mode == "kmem":
            # The driver's probe adds the memory and follows the policy.
            device.set_dax_state(blocks.policy, blocks)


@action
@dataclass(frozen=True, slots=True)
class SetDaxState(DeviceAction):
    """``state`` (unplugged, or one of ONLINE_TYPES) was written to daxX.Y/state of pmem ``id`` in kmem mode."""

    state: str

    def follow(self, devices: dict[str, Device], blocks: BlockTable) -> None:
        plugged(devices, self.id, Pmem).set_dax_state(self.state, blocks)


@dataclass
class Pmem(Device):
    """A device that is a libnvdimm region with one label-less namespace that covers it.

    ``dax_state`` is the content of daxX.Y/state in kmem mode (drivers/dax/kmem.c, v7.3): ``unplugged``, or the online
    type with which its memory was last added, regardless of later changes of single memory blocks.
    """

    region_index: int
    raw_has_pages: bool
    mode: str = "raw"
    map: str = "mem"
    align: int = 2 * MIB
    dax_state: str = UNPLUGGED

    @property
    def is_ram(self) -> bool:
        """True if it is bound to the kmem driver, which has added its memory."""
        return self.mode == "kmem" and self.dax_state != UNPLUGGED

    @property
    def dax_name(self) -> str:
        return f"dax{self.region_index}.0"

    @property
    def namespace(self) -> str:
        return f"namespace{self.region_index}.0"

    def node(self, layout: BootLayout) -> int:
        """The node of its ZONE_DEVICE."""
        return layout.node_of_pmem()

    def target_node(self, layout: BootLayout) -> int:
        """The node to which kmem adds it."""
        return layout.target_node_of_pmem()

    def dax_states(self) -> Mapping[str, str]:
        return {self.dax_name: self.dax_state} if self.mode == "kmem" else {}

    def iomem(self, layout: BootLayout) -> Iterator[IomemAddition]:
        """Raw namespace (pmem_attach_disk), device dax (dax_pmem, device_dax) or kmem."""
        if self.mode == "raw":
            yield IomemAddition(self.range, self.namespace, self.id)
            return
        data = self.data(layout)
        yield IomemAddition(AddrRange(self.range.start, data.start), self.namespace, self.id)
        if self.mode == "devdax":
            yield IomemAddition(data, self.dax_name, self.id)
        elif self.is_ram:
            ram = self.kmem_range(layout)
            yield IomemAddition(ram, self.dax_name, self.id)
            yield IomemAddition(ram, "System RAM (kmem)", self.id)

    def linear(self, layout: BootLayout) -> Iterator[LinearPiece]:
        mapped = self.pagemap()
        if self.is_ram:
            yield LinearPiece(self.kmem_range(layout), self.id, "ram")
        elif mapped is not None:
            # Struct pages may be folded where pages are compound and there is no altmap (dev_dax_probe).
            folds = self.mode == "devdax" and self.map == "mem"
            folded = layout.folded_memmap(self.align) if folds else 0
            yield LinearPiece(mapped, self.id, "device", self._altmap(layout), folded)

    def data(self, layout: BootLayout) -> AddrRange:
        """The data part of a device-dax namespace (nd_pfn_init, drivers/nvdimm/pfn_devs.c, v6.12)."""
        start, end = self.range.start, align_down(self.range.end, self.align)
        head = PMEM_INFO_BLOCK
        if self.map == "dev":
            pages = (self.range.size - PMEM_INFO_BLOCK) // layout.page_size
            head += layout.machine.arch.max_struct_page * pages
        return AddrRange(align_up(start + head, self.align), end)

    def kmem_range(self, layout: BootLayout) -> AddrRange:
        """The whole memory blocks that the kmem driver adds (dax_kmem_range, drivers/dax/kmem.c, v6.12)."""
        return self.data(layout).align_inward(layout.block_size)

    def _altmap(self, layout: BootLayout) -> AddrRange | None:
        """The part of the device that holds its own struct pages (__nvdimm_setup_pfn, drivers/nvdimm, v6.12).

        It is between the info block and the data; None if the struct pages are in RAM.
        """
        if self.mode != "devdax" or self.map != "dev":
            return None
        return AddrRange(self.range.start + align_up(PMEM_INFO_BLOCK, layout.page_size), self.data(layout).start)

    def pagemap(self) -> AddrRange | None:
        """The range of ZONE_DEVICE, linear map and vmemmap (devm_memremap_pages), None if there is none.

        A static device-dax region includes its metadata; a raw namespace gets struct pages only if the kernel has
        a write-back pmem API (pmem_should_map_pages, drivers/nvdimm/namespace_devs.c, v6.12).
        """
        if self.mode == "devdax":
            return AddrRange(self.range.start, align_down(self.range.end, self.align))
        return self.range if self.mode == "raw" and self.raw_has_pages else None

    def span_zone(self, blocks: BlockTable) -> None:
        """Grow ZONE_DEVICE over the range that has struct pages now; it never shrinks."""
        mapped = self.pagemap()
        if mapped is not None:
            blocks.zones.get(self.node(blocks.layout), DEVICE).grow(mapped)

    def set_dax_state(self, state: str, blocks: BlockTable) -> None:
        """state_store (drivers/dax/kmem.c, v7.3): remove the memory, or add it with an online type."""
        if state == self.dax_state:
            return
        self.dax_state = state
        if state == UNPLUGGED:
            for index in blocks.of(self.id):
                blocks.remove(index)
        else:
            layout = blocks.layout
            blocks.add(self.kmem_range(layout), self.target_node(layout), self.id, policy=state)


def free_region_index(devices: Mapping[str, Device]) -> int:
    """The number of the next region (nd_region_create, drivers/nvdimm/region_devs.c, v6.12)."""
    return free_index({device.region_index for device in devices.values() if isinstance(device, Pmem)})
