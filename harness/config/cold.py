# SPDX-License-Identifier: GPL-2.0-or-later
"""What is asked of a memory device, whether a verb plugs it or it is there when the guest boots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from harness.config import arguments as arg
from harness.config.arguments import Args, Argument, NewDevice, PowerOfTwo
from harness.config.yaml import Value
from harness.units import MIB

#: huge pages of the host that a device's memory may be made of; each needs the requirement host-NAME
BACKINGS = ("thp", "hugetlb-2M", "hugetlb-1G")


def _read_address(value: Value) -> int | Literal["top"]:
    return "top" if value.is_text("top") else value.size()


def _spell_address(address: int | str) -> str:
    return f"{address:#x}" if isinstance(address, int) else address


Node = Annotated[int, arg.count()]
Backing = Annotated[str, arg.choice(*BACKINGS, bare=False)]
Address = Annotated[int | Literal["top"], Argument(_read_address, _spell_address, "A|top")]


@dataclass(frozen=True, slots=True)
class DimmArgs(Args):
    """A pc-dimm; ``slot`` and ``address`` None: QEMU chooses, top: as high as the machine has room."""

    verb: ClassVar[str] = "plug-dimm"

    id: NewDevice
    size: Annotated[int, arg.size()]
    node: Node = 0
    slot: Annotated[int | None, arg.count(maximum=255)] = None
    backing: Backing | None = None
    address: Address | None = None

    @property
    def capacity(self) -> int:
        """The whole DIMM."""
        return self.size


@dataclass(frozen=True, slots=True)
class VirtioMemArgs(Args):
    """A virtio-mem device with a region of ``max`` bytes, of which ``requested`` are asked for."""

    verb: ClassVar[str] = "plug-virtio-mem"

    id: NewDevice
    max: Annotated[int, arg.size()]
    requested: Annotated[int, arg.size(minimum=0, bare=False)] = 0
    block: PowerOfTwo = 2 * MIB
    node: Node = 0
    backing: Backing | None = None

    @property
    def capacity(self) -> int:
        """The whole region."""
        return self.max


#: a device that is there when the guest boots; no virtio-pmem, whose namespaces the model cannot follow through a boot
ColdDevice = DimmArgs | VirtioMemArgs
COLD: dict[str, type[ColdDevice]] = {DimmArgs.verb: DimmArgs, VirtioMemArgs.verb: VirtioMemArgs}


def read_devices(value: Value) -> tuple[ColdDevice, ...]:
    """A list such as ``[{plug-dimm: {id: dimm0, size: 1G}}]``, in the order of QEMU's command line."""
    return tuple(_read_device(item) for item in value.items())


def _read_device(value: Value) -> ColdDevice:
    reader = value.mapping(*COLD)
    if len(reader.values) != 1:
        value.fail("one device has exactly one verb", hint="one list item for each device")
    verb, body = next(iter(reader.values.items()))
    device, given = COLD[verb].read(body), body.mapping().values
    if isinstance(device, DimmArgs) and device.address == "top":
        given["address"].fail("where the room ends is not known before the machine is", hint="write a number")
    if device.backing is not None:
        given["backing"].fail("a device that is there at boot is made of ordinary pages", hint="plug it in a step")
    return device
