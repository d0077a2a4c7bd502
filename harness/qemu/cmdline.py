# SPDX-License-Identifier: GPL-2.0-or-later
"""Build QEMU's command line from a machine's spec: a pure function."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.qemu.devices.device import BackendOptions, PciDeviceSpec, backend_id, option_text
from harness.qemu.machine_spec import MachineSpec, root_port_slot
from harness.units import format_size

#: QEMU's seccomp filter, as strict as a machine without helper processes allows
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True, slots=True)
class Channels:
    """What a running machine is connected to, in addition to its spec.

    ``qmp`` and ``console`` are numbers of inherited, connected socket descriptors; ``console_log`` gets a copy of all
    guest output; ``variables`` is this run's copy of the firmware's variables (None without firmware). ``memory`` maps
    backends of boot RAM to inherited file descriptors; QEMU allocates the other backends itself. With ``incoming`` QEMU
    waits for a saved machine, which includes the flash.
    """

    qmp: int
    console: int
    console_log: Path
    variables: Path | None = None
    memory: Mapping[str, int] = field(default_factory=dict)
    incoming: bool = False


def command_line(spec: MachineSpec, channels: Channels) -> list[str]:
    """Return the complete argv that starts ``spec``; each option is followed by its value."""
    argv = list(spec.qemu.argv)
    if spec.qemu.data_dir is not None:
        argv += ["-L", str(spec.qemu.data_dir)]
    argv += ["-nodefaults", "-no-user-config", "-display", "none"]
    if spec.sandbox:
        argv += ["-sandbox", _SANDBOX]
    argv += ["-machine", _machine(spec), "-accel", "tcg,thread=multi", "-cpu", spec.cpu or spec.arch.cpu]
    argv += ["-smp", str(spec.cpus), "-m", _memory(spec)]
    argv += _boot_ram(spec, channels.memory)
    argv += _channels(channels)
    if spec.bios is not None:
        argv += ["-bios", str(spec.bios)]
    argv += _firmware(spec, channels)
    argv += ["-kernel", str(spec.kernel)]
    if spec.initrd is not None:
        argv += ["-initrd", str(spec.initrd)]
    if spec.cmdline:
        argv += ["-append", spec.cmdline]
    argv += _devices(spec)
    if spec.random_seed is not None:
        argv += ["-seed", str(spec.random_seed)]
    if spec.paused:
        argv += ["-S"]
    if not spec.reboot:
        argv += ["-no-reboot"]
    if channels.incoming:
        argv += ["-incoming", "defer"]
    return argv


def escape(text: str | Path) -> str:
    """Escape ``text`` as one value of QEMU's option syntax, where a single comma ends a value."""
    return str(text).replace(",", ",,")


def _join(*parts: str | None, options: Iterable[tuple[str, object]] = ()) -> str:
    return ",".join([part for part in parts if part] + [f"{name}={value}" for name, value in options])


def _machine(spec: MachineSpec) -> str:
    return _join(
        spec.arch.machine,
        *spec.arch.machine_options,
        f"acpi={'on' if spec.boot == 'acpi' else 'off'}",
        None if spec.nodes else "memory-backend=ram0",
        *spec.machine_options,
    )


def _memory(spec: MachineSpec) -> str:
    room = [] if not spec.slots else [("slots", spec.slots), ("maxmem", format_size(spec.maxmem or 0))]
    return _join(options=[("size", format_size(spec.memory)), *room])


def _backend(name: str, size: int, extra: BackendOptions, fd: int | None = None) -> list[str]:
    made = [f"id={name}", f"size={format_size(size)}", "share=on"]
    made += [escape(option_text(*option)) for option in extra]
    if fd is None:
        return ["-object", _join("memory-backend-memfd", *made)]
    # Migration skips only RAM backed by a named file (migrate_ram_is_ignored, migration/ram.c).
    return ["-object", _join("memory-backend-file", *made, f"mem-path=/proc/self/fd/{fd}")]


def _boot_ram(spec: MachineSpec, memory: Mapping[str, int]) -> list[str]:
    if not spec.nodes:
        return _backend("ram0", spec.memory, spec.backend, memory.get("ram0"))
    argv: list[str] = []
    for number, node in enumerate(spec.nodes):
        if node.memory:
            argv += _backend(f"ram{number}", node.memory, spec.backend, memory.get(f"ram{number}"))
        memdev = [("memdev", f"ram{number}")] if node.memory else []
        cpus = [("cpus", cpu) for cpu in node.cpus]
        argv += ["-numa", _join("node", options=[("nodeid", number), *cpus, *memdev])]
    return argv


def _channels(channels: Channels) -> list[str]:
    qmp, console = f"socket,id=qmp,fd={channels.qmp}", f"socket,id=console,fd={channels.console}"
    log = f"logfile={escape(channels.console_log)},logappend=on"
    argv = ["-chardev", qmp, "-mon", "chardev=qmp,mode=control"]
    return [*argv, "-chardev", f"{console},{log}", "-serial", "chardev:console"]


def _firmware(spec: MachineSpec, channels: Channels) -> list[str]:
    if spec.firmware is None:
        return []
    if channels.incoming:
        # With the real files QEMU would read both for nothing, then write its whole flash back as soon as the machine
        # runs (postload_update_cb, hw/block/pflash_cfi01.c).
        nothing = f"if=pflash,driver=null-co,read-zeroes=on,size={spec.arch.flash_size}"
        return ["-drive", f"{nothing},unit=0,readonly=on", "-drive", f"{nothing},unit=1"]
    if channels.variables is None:
        raise ValueError("a machine with firmware needs its own copy of the variables")
    code, variables = escape(spec.firmware.code), escape(channels.variables)
    argv = ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={code}"]
    return [*argv, "-drive", f"if=pflash,format=raw,unit=1,file={variables}"]


def _devices(spec: MachineSpec) -> list[str]:
    # QEMU picks the forwarded port, so that two runs cannot race for it.
    net = "user,id=net0,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22"
    # A restored guest has no network to announce itself to, and is busy enough.
    argv = ["-netdev", net, "-device", "virtio-net-pci,id=nic0,netdev=net0,romfile=,guest_announce=off"]
    source = "rng-random,id=random0,filename=/dev/urandom" if spec.random_seed is None else "rng-builtin,id=random0"
    argv += ["-object", source, "-device", "virtio-rng-pci,id=rng0,rng=random0"]
    for number in range(spec.root_ports):
        slot = root_port_slot(number)
        argv += ["-device", f"pcie-root-port,id=rp{number},bus=pcie.0,chassis={slot},slot={slot}"]
    port = 0
    for device in spec.cold_devices:
        argv += _backend(backend_id(device.id), device.size, device.backend)
        if isinstance(device, PciDeviceSpec):
            device = dataclasses.replace(device, port=device.port or f"rp{port}")
            port += 1
        driver, *options = (option_text(name, value) for name, value in device.device_add().items())
        argv += ["-device", _join(driver.removeprefix("driver="), *options)]
    if spec.vmcoreinfo:
        argv += ["-device", "vmcoreinfo"]
    return argv
