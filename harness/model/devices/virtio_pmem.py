# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-pmem: persistent memory on PCI (drivers/nvdimm/virtio_pmem.c, v6.12)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.model.actions import action
from harness.model.blocktable import BlockTable
from harness.model.devices.device import Device, DeviceAction, VirtioDevice, free_place, free_virtio_index, plug
from harness.model.devices.pmem import Pmem, free_region_index


@action
@dataclass(frozen=True, slots=True)
class PlugVirtioPmem(DeviceAction):
    """virtio-pmem-pci ``id`` of ``size`` bytes was hot-plugged below root port ``port``."""

    size: int
    port: str = ""

    def follow(self, devices: dict[str, Device], blocks: BlockTable) -> None:
        layout = blocks.layout
        device = VirtioPmem(
            id=self.id,
            range=free_place(layout, devices, self.size),
            virtio_index=free_virtio_index(layout, devices),
            port=self.port,
            region_index=free_region_index(devices),
            raw_has_pages=layout.pmem_api,
        )
        plug(blocks.layout, devices, device).span_zone(blocks)


@dataclass
class VirtioPmem(Pmem, VirtioDevice):
    """A virtio-pmem device."""

    kind: ClassVar[str] = "virtio-pmem"
