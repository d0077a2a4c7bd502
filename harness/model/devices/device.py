# SPDX-License-Identifier: GPL-2.0-or-later
"""Base classes of memory devices and of actions on them."""

from __future__ import annotations

import abc
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from harness.errors import UsageError
from harness.model.actions import Action
from harness.model.blocktable import BlockTable
from harness.model.boot_layout import BootLayout
from harness.model.expected import IomemAddition, LinearPiece
from harness.state import MemoryDevice
from harness.units import MIB, AddrRange, align_up, format_size

#: QEMU aligns memfd-backed memory devices to this on Linux hosts (QEMU_VMALLOC_ALIGN and huge pages aside)
BACKEND_ALIGNMENT = 2 * MIB


#: the known kinds of devices, named as in query-memory-devices
KINDS: set[str] = set()


@dataclass
class Device(abc.ABC):
    """One plugged memory device; ``range`` is its place in guest-physical memory.

    ``kind`` is its name in query-memory-devices.
    """

    kind: ClassVar[str]

    id: str
    range: AddrRange

    def __init_subclass__(cls) -> None:
        KINDS.update({cls.__dict__["kind"]} if "kind" in cls.__dict__ else ())

    def qmp(self) -> MemoryDevice:
        """Its entry in query-memory-devices."""
        return MemoryDevice(
            id=self.id,
            kind=self.kind,
            range=self.range,
            size=self.range.size,
            max_size=self.range.size,
            requested_size=None,
            block_size=None,
            node=None,
            slot=None,
            backend=f"mem-{self.id}",
        )

    @abc.abstractmethod
    def iomem(self, layout: BootLayout) -> Iterable[IomemAddition]:
        """The entries that it adds to /proc/iomem, parents before children."""

    @abc.abstractmethod
    def linear(self, layout: BootLayout) -> Iterable[LinearPiece]:
        """The ranges that the kernel maps, one for each call of arch_add_memory."""

    def dax_states(self) -> Mapping[str, str]:
        """The state files of its dax devices that are bound to the kmem driver."""
        return {}

    def went_online(self, blocks: BlockTable) -> bool:
        """Follow the onlining of one of its blocks by hand; True if its driver then added more memory."""
        return False

    def replug(self) -> Action:
        """The action that plugs the device in its current state into another boot; raises UsageError if unknown."""
        raise UsageError(f"{self.id} is not tracked across a reboot", hint="unplug it first")

    def boot_rank(self, ports: Sequence[str]) -> int:
        """Its position in the order of discovery at boot: ACPI (acpi_scan_init) before PCI, port by port."""
        return -1


@dataclass
class VirtioDevice(Device):
    """A device below PCIe root port ``port``, virtioN in the guest."""

    virtio_index: int
    port: str

    @property
    def virtio_name(self) -> str:
        return f"virtio{self.virtio_index}"

    def boot_rank(self, ports: Sequence[str]) -> int:
        return ports.index(self.port)


@dataclass(frozen=True, slots=True)
class DeviceAction(Action, abc.ABC):
    """An action on device ``id`` and on the memory blocks of the guest."""

    id: str

    @abc.abstractmethod
    def follow(self, devices: dict[str, Device], blocks: BlockTable) -> None:
        """Apply the action to the model's ``devices`` and ``blocks``; raises UsageError if it contradicts them."""


DeviceT = TypeVar("DeviceT", bound=Device)


def plugged(devices: Mapping[str, Device], id: str, kind: type[DeviceT]) -> DeviceT:
    """The device ``id``; raises UsageError if it is not of ``kind``."""
    device = devices.get(id)
    if not isinstance(device, kind):
        raise UsageError(f"no {kind.__name__} {id} is plugged")
    return device


def plug(layout: BootLayout, devices: dict[str, Device], device: DeviceT) -> DeviceT:
    """Add ``device``; raises UsageError if its id is taken, or its place is not where QEMU has memory devices."""
    window = layout.machine.device_window()
    if not window.covers(device.range):
        raise UsageError(f"{device.id} at {device.range} is outside of the device memory {window}")
    if device.id in devices:
        raise UsageError(f"{device.id} is already plugged")
    devices[device.id] = device
    return device


def free_place(
    layout: BootLayout, devices: Mapping[str, Device], size: int, alignment: int = BACKEND_ALIGNMENT
) -> AddrRange:
    """The lowest free range of the device window (memory_device_get_free_addr, hw/mem/memory-device.c, QEMU 10.0).

    Raises UsageError if nothing fits.
    """
    window = layout.machine.device_window()
    at = align_up(window.start, alignment)
    for taken in sorted(device.range for device in devices.values()):
        if AddrRange.sized(at, size).overlaps(taken):
            at = align_up(taken.end, alignment)
    if at + size > window.end:
        raise UsageError(f"no room for {format_size(size)} in the device window {window}")
    return AddrRange.sized(at, size)


def free_index(used: Container[int | None], first: int = 0) -> int:
    """The lowest unused number from ``first`` on."""
    while first in used:
        first += 1
    return first


def free_virtio_index(layout: BootLayout, devices: Mapping[str, Device]) -> int:
    """The number of the next virtio device (virtio_index_ida, drivers/virtio/virtio.c, v6.12)."""
    used = {device.virtio_index for device in devices.values() if isinstance(device, VirtioDevice)}
    return free_index(used, layout.machine.virtio_devices)
