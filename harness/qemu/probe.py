# SPDX-License-Identifier: GPL-2.0-or-later
"""What a QEMU binary can do, found out by querying it, never from its version."""

from __future__ import annotations

import contextlib
import re
import shlex
import socket
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from harness import proc
from harness.arch import ArchSpec
from harness.config.guest_parts import QemuBinary
from harness.deadline import Deadline
from harness.errors import InfraError, QemuError, QmpRefused
from harness.qemu.cpu_threads import require_own
from harness.qemu.devices.device import KINDS, kinds_on
from harness.qemu.devices.virtio_mem import VirtioMemSpec
from harness.qemu.qmp import QmpSession
from harness.scratch import private_directory
from harness.units import GIB, MIB

#: QOM types that memory hotplug needs in any machine, whatever the memory devices
BASE_DEVICES = frozenset({"memory-backend-memfd", "pcie-root-port", "virtio-net-pci", "virtio-rng-pci"})

_PROBE_SECONDS = 20.0
_QUIT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class QemuAbilities:
    """What one QEMU binary reports about itself for one architecture.

    ``device_types`` are all instantiable QOM types, devices and objects alike. ``hotplug_refusal`` is its error when a
    virtio-mem device was actually plugged into its machine, None if that succeeded. ``sandbox`` is true if it was built
    with a seccomp filter.
    """

    version: str
    device_types: frozenset[str]
    hotplug_refusal: str | None
    sandbox: bool


_cache: dict[tuple[QemuBinary, str], QemuAbilities] = {}
_cache_lock = threading.Lock()


def probe(binary: QemuBinary, arch: ArchSpec, deadline: Deadline) -> QemuAbilities:
    """Start ``binary`` twice without a guest and query it; the answers are cached for the life of this process.

    Raises QemuError (argv, exit status, stderr) if it does not run, lacks the machine type, or is run by a wrapper as
    another process.
    """
    key = (binary, arch.name)
    with _cache_lock:
        if key not in _cache:
            _cache[key] = _probe(binary, arch, deadline)
        return _cache[key]


def missing(abilities: QemuAbilities, needs: Collection[str], *, hotplug: bool = True) -> str | None:
    """What of ``needs`` (QOM types), and of ``hotplug``, this QEMU lacks and how to get it; None if nothing."""
    lacking = sorted(set(needs) - abilities.device_types)
    if lacking:
        several = "devices" if len(lacking) > 1 else "the device"
        return f"QEMU {abilities.version} lacks {several} {', '.join(lacking)}: run memhp fetch for one that has it"
    if hotplug and abilities.hotplug_refusal is not None:
        return (
            f"QEMU {abilities.version} cannot hot-plug memory into this machine ({abilities.hotplug_refusal}): "
            "run memhp fetch for one that can"
        )
    return None


def able(arch: ArchSpec, kinds: Collection[str] | None = None) -> Callable[[QemuBinary], str | None]:
    """Return a function that says why a binary cannot serve ``arch`` with memory devices of ``kinds``, or None.

    ``kinds`` None: all that its board can have.

    For choosing among binaries: a binary that does not even run gives a reason, not an exception.
    """
    needs = needed_devices(kinds_on(arch.name) if kinds is None else kinds)

    def judge(binary: QemuBinary) -> str | None:
        try:
            return missing(probe(binary, arch, Deadline(_PROBE_SECONDS)), needs)
        except InfraError as error:
            return f"{shlex.join(binary.argv)} does not work: {error.message}"

    return judge


def needed_devices(kinds: Collection[str]) -> frozenset[str]:
    """QOM types that a machine with memory devices of ``kinds`` needs."""
    return BASE_DEVICES | {KINDS[kind].driver for kind in kinds}


def _probe(binary: QemuBinary, arch: ArchSpec, deadline: Deadline) -> QemuAbilities:
    with _ask(binary, ["-machine", "none", "-object", "iothread,id=own"], deadline) as (qmp, pid):
        threads = [int(thread["thread-id"]) for thread in qmp.execute("query-iothreads", deadline=deadline)]
        require_own(threads, pid, binary.argv[-1])
        target = qmp.execute("query-target", deadline=deadline)["arch"]
        if target != arch.qemu_target:
            raise QemuError(f"it emulates {target}, not {arch.qemu_target}")
        types = qmp.execute("qom-list-types", {"abstract": False}, deadline=deadline)
        version = qmp.execute("query-version", deadline=deadline)["qemu"]
        machines = qmp.execute("query-machines", deadline=deadline)
    if not any(arch.machine in (machine["name"], machine.get("alias")) for machine in machines):
        hint = "is it the qemu-system program of the architecture?"
        raise QemuError(f"this QEMU has no machine {arch.machine!r}", hint=hint)
    with_sandbox = [*_program(binary), "-sandbox", "on", "-version"]
    names = frozenset(item["name"] for item in types)
    return QemuAbilities(
        version=f"{version['major']}.{version['minor']}.{version['micro']}",
        device_types=names,
        hotplug_refusal=_try_hotplug(binary, arch, names, deadline),
        sandbox=proc.run(with_sandbox, deadline=deadline, check=False).returncode == 0,
    )


def _try_hotplug(binary: QemuBinary, arch: ArchSpec, types: frozenset[str], deadline: Deadline) -> str | None:
    """Plug virtio-mem into a machine that never runs: its description does not tell whether that works (riscv64's
    silently accepts maxmem)."""
    device = VirtioMemSpec("vm0", GIB, requested=128 * MIB, port="rp0")
    lacking = sorted({"memory-backend-memfd", "pcie-root-port", device.driver} - types)
    if lacking:
        return f"no {', '.join(lacking)}"
    machine = ",".join([arch.machine, *arch.machine_options, "memory-backend=ram0"])
    arguments = ["-machine", machine, "-accel", "tcg", "-m", "size=128M,slots=2,maxmem=2G", "-S"]
    if arch.bios is not None:
        # Otherwise QEMU would look for firmware in its data folder, which is not known here.
        arguments += ["-bios", "none"]
    arguments += ["-object", "memory-backend-memfd,id=ram0,size=128M,share=on"]
    arguments += ["-device", "pcie-root-port,id=rp0,bus=pcie.0,chassis=1,slot=1"]
    try:
        with _ask(binary, arguments, deadline) as (qmp, _):
            qmp.execute("object-add", device.object_add(), deadline=deadline)
            qmp.execute("device_add", device.device_add(), deadline=deadline)
    except QmpRefused as error:
        return error.desc
    except QemuError as error:
        return re.sub(r"\s+", " ", error.message)
    return None


def _program(binary: QemuBinary) -> list[str]:
    return [*binary.argv, *([] if binary.data_dir is None else ["-L", str(binary.data_dir)])]


@contextlib.contextmanager
def _ask(binary: QemuBinary, arguments: Sequence[str], deadline: Deadline) -> Iterator[tuple[QmpSession, int]]:
    """The QMP session and the process of QEMU started with ``arguments`` for a few queries."""
    here, there = socket.socketpair()
    with private_directory() as folder, here:
        with there:
            fd = there.fileno()
            argv = [*_program(binary), "-nodefaults", "-no-user-config", "-display", "none", *arguments]
            argv += ["-chardev", f"socket,id=qmp,fd={fd}", "-mon", "chardev=qmp,mode=control"]
            stderr = folder / "stderr"
            child = proc.spawn(argv, pass_fds=[fd], stdout=folder / "stdout", stderr=stderr)

        def exit_report() -> str:
            code = child.wait(Deadline(_QUIT_SECONDS))
            return f"{shlex.join(argv)} {proc.describe_status(code)}: {proc.tail_file(stderr, lines=5)}"

        with child, QmpSession(here, log=folder / "qmp.jsonl", deadline=deadline, exit_report=exit_report) as qmp:
            yield qmp, child.pid
