# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-pmem (QEMU hw/virtio/virtio-pmem.c)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from harness.config.requirement import Requirement
from harness.qemu.devices.device import BackendOptions, PciDeviceSpec
from harness.state import MemoryDevice


@dataclass(frozen=True)
class VirtioPmemSpec(PciDeviceSpec):
    """A virtio-pmem device, which has no NUMA node property."""

    kind: ClassVar[str] = "virtio-pmem"
    name: ClassVar[str] = "virtio-pmem"
    driver: ClassVar[str] = "virtio-pmem-pci"
    # Without ZONE_DEVICE, as in Debian's 6.1 of arm64, the memory of a namespace never gets struct pages.
    requirement: ClassVar[Requirement] = Requirement(
        "virtio-pmem", "virtio-pmem namespaces", ("VIRTIO_PMEM", "BLK_DEV_PMEM", "ZONE_DEVICE")
    )
    modules: ClassVar[Mapping[str, str]] = {"virtio_pmem": "VIRTIO_PMEM"}
    proof: ClassVar[str] = "pmem-kmem"
    # virtio_md_pci_unplug_request, hw/virtio/virtio-md-pci.c (QEMU 10.0)
    unplugs: ClassVar[Literal["qemu", "guest", "nobody"]] = "guest"
    migrates: ClassVar[bool] = False
    persistent: ClassVar[bool] = True

    def properties(self) -> dict[str, int | str | None]:
        return {"bus": self.port}

    @classmethod
    def from_known(cls, known: MemoryDevice, port: str | None, backend: BackendOptions) -> Self:
        return cls(known.id, known.size, known.range.start, backend, port)
