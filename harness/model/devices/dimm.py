# SPDX-License-Identifier: GPL-2.0-or-later
"""pc-dimm: the kernel adds it whole (acpi_memory_enable_device, drivers/acpi/acpi_memhotplug.c, v6.12)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from harness.model.actions import action
from harness.model.blocktable import BlockTable
from harness.model.boot_layout import BootLayout
from harness.model.devices.device import Device, DeviceAction, free_index, free_place, plug
from harness.model.expected import IomemAddition, LinearPiece
from harness.state import MemoryDevice
from harness.units import AddrRange


@action
@dataclass(frozen=True, slots=True)
class PlugDimm(DeviceAction):
    """pc-dimm ``id`` of ``size`` bytes was hot-added; ``slot``/``address`` None: QEMU chose.

    ``kernel_added`` is False if the kernel must refuse the range although QEMU accepted it (a DIMM that does not
    consist of whole memory blocks): the guest's state must not change.
    """

    size: int
    node: int = 0
    slot: int | None = None
    address: int | None = None
    kernel_added: bool = True

    def follow(self, devices: dict[str, Device], blocks: BlockTable) -> None:
        layout, slot = blocks.layout, self.slot
        if slot is None:
            slot = free_index({device.qmp().slot for device in devices.values()})
        if self.address is None:
            place = free_place(layout, devices, self.size)
        else:
            place = AddrRange.sized(self.address, self.size)
        plug(blocks.layout, devices, Dimm(self.id, place, self.node, slot, self.kernel_added))
        if self.kernel_added:
            blocks.add(place, self.node, self.id, self_hosted=layout.self_hosted(place.size))


@dataclass
class Dimm(Device):
    """A pc-dimm; ``kernel_added`` as in ``PlugDimm``."""

    kind: ClassVar[str] = "dimm"

    node: int
    slot: int
    kernel_added: bool

    def qmp(self) -> MemoryDevice:
        return dataclasses.replace(super().qmp(), node=self.node, slot=self.slot)

    def iomem(self, layout: BootLayout) -> Iterator[IomemAddition]:
        if self.kernel_added:
            yield IomemAddition(self.range, "System RAM", self.id)

    def linear(self, layout: BootLayout) -> Iterator[LinearPiece]:
        if not self.kernel_added:
            return
        hosted = layout.self_hosted(self.range.size)
        if not hosted:
            yield LinearPiece(self.range, self.id, "ram")
            return
        for part in self.range.chunks(layout.block_size):
            yield LinearPiece(part, self.id, "ram", AddrRange.sized(part.start, hosted))

    def replug(self) -> PlugDimm:
        return PlugDimm(self.id, self.range.size, self.node, self.slot, self.range.start, self.kernel_added)
