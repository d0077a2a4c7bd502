# SPDX-License-Identifier: GPL-2.0-or-later
"""A real QEMU with its CPUs stopped: the harness's requests to QEMU work, and nothing is left afterwards."""

from __future__ import annotations

import dataclasses
import os
import select
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from harness.arch import ArchSpec, arch_named
from harness.config.guest import GuestSpec
from harness.config.guest_parts import QemuBinary
from harness.deadline import Deadline
from harness.errors import LaunchError, QmpRefused
from harness.qemu import memdev
from harness.qemu.devices.device import kinds_on
from harness.qemu.devices.virtio_mem import VirtioMemSpec
from harness.qemu.machine import Machine
from harness.qemu.machine_spec import MachineSpec, NodeSpec
from harness.qemu.probe import missing, needed_devices, probe
from harness.scenarios.boot import Parts
from harness.units import GIB, MIB

pytestmark = pytest.mark.memhp_guest


@pytest.fixture(scope="session")
def binary(memhp_artifacts: Parts) -> QemuBinary:
    return memhp_artifacts.qemu


@pytest.fixture(scope="session")
def arch(memhp_guest_spec: GuestSpec) -> ArchSpec:
    return arch_named(memhp_guest_spec.arch)


@pytest.fixture
def spec(binary: QemuBinary, arch: ArchSpec, memhp_artifacts: Parts, tmp_path: Path) -> MachineSpec:
    kernel = tmp_path / "Image"
    kernel.write_bytes(bytes(4096))
    abilities = probe(binary, arch, Deadline(120))
    assert missing(abilities, needed_devices(["dimm", "virtio-mem"])) is None
    return MachineSpec(
        arch=arch,
        qemu=binary,
        bios=memhp_artifacts.bios,
        kernel=kernel,
        boot="dt",
        memory=256 * MIB,
        maxmem=8 * GIB,
        slots=2,
        nodes=(NodeSpec(256 * MIB, (0,)), NodeSpec(0, (1,))),
        cold_devices=(VirtioMemSpec("cold0", GIB, node=1),),
        paused=True,
        sandbox=abilities.sandbox,
    )


def test_probe_tells_what_every_machine_needs(binary: QemuBinary, arch: ArchSpec) -> None:
    abilities = probe(binary, arch, Deadline(120))
    assert abilities.version[0].isdigit()
    assert needed_devices(kinds_on(arch.name)) - abilities.device_types <= {"virtio-pmem-pci"}


def test_devices_backends_and_ports(spec: MachineSpec, tmp_path: Path) -> None:
    limit = Deadline(120)
    with Machine.launch(spec, tmp_path / "run", limit) as machine:
        schema = machine.qmp.execute("query-qmp-schema", deadline=limit)
        named = {kind: {item["name"] for item in schema if item["meta-type"] == kind} for kind in ("command", "event")}
        assert {"device_add", "query-memory-devices"} <= named["command"]
        assert {"ACPI_DEVICE_OST", "DEVICE_DELETED", "MEMORY_DEVICE_SIZE_CHANGE"} <= named["event"]
        assert 1024 <= machine.ssh_port(limit) <= 65535
        assert set(machine.backend_fds(memdev.memory_devices(machine, deadline=limit), limit)) == {"ram0", "mem-cold0"}
        assert memdev.free_root_port(machine, deadline=limit) == "rp1"
        outcome = memdev.plug(machine, VirtioMemSpec("vm0", GIB, requested=128 * MIB, node=0), deadline=limit)
        assert outcome.kind == "accepted"
        assert memdev.pci_slot(machine, "vm0", deadline=limit) == 2
        cold, hot = memdev.memory_devices(machine, deadline=limit)
        assert (cold.id, cold.node, cold.size) == ("cold0", 1, 0)
        assert (hot.id, hot.node, hot.size, hot.requested_size) == ("vm0", 0, 0, 128 * MIB)
        assert cold.range.end <= hot.range.start
        backend = machine.backend_fds(memdev.memory_devices(machine, deadline=limit), limit)["mem-vm0"]
        before = backend.stat().st_blocks * 512
        with backend.open("r+b") as memory:
            memory.write(b"x" * MIB)
        assert backend.stat().st_blocks * 512 - before == MIB
        with pytest.raises(QmpRefused, match="has to be multiples of 'block-size'"):
            memdev.resize(machine, "vm0", 3 * MIB // 2 + 1, deadline=limit)
        with pytest.raises(QmpRefused, match="cannot exceed"):
            memdev.resize(machine, "vm0", 2 * GIB, deadline=limit)
        with pytest.raises(QmpRefused, match="not enough space"):
            memdev.plug(machine, VirtioMemSpec("vm1", 16 * GIB), deadline=limit)
        assert set(machine.backend_fds(memdev.memory_devices(machine, deadline=limit), limit)) == {
            "ram0",
            "mem-cold0",
            "mem-vm0",
        }
    assert machine.quit(limit) == 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "console.log", "qemu.stderr", "qemu.stdout", "qmp.jsonl",
    ]  # fmt: skip


def test_a_bad_option_is_a_launch_error(spec: MachineSpec, tmp_path: Path) -> None:
    bad = dataclasses.replace(spec, machine_options=("no-such-option=on",))
    with pytest.raises(LaunchError, match=r"(?s)exited with status 1\n.*Property '.*no-such-option' not found"):
        Machine.launch(bad, tmp_path / "run", Deadline(120))


def test_sigkill_of_the_harness_takes_qemu_along(binary: QemuBinary, spec: MachineSpec, tmp_path: Path) -> None:
    script = f"""
        import sys
        from pathlib import Path
        from harness.arch import arch_named
        from harness.config.guest_parts import QemuBinary
        from harness.deadline import Deadline
        from harness.qemu.machine import Machine
        from harness.qemu.machine_spec import MachineSpec
        qemu = QemuBinary(argv={binary.argv!r}, data_dir=None, origin="test", version="")
        arch, kernel = arch_named({spec.arch.name!r}), Path({str(spec.kernel)!r})
        bios = Path({str(spec.bios)!r}) if {spec.bios is not None} else None
        spec = MachineSpec(arch=arch, qemu=qemu, kernel=kernel, bios=bios, boot="dt", paused=True)
        with Machine.launch(spec, Path({str(tmp_path / "run")!r}), Deadline(120)) as machine:
            print(machine.pid, flush=True)
            sys.stdin.read()
    """
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as harness:
        assert harness.stdout is not None
        pidfd = os.pidfd_open(int(harness.stdout.readline()))
        try:
            harness.kill()
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            assert poll.poll(60_000)
        finally:
            os.close(pidfd)
