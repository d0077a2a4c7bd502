# SPDX-License-Identifier: GPL-2.0-or-later
"""What a virtio-pmem device shows in /proc/iomem and maps, driver by driver (drivers/nvdimm, drivers/dax, v6.12)."""

from __future__ import annotations

from harness.model.devices import Pmem
from harness.model.expected import IomemAddition
from harness.units import AddrRange

KMEM_NAME = "System RAM (kmem)"


def iomem(device: Pmem, data: AddrRange, kmem: AddrRange) -> list[IomemAddition]:
    """The lines of one device: raw namespace (pmem_attach_disk), device dax (dax_pmem, device_dax) or kmem.

    ``data`` is the part behind the namespace's metadata, ``kmem`` what of it makes whole memory blocks.
    """
    namespace = f"namespace{device.region_index}.0"
    if device.mode == "raw":
        return [IomemAddition(device.range, namespace, device.id)]
    head = IomemAddition(AddrRange(device.range.start, data.start), namespace, device.id)
    if device.mode == "devdax":
        return [head, IomemAddition(data, device.dax_name, device.id)]
    if not device.is_ram:
        return [head]
    return [head, IomemAddition(kmem, device.dax_name, device.id), IomemAddition(kmem, KMEM_NAME, device.id)]
