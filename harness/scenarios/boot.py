# SPDX-License-Identifier: GPL-2.0-or-later
"""From a guest's description to a booted guest with SSH."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.arch import arch_named
from harness.arch.features import IMAGE_MEMBERS, IMAGE_TEXTS
from harness.artifacts.firmware import bios, firmware
from harness.artifacts.guestroot import guest_root
from harness.artifacts.kernel import kernel_of
from harness.artifacts.qemu import find_qemu
from harness.collect.hostside import KernelView
from harness.collect.look import collect_facts
from harness.config.cold import DimmArgs, VirtioMemArgs
from harness.config.guest import GuestSpec
from harness.config.guest_parts import Firmware, GuestRoot, KernelImage, QemuBinary
from harness.config.places import guest_scripts_dir
from harness.deadline import Deadline
from harness.errors import InfraError, UnsupportedError
from harness.guest.console import ASLEEP, READY, Console
from harness.guest.identity import Identity, wake
from harness.guest.overlay import overlay, write_initrd
from harness.guest.ssh import GuestShell
from harness.kmem.btf import image_marks
from harness.model.actions import Action
from harness.model.boot_layout import MachineShape
from harness.model.devices.dimm import PlugDimm
from harness.model.devices.virtio_mem import PlugVirtioMem
from harness.parsers.dmesg import alarming
from harness.progress import Progress
from harness.qemu import probe
from harness.qemu.devices.device import KINDS, DeviceSpec
from harness.qemu.devices.dimm import DimmSpec
from harness.qemu.devices.virtio_mem import VirtioMemSpec
from harness.qemu.machine import Machine
from harness.qemu.machine_spec import MachineSpec, NodeSpec
from harness.scenarios.requirements import device_kinds, require_arch, require_boot, require_config, require_host
from harness.scratch import private_directory
from harness.state import KernelFacts
from harness.units import MIB

#: virtio devices of every guest: the network card and the entropy source
VIRTIO_DEVICES = 2
_PROBE_SECONDS = 60.0
#: said of a QEMU without seccomp: it is what holds a guest that breaks out of QEMU
UNCONFINED = "this QEMU has no seccomp filter (-sandbox): a guest that broke out of it could do all that you can"


@dataclass(frozen=True, slots=True)
class Parts:
    """All parts of a guest, fetched or built and verified.

    ``bios`` is the firmware that runs before the kernel or EDK2, None if there is none. ``sandbox``: this QEMU can drop
    system calls that it does not need. ``machine_options`` are those of the memory devices that the guest may get.
    """

    qemu: QemuBinary
    firmware: Firmware | None
    kernel: KernelImage
    root: GuestRoot
    bios: Path | None = None
    sandbox: bool = False
    machine_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Connected:
    """A machine with an open SSH connection to its guest."""

    machine: Machine
    console: Console
    shell: GuestShell


@dataclass(frozen=True, slots=True)
class BootedGuest(Connected):
    """A guest that answers on SSH.

    ``shape`` is the machine as given to QEMU, ``facts`` describe the kernel, ``kernel`` is the host's reader of its
    memory. ``restored`` from a snapshot or booted; ``why_booted`` is the reason if it could not be restored.
    """

    shape: MachineShape
    facts: KernelFacts
    boot: str
    kernel: KernelView
    restored: bool = False
    why_booted: str = ""

    @property
    def unconfined(self) -> str:
        """A warning if QEMU runs without a seccomp filter, else ""."""
        return "" if self.machine.spec.sandbox else UNCONFINED


def resolve(
    spec: GuestSpec, needs: tuple[str, ...], progress: Progress, *, kinds: Collection[str] | None = None
) -> Parts:
    """Fetch or build the parts of ``spec`` for scenarios that need ``needs``.

    ``kinds`` are the kinds of memory devices that QEMU must have (None: those that ``needs`` takes).

    Raises UnsupportedError naming an unmet requirement as early as possible, ArtefactError if a part is unavailable.
    """
    require_arch(needs, spec.arch)
    require_host(needs)
    require_boot(needs, spec.boot)
    arch = arch_named(spec.arch)
    image = kernel_of(spec, arch, progress)
    require_config(needs, image.usable, f"the kernel {image.origin}")
    kinds = device_kinds(needs) if kinds is None else kinds
    able = probe.able(arch, kinds)
    qemu = find_qemu(arch, explicit=spec.qemu, able=able, progress=progress)
    return Parts(
        qemu=qemu,
        firmware=firmware(arch, progress) if spec.boot == "acpi" else None,
        kernel=image,
        root=guest_root(arch, progress),
        bios=bios(arch, progress),
        sandbox=probe.probe(qemu, arch, Deadline(_PROBE_SECONDS)).sandbox,
        machine_options=tuple(option for name in sorted(kinds) for option in KINDS[name].machine_options),
    )


class Resolver:
    """Resolves and remembers the parts of guests, or the reason for a failure."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._known: dict[tuple[object, ...], Parts | UnsupportedError | InfraError] = {}

    def resolve(self, spec: GuestSpec, needs: tuple[str, ...]) -> Parts | UnsupportedError | InfraError:
        """The result of ``resolve``, or its error. Raises UsageError for an invalid request."""
        kernel = (spec.kernel, spec.build, spec.modules)
        key = (spec.arch, kernel, spec.qemu, spec.boot, needs)
        if key not in self._known:
            try:
                self._known[key] = resolve(spec, needs, self.progress)
            except (UnsupportedError, InfraError) as error:
                self._known[key] = error
        return self._known[key]


def machine_spec(spec: GuestSpec, parts: Parts, initrd: Path) -> MachineSpec:
    """The fully resolved machine: what ``memhp cmdline`` prints and ``Machine.launch`` starts."""
    share = cpu_shares(spec.cpus, len(spec.nodes))
    nodes = tuple(NodeSpec(node.memory, cpus) for node, cpus in zip(spec.nodes, share, strict=True))
    return MachineSpec(
        arch=arch_named(spec.arch),
        qemu=parts.qemu,
        kernel=parts.kernel.image,
        packed=parts.kernel.packed,
        initrd=initrd,
        cmdline=command_line_of_kernel(spec),
        boot=spec.boot,
        firmware=parts.firmware,
        bios=parts.bios,
        memory=spec.memory,
        maxmem=spec.maxmem,
        slots=spec.slots,
        cpus=spec.cpus,
        cpu=spec.cpu,
        random_seed=spec.random_seed,
        machine_options=(*parts.machine_options, *spec.machine_options),
        nodes=nodes,
        root_ports=spec.ports,
        cold_devices=cold_devices(spec),
        sandbox=parts.sandbox,
    )


def cold_devices(spec: GuestSpec) -> tuple[DeviceSpec, ...]:
    """The memory devices on QEMU's command line."""
    return tuple(map(_cold_device, spec.devices))


def _cold_device(device: DimmArgs | VirtioMemArgs) -> DeviceSpec:
    node = device.node or None
    if isinstance(device, VirtioMemArgs):
        return VirtioMemSpec(device.id, device.max, requested=device.requested, block_size=device.block, node=node)
    assert not isinstance(device.address, str), "no guest file may say top"
    return DimmSpec(device.id, device.size, device.address, node=node, slot=device.slot)


def cold_actions(spec: MachineSpec) -> tuple[Action, ...]:
    """The model's actions for them; a kernel without ACPI does not see DIMMs."""
    out: list[Action] = []
    ports = itertools.count()
    for device in spec.cold_devices:
        match device:
            case DimmSpec():
                added = spec.boot == "acpi"
                out.append(PlugDimm(device.id, device.size, device.node or 0, device.slot, device.address, added))
            case VirtioMemSpec():
                block, port = device.block_size or 2 * MIB, f"rp{next(ports)}"
                out.append(PlugVirtioMem(device.id, device.size, block, device.requested, device.node or 0, port))
    return tuple(out)


def cpu_shares(cpus: int, nodes: int) -> tuple[tuple[int, ...], ...]:
    """The CPUs of each node: consecutive ones, the first nodes have one more if the division leaves a remainder."""
    bounds = [-(-cpus * node // nodes) for node in range(nodes + 1)] if nodes else []
    return tuple(tuple(range(start, end)) for start, end in itertools.pairwise(bounds))


def command_line_of_kernel(spec: GuestSpec) -> str:
    """``-append``: the console, options for a quiet and quick boot, then the user's."""
    words = [f"console={arch_named(spec.arch).console}", "random.trust_cpu=on"]
    # After an Oops further steps prove nothing, and a reboot would destroy the evidence.
    words += ["oops=panic", "panic=0"]
    # Seconds: a busy host may not run a guest's CPU for longer than the default of 20.
    words += ["rcupdate.rcu_cpu_stall_timeout=60", "watchdog_thresh=60"]
    # Since v7.3 an empty hot-plug port is suspended with its interrupts off (pci_bridge_d3_possible, drivers/pci/pci.c;
    # pciehp_suspend). It relies on PME, which QEMU's ports lack: the next device plugged into it is never seen.
    if "pcie_port_pm=" not in spec.cmdline:
        words.append("pcie_port_pm=off")
    words.append(spec.cmdline)
    return " ".join(word for word in words if word)


def machine_shape(spec: MachineSpec) -> MachineShape:
    """The model's description of the machine."""
    return MachineShape(
        arch=spec.arch,
        node_memory=tuple(node.memory for node in spec.nodes) or (spec.memory,),
        max_memory=spec.maxmem or spec.memory,
        slots=spec.slots,
        ports=tuple(f"rp{number}" for number in range(spec.root_ports)),
        virtio_devices=VIRTIO_DEVICES,
        acpi=spec.boot == "acpi",
        cpu_nodes=tuple(number for number, node in enumerate(spec.nodes) if node.cpus) if spec.nodes else None,
        cold=cold_actions(spec),
    )


def archives_of(spec: GuestSpec, parts: Parts) -> list[Path]:
    """The archives of a guest's root, in order, before the guest's own files."""
    others = (parts.kernel.modules, spec.initrd)
    return [parts.root.initrd, *(path for path in others if path is not None)]


def facts_of(facts: KernelFacts, kernel: KernelImage) -> KernelFacts:
    """The facts about a booted kernel, including evidence from its image.

    Debian's kernels have their configuration beside the image.
    """
    image = image_marks(kernel.image.read_bytes(), IMAGE_TEXTS, IMAGE_MEMBERS)
    return dataclasses.replace(facts, config=kernel.config if facts.config is None else facts.config, image=image)


@contextlib.contextmanager
def boot_guest(spec: GuestSpec, parts: Parts, workdir: Path, timeout: float) -> Iterator[BootedGuest]:
    """Boot ``spec`` and end it when the block is left, in any case.

    ``workdir`` receives console.log, qmp.jsonl and qemu.stderr; keys and the initrd live in a private directory that
    is removed. Raises LaunchError, GuestError (with the console's tail) or DeadlineExpired.
    """
    deadline = Deadline(timeout)
    with boot_connected(spec, parts, workdir, deadline) as up:
        machine = up.machine
        facts = facts_of(collect_facts(up.shell, machine.spec.arch, deadline), parts.kernel)
        view = KernelView.open(machine, facts, deadline)
        yield BootedGuest(machine, up.console, up.shell, machine_shape(machine.spec), facts, spec.boot, view)


@contextlib.contextmanager
def boot_connected(spec: GuestSpec, parts: Parts, workdir: Path, deadline: Deadline) -> Iterator[Connected]:
    """The first part of ``boot_guest``: up to the open SSH connection. Raises what it raises."""
    with contextlib.ExitStack() as stack:
        private = stack.enter_context(private_directory())
        identity = Identity.fresh()
        initrd = private / "initrd"
        write_initrd(archives_of(spec, parts), overlay(identity, guest_scripts_dir()), initrd)
        machine = stack.enter_context(Machine.launch(machine_spec(spec, parts, initrd), workdir, deadline))
        console = stack.enter_context(Console(machine.console, alarming))
        shell = stack.enter_context(GuestShell.connect(machine.ssh_port(deadline), identity, deadline, console))
        yield Connected(machine, console, shell)


def meet_again(guest: BootedGuest, mark: int, deadline: Deadline) -> BootedGuest:
    """Connect to the guest after a reset; ``mark`` is the number of its console's last line before it.

    Its keys are the same as before. Raises as ``boot_guest`` does.
    """
    console, machine = guest.console, guest.machine
    if guest.restored:
        # Its initrd has no keys: it goes to sleep like the saved guest.
        console.wait_line(ASLEEP, deadline, since=mark)
        wake(machine.console, guest.shell.identity, deadline)
    console.wait_line(READY, deadline, since=mark)
    guest.shell.reconnect(machine.ssh_port(deadline), deadline)
    facts = collect_facts(guest.shell, machine.spec.arch, deadline)
    facts = dataclasses.replace(facts, config=facts.config or guest.facts.config, image=guest.facts.image)
    return dataclasses.replace(guest, facts=facts, kernel=KernelView.open(machine, facts, deadline))
