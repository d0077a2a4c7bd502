# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-mem (QEMU hw/virtio/virtio-mem.c)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from harness.config.requirement import Requirement
from harness.errors import UsageError
from harness.qemu.devices.device import BackendOptions, PciDeviceSpec
from harness.state import MemoryDevice
from harness.units import AddrRange, format_size


@dataclass(frozen=True)
class VirtioMemSpec(PciDeviceSpec):
    """A virtio-mem device that can grow to ``size``; ``block_size`` and ``node`` None: QEMU chooses."""

    kind: ClassVar[str] = "virtio-mem"
    name: ClassVar[str] = "virtio-mem"
    driver: ClassVar[str] = "virtio-mem-pci"
    requirement: ClassVar[Requirement] = Requirement("virtio-mem", "virtio-mem", ("VIRTIO_MEM", "MEMORY_HOTREMOVE"))
    modules: ClassVar[Mapping[str, str]] = {"virtio_mem": "VIRTIO_MEM"}
    proof: ClassVar[str] = "virtio-mem-resize"

    requested: int = 0
    block_size: int | None = None
    node: int | None = None

    def properties(self) -> dict[str, int | str | None]:
        return {"bus": self.port, "requested-size": self.requested, "block-size": self.block_size, "node": self.node}

    def require(self, nodes: int, slots: int) -> None:
        super().require(nodes, slots)
        self.require_node(self.node, nodes)
        if self.requested > self.size:
            requested, size = format_size(self.requested), format_size(self.size)
            raise UsageError(f"{self.name} {self.id} requests {requested} of {size}")

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> MemoryDevice:
        return dataclasses.replace(
            super().parse(data),
            range=AddrRange.sized(data["memaddr"], data["max-size"]),
            max_size=data["max-size"],
            requested_size=data["requested-size"],
            block_size=data["block-size"],
            node=data["node"],
        )

    @classmethod
    def from_known(cls, known: MemoryDevice, port: str | None, backend: BackendOptions) -> Self:
        start, requested = known.range.start, known.requested_size or 0
        return cls(known.id, known.max_size, start, backend, port, requested, known.block_size, known.node)
