# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine, fully resolved: everything the command line depends on, and nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.arch import ArchSpec
from harness.config.guest import MAX_CPUS, MAX_PORTS, MAX_SLOTS
from harness.config.guest_parts import Firmware, QemuBinary
from harness.errors import UsageError
from harness.qemu.devices.device import BackendOptions, DeviceSpec, PciDeviceSpec, check_backend, check_size
from harness.units import MIB, AddrRange, format_size

#: the file beside an Image that lays out its kernel's types (BTF), if it has one
LAYOUTS = "layouts.btf"


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One NUMA node at boot: ``memory`` bytes (0 for an empty node) and the numbers of its CPUs."""

    memory: int
    cpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """One machine. Creating it checks that it is valid; raises UsageError if not. All sizes are bytes.

    ``maxmem`` None means no room for memory devices (``slots`` must be 0 then). ``nodes`` empty means no NUMA.
    ``boot`` is acpi (through firmware) or dt (device tree, straight into the kernel); ``bios`` runs before either.
    ``cpu`` overrides the architecture's; ``machine_options`` come after the architecture's. ``root_ports`` is the
    number of hot-plug capable PCIe ports (rp0, rp1, …); cold-plugged virtio devices use the first ones.
    ``packed`` is the file that ``kernel`` was unpacked from, if it was.
    ``paused`` holds the vCPUs until QMP ``cont``; with ``reboot`` off, QEMU exits when the guest resets.
    ``sandbox`` enables QEMU's seccomp filter; set it only if the binary has one (``QemuAbilities.sandbox``).
    """

    arch: ArchSpec
    qemu: QemuBinary
    kernel: Path
    packed: Path | None = None
    initrd: Path | None = None
    cmdline: str = ""
    boot: str = "acpi"
    firmware: Firmware | None = None
    bios: Path | None = None
    memory: int = 1024 * MIB
    maxmem: int | None = None
    slots: int = 0
    cpus: int = 2
    cpu: str | None = None
    random_seed: int | None = None
    machine_options: tuple[str, ...] = ()
    nodes: tuple[NodeSpec, ...] = ()
    root_ports: int = 4
    cold_devices: tuple[DeviceSpec, ...] = ()
    backend: BackendOptions = ()
    paused: bool = False
    reboot: bool = True
    vmcoreinfo: bool = True
    sandbox: bool = False

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_boot(self)
        _check_nodes(self)
        _check_devices(self)
        check_backend("boot RAM", self.backend)

    @property
    def files(self) -> tuple[tuple[str, Path], ...]:
        """Every file the machine reads, with its role: (("kernel", Path), …)."""
        found = [("kernel", self.kernel)]
        if self.initrd is not None:
            found.append(("initrd", self.initrd))
        if self.bios is not None:
            found.append(("bios", self.bios))
        if self.firmware is not None:
            found += [("firmware code", self.firmware.code), ("firmware variables", self.firmware.vars)]
        return tuple(found)

    def beside(self, *names: str) -> Iterator[Path]:
        """The files ``names`` beside the kernel's Image, and at the top of the build tree that it lies in."""
        image = self.packed or self.kernel
        folders = [image.parent, *(image.parents[3:4] if image.parent.match("arch/*/boot") else ())]
        return (path for name in names for folder in folders if (path := folder / name).is_file())

    @property
    def boot_backends(self) -> tuple[str, ...]:
        """Ids of the backends of boot RAM, in order: one, or one for each node that has memory."""
        if not self.nodes:
            return ("ram0",)
        return tuple(f"ram{number}" for number, node in enumerate(self.nodes) if node.memory)

    def boot_ram(self) -> dict[str, AddrRange]:
        """The guest-physical range of each backend of boot RAM: node after node, without gaps."""
        sizes = [node.memory for node in self.nodes if node.memory] or [self.memory]
        ends = itertools.accumulate(sizes, initial=self.arch.ram_base)
        return {name: AddrRange(*ends) for name, ends in zip(self.boot_backends, itertools.pairwise(ends), strict=True)}


def root_port_slot(number: int) -> int:
    """Slot number that the guest sees for root port rp``number``; 0 is the root complex's own."""
    return number + 1


def _check_sizes(spec: MachineSpec) -> None:
    check_size("boot memory", spec.memory)
    ports = ("root port", spec.root_ports, 0, MAX_PORTS)
    for what, count, least, most in (("CPU", spec.cpus, 1, MAX_CPUS), ("slot", spec.slots, 0, MAX_SLOTS), ports):
        if not least <= count <= most:
            raise UsageError(f"invalid {what} count: {count}", hint=f"from {least} to {most}")
    if spec.maxmem is None:
        if spec.slots:
            raise UsageError(f"{spec.slots} memory slots without maxmem", hint="set maxmem above the boot memory")
        return
    check_size("maxmem", spec.maxmem)
    if spec.maxmem < spec.memory:
        raise UsageError(
            f"maxmem {format_size(spec.maxmem)} is below the boot memory {format_size(spec.memory)}",
            hint="maxmem counts boot memory and all devices together",
        )
    if (spec.maxmem > spec.memory) != (spec.slots > 0):
        raise UsageError(
            f"maxmem {format_size(spec.maxmem)} over {format_size(spec.memory)} of boot memory with {spec.slots} slots",
            hint="room for memory devices takes both: maxmem above the boot memory and at least one slot",
        )


def _check_boot(spec: MachineSpec) -> None:
    if spec.boot not in ("acpi", "dt"):
        raise UsageError(f"unknown boot method: {spec.boot!r}", hint="use acpi or dt")
    if spec.boot == "acpi" and spec.firmware is None:
        raise UsageError("an ACPI boot needs firmware", hint="give EDK2's code and variables images, or boot with dt")
    if spec.boot == "dt" and spec.firmware is not None:
        raise UsageError("a device tree boot starts the kernel directly and takes no firmware", hint="boot with acpi")
    if "\n" in spec.cmdline or "\0" in spec.cmdline:
        raise UsageError("the kernel command line contains a newline or a NUL")


def _check_nodes(spec: MachineSpec) -> None:
    if not spec.nodes:
        return
    total = sum(node.memory for node in spec.nodes)
    if total != spec.memory:
        raise UsageError(
            f"the NUMA nodes hold {format_size(total)}, the machine {format_size(spec.memory)}",
            hint="the memory of all nodes adds up to the boot memory",
        )
    seen: set[int] = set()
    for number, node in enumerate(spec.nodes):
        if node.memory:
            check_size(f"memory of node {number}", node.memory)
        for cpu in node.cpus:
            if not 0 <= cpu < spec.cpus:
                raise UsageError(f"node {number} has CPU {cpu}, the machine has CPUs 0 to {spec.cpus - 1}")
            if cpu in seen:
                raise UsageError(f"CPU {cpu} is in two NUMA nodes")
            seen.add(cpu)
    if len(seen) != spec.cpus:
        left_out = min(set(range(spec.cpus)) - seen)
        raise UsageError(f"CPU {left_out} is in no NUMA node", hint="assign every CPU to one node")


def _check_devices(spec: MachineSpec) -> None:
    ids: set[str] = set()
    for device in spec.cold_devices:
        device.require(max(1, len(spec.nodes)), spec.slots)
        if device.id in ids:
            raise UsageError(f"device id {device.id!r} is used twice")
        ids.add(device.id)
    dimms = sum(not isinstance(device, PciDeviceSpec) for device in spec.cold_devices)
    if dimms > spec.slots:
        raise UsageError(f"{dimms} DIMMs need {dimms} slots, the machine has {spec.slots}")
    ports = len(spec.cold_devices) - dimms
    if ports > spec.root_ports:
        raise UsageError(f"{ports} virtio devices need {ports} root ports, the machine has {spec.root_ports}")
    needed = spec.memory + sum(device.size for device in spec.cold_devices)
    limit = spec.memory if spec.maxmem is None else spec.maxmem
    if needed > limit:
        raise UsageError(
            f"boot memory and devices need {format_size(needed)}, the machine has room for {format_size(limit)}",
            hint=f"set maxmem to {format_size(needed)} or more",
        )
