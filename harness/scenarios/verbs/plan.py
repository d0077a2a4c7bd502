# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest has, as far as steps change it: what a step can be done after, without a guest to try it on."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

from harness.config.arguments import GRANULE
from harness.config.guest import SECTION, GuestSpec
from harness.config.yaml import size_problem, suggest
from harness.errors import UsageError
from harness.qemu.devices.device import DeviceSpec, PciDeviceSpec
from harness.units import align_up, format_size


class Impossible(UsageError):
    """A step that makes no sense after those before it: ``problem`` is what is wrong with ``argument``.

    ``argument`` None: with the whole step.
    """

    def __init__(self, argument: str | None, problem: str, hint: str | None = None) -> None:
        super().__init__(problem if argument is None else f"{argument}: {problem}", hint=hint)
        self.argument = argument
        self.problem = problem


@dataclass
class PlannedDevice:
    """``mode`` is of persistent memory alone; ``requested`` and ``block`` of what grows; sizes are bytes."""

    kind: type[DeviceSpec]
    size: int
    block: int = GRANULE
    requested: int = 0
    slot: int | None = None
    mode: str = "raw"


@dataclass
class Plan:
    """The devices of a guest, the kinds of its loads and the pages that are held, by id, as steps add and remove them.

    What the methods refuse they raise as ``Impossible``.
    """

    spec: GuestSpec
    devices: dict[str, PlannedDevice] = field(default_factory=dict)
    loads: dict[str, str] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)

    def device(self, argument: str, id: str, kind: type[DeviceSpec] | None = None) -> PlannedDevice:
        """The device ``id``, of ``kind`` if that is given."""
        device = self.devices.get(id)
        if device is None:
            raise Impossible(argument, f"no device {id!r} is plugged here", suggest(id, self.devices))
        if kind is not None and device.kind is not kind:
            raise Impossible(argument, f"{id!r} is a {device.kind.name}, this takes a {kind.name}")
        return device

    def pmem(self, argument: str, id: str) -> PlannedDevice:
        """The device ``id``, which is persistent memory."""
        device = self.device(argument, id)
        if not device.kind.persistent:
            raise Impossible(argument, f"{id!r} is a {device.kind.name}, this takes persistent memory")
        return device

    def add(self, id: str, device: PlannedDevice, node: int, size_argument: str) -> None:
        """Plug a device, for which there must be room."""
        self.require_node(node)
        self._require_room(size_argument, device)
        self.devices[id] = device

    def require_new(self, id: str) -> None:
        """A device that is about to be plugged takes an id of its own."""
        if id in self.devices:
            raise Impossible("id", f"device id {id!r} is used twice", "unplug the first one, or choose another id")

    def require_node(self, node: int) -> None:
        """The guest has that node."""
        nodes = max(1, len(self.spec.nodes))
        if node >= nodes:
            count = "one node" if nodes == 1 else f"{nodes} nodes"
            raise Impossible("node", f"there is no node {node}: the guest has {count}", "add it to the guest's nodes")

    def _require_room(self, argument: str, device: PlannedDevice) -> None:
        spec = self.spec
        taken = sum(other.size for other in self.devices.values())
        if taken + device.size > spec.room:
            needed = align_up(spec.memory + taken + device.size, SECTION)
            raise Impossible(
                argument,
                f"{format_size(device.size)} does not fit: {format_size(spec.room - taken)} of the "
                f"{format_size(spec.room)} for memory devices are left",
                f"set the guest's maxmem to {format_size(needed)} or more",
            )
        dimms = [other for other in self.devices.values() if not issubclass(other.kind, PciDeviceSpec)]
        if not issubclass(device.kind, PciDeviceSpec):
            self._require_slot(device, dimms)
            return
        ports = len(self.devices) - len(dimms)
        if ports >= spec.ports:
            message = f"all {spec.ports} hot-plug ports for virtio devices are taken"
            raise Impossible(None, message, f"set the guest's ports to {ports + 1} or more")

    def _require_slot(self, device: PlannedDevice, dimms: Sequence[PlannedDevice]) -> None:
        slots = self.spec.slots
        if len(dimms) >= slots:
            raise Impossible(None, f"all {slots} memory slots are taken", f"set the guest's slots to {slots + 1}")
        if device.slot is None:
            return
        if device.slot >= slots:
            raise Impossible("slot", f"there is no slot {device.slot}: the guest has {slots}", "counted from 0")
        if any(other.slot == device.slot for other in dimms):
            raise Impossible("slot", f"slot {device.slot} is taken", "choose another, or leave it to QEMU")

    def require_blocks(self, id: str) -> None:
        """The device ``id`` has memory blocks."""
        device = self.device("device", id)
        if device.kind.persistent and device.mode != "kmem":
            message = f"{id!r} is in {device.mode} mode here: it has no memory blocks"
            raise Impossible("device", message, "make it system RAM with kmem first")


def require_aligned(argument: str, size: int, multiple: int) -> None:
    """``size`` is a multiple; raises Impossible."""
    wrong = size_problem(size, multiple=multiple)
    if wrong is not None:
        raise Impossible(argument, *wrong)


def require_there(id: str, known: Iterable[str], what: str) -> None:
    """``id`` is one of ``known``; raises Impossible, which says ``what`` is not there."""
    names = list(known)
    if id not in names:
        raise Impossible("id", what, suggest(id, names))


def require_free(id: str, known: Container[str], what: str, way_out: str) -> None:
    """``id`` is none of ``known``; raises Impossible, which says ``what`` is there."""
    if id in known:
        raise Impossible("id", what, f"{way_out} it first, or choose another id")
