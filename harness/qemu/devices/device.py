# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU's memory devices have in common, and the register of all kinds."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from harness.config.arguments import GRANULE, id_problem
from harness.config.requirement import Requirement
from harness.errors import QemuError, UsageError
from harness.state import MemoryDevice
from harness.units import AddrRange, format_size

#: options of a memory-backend-memfd beside id, size and share, in order: (("prealloc", True),)
BackendOptions = tuple[tuple[str, bool | int | str], ...]

_BACKEND_FIXED = {"id", "size", "share", "qom-type"}


#: every known kind of memory device, by its name in query-memory-devices
KINDS: dict[str, type[DeviceSpec]] = {}


@dataclass(frozen=True)
class DeviceSpec(abc.ABC):
    """A memory device to be created, present at boot or plugged later. Sizes and address are bytes.

    ``address`` None: QEMU chooses. ``backend`` are options of its memory backend.
    """

    #: its name in query-memory-devices, and its usual name
    kind: ClassVar[str]
    name: ClassVar[str]
    #: its QOM type, and the name of its property for ``address``
    driver: ClassVar[str]
    address_property: ClassVar[str] = "memaddr"
    #: what kernel and board must have for it, and what QEMU's -machine must be given
    requirement: ClassVar[Requirement]
    machine_options: ClassVar[tuple[str, ...]] = ()
    #: its drivers that may be modules, in the order of loading, and the option of each
    modules: ClassVar[Mapping[str, str]] = {}
    #: the scenario that covers its whole life cycle
    proof: ClassVar[str]
    #: who can unplug it: QEMU by device_del, only the guest by powering its PCI slot off, or nobody
    unplugs: ClassVar[Literal["qemu", "guest", "nobody"]] = "qemu"
    #: whether QEMU can save a machine that has it, and whether the guest sees a pmem
    migrates: ClassVar[bool] = True
    persistent: ClassVar[bool] = False

    id: str
    size: int
    address: int | None = None
    backend: BackendOptions = ()

    def __init_subclass__(cls) -> None:
        # Of a class between this one and the kinds there are no devices.
        if "kind" in vars(cls):
            KINDS[cls.kind] = cls

    def properties(self) -> dict[str, int | str | None]:
        """Its properties except the address, in the order of the command line; QEMU chooses a value that is None."""
        return {}

    def object_add(self) -> dict[str, object]:
        """Arguments of QMP object-add for its backend."""
        base = {"qom-type": "memory-backend-memfd", "id": backend_id(self.id), "size": self.size, "share": True}
        return base | dict(self.backend)

    def device_add(self) -> dict[str, object]:
        """Arguments of QMP device_add; the backend must exist."""
        given = {**self.properties(), self.address_property: self.address}
        base = {"driver": self.driver, "id": self.id, "memdev": backend_id(self.id)}
        return base | {name: value for name, value in given.items() if value is not None}

    def check(self) -> None:
        """Raise UsageError if no machine can have it."""
        wrong = id_problem(self.id)
        if wrong is not None:
            raise UsageError(wrong[0], hint=wrong[1])
        check_size(f"{self.name} {self.id}", self.size)
        check_backend(self.id, self.backend)

    def require(self, nodes: int, slots: int) -> None:
        """Raise UsageError unless a machine with this many nodes and slots can have it."""
        self.check()

    def require_node(self, node: int | None, nodes: int) -> None:
        if node is not None and not 0 <= node < nodes:
            raise UsageError(f"{self.name} {self.id} is on node {node}, which the machine lacks")

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> MemoryDevice:
        """Parse the ``data`` of its MemoryDeviceInfo (QEMU qapi/machine.json); raises KeyError, TypeError."""
        size = data["size"]
        return MemoryDevice(
            id=data.get("id", ""),
            kind=cls.kind,
            range=AddrRange.sized(data[cls.address_property], size),
            size=size,
            max_size=size,
            requested_size=None,
            block_size=None,
            node=None,
            slot=None,
            backend=data["memdev"].removeprefix("/objects/"),
        )

    @classmethod
    @abc.abstractmethod
    def from_known(cls, known: MemoryDevice, port: str | None, backend: BackendOptions) -> Self:
        """The spec that creates ``known`` again, in root port ``port`` if it is on PCI."""


@dataclass(frozen=True)
class PciDeviceSpec(DeviceSpec):
    """A PCI device; ``port`` None: the first free root port."""

    port: str | None = None


def kinds_on(arch: str) -> tuple[str, ...]:
    """The kinds of memory devices that the board of ``arch`` can have."""
    return tuple(name for name, kind in KINDS.items() if kind.requirement.arch in (None, arch))


def parse_memory_devices(answer: Any) -> tuple[MemoryDevice, ...]:
    """Flatten the answer of query-memory-devices (QEMU qapi/machine.json, MemoryDeviceInfo); raises QemuError."""
    found = []
    try:
        for item in answer:
            kind, data = item["type"], item["data"]
            if kind not in KINDS:
                raise QemuError(f"QEMU has a memory device of unknown kind {kind!r}: {data}")
            found.append(KINDS[kind].parse(data))
    except (KeyError, TypeError, AttributeError) as error:
        raise QemuError(f"QEMU's list of memory devices has an unknown format ({error!r}): {answer}") from error
    return tuple(sorted(found, key=lambda device: device.range))


def option_text(name: str, value: object) -> str:
    """One property in the syntax of the command line."""
    if isinstance(value, bool):
        value = "on" if value else "off"
    elif isinstance(value, int) and name.endswith("addr"):
        value = f"{value:#x}"
    elif isinstance(value, int) and name.endswith("size"):
        value = format_size(value)
    return f"{name}={value}"


def backend_id(device_id: str) -> str:
    """Id of the memory backend that belongs to the device ``device_id``."""
    return f"mem-{device_id}"


def check_size(what: str, size: int) -> None:
    """Raise UsageError unless ``size`` is a positive multiple of 2 MiB."""
    if size <= 0 or size % GRANULE:
        raise UsageError(
            f"{what} of {format_size(size)} is not a positive multiple of {format_size(GRANULE)}",
            hint="the kernel adds memory in units of at least 2M",
        )


def check_backend(what: str, options: BackendOptions) -> None:
    """Raise UsageError for an option of ``what`` that only the harness may set."""
    for name, _ in options:
        if name in _BACKEND_FIXED:
            raise UsageError(f"backend option {name!r} of {what} is set by the harness")
