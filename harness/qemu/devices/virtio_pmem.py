# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-pmem (QEMU hw/virtio/virtio-pmem.c)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from harness.qemu.devices.device import BackendOptions, PciDeviceSpec
from harness.state import MemoryDevice


@dataclass(frozen=True)
class VirtioPmemSpec(PciDeviceSpec):
    """A virtio-pmem device, which has no NUMA node property."""

    kind: ClassVar[str] = "virtio-pmem"
    name: ClassVar[str] = "virtio-pmem"
    driver: ClassVar[str] = "virtio-pmem-pci"
    migrates: ClassVar[bool] = False
    # virtio_md_pci_unplug_request, hw/virtio/virtio-md-pci.c (QEMU 10.0)
    unplugs: ClassVar[bool] = False
    persistent: ClassVar[bool] = True

    def properties(self) -> dict[str, int | str | None]:
        return {"bus": self.port}

    @classmethod
    def from_known(cls, known: MemoryDevice, port: str | None, backend: BackendOptions) -> Self:
        return cls(known.id, known.size, known.range.start, backend, port)
