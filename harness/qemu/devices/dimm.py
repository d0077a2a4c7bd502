# SPDX-License-Identifier: GPL-2.0-or-later
"""pc-dimm (QEMU hw/mem/pc-dimm.c)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from harness.config.requirement import Requirement
from harness.errors import UsageError
from harness.qemu.devices.device import BackendOptions, DeviceSpec
from harness.state import MemoryDevice


@dataclass(frozen=True)
class DimmSpec(DeviceSpec):
    """A pc-dimm, which ACPI announces to the guest; ``node`` and ``slot`` None: QEMU chooses."""

    kind: ClassVar[str] = "dimm"
    name: ClassVar[str] = "pc-dimm"
    driver: ClassVar[str] = "pc-dimm"
    address_property: ClassVar[str] = "addr"
    requirement: ClassVar[Requirement] = Requirement(
        "acpi-dimm",
        "hot-add and hot-remove of a pc-dimm at run time",
        ("ACPI_HOTPLUG_MEMORY", "MEMORY_HOTREMOVE"),
        boot="acpi",
    )
    proof: ClassVar[str] = "dimm-cycle"

    node: int | None = None
    slot: int | None = None

    def properties(self) -> dict[str, int | str | None]:
        return {"node": self.node, "slot": self.slot}

    def require(self, nodes: int, slots: int) -> None:
        super().require(nodes, slots)
        self.require_node(self.node, nodes)
        if self.slot is not None and not 0 <= self.slot < slots:
            raise UsageError(f"{self.name} {self.id} is in slot {self.slot}, the machine has {slots} slots")

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> MemoryDevice:
        return dataclasses.replace(super().parse(data), node=data["node"], slot=data["slot"])

    @classmethod
    def from_known(cls, known: MemoryDevice, port: str | None, backend: BackendOptions) -> Self:
        return cls(known.id, known.size, known.range.start, backend, known.node, known.slot)
