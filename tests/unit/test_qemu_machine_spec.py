# SPDX-License-Identifier: GPL-2.0-or-later
"""Invalid machines and their error messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from qemu_peer import spec

from harness.errors import UsageError
from harness.qemu.devices.device import KINDS, DeviceSpec
from harness.qemu.machine_spec import NodeSpec
from harness.units import GIB, KIB, MIB


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory": 1000 * KIB}, "boot memory of 1000K is not a positive multiple of 2M"),
        ({"memory": 0}, "boot memory of 0 is not a positive multiple of 2M"),
        ({"maxmem": GIB // 2}, "maxmem 512M is below the boot memory 1G"),
        ({"maxmem": GIB + 1}, "maxmem of 1073741825 is not a positive multiple of 2M"),
        ({"maxmem": None}, "4 memory slots without maxmem"),
        ({"slots": 0}, "maxmem 8G over 1G of boot memory with 0 slots"),
        ({"maxmem": GIB}, "maxmem 1G over 1G of boot memory with 4 slots"),
        ({"slots": 257}, "invalid slot count: 257"),
        ({"cpus": 0}, "invalid CPU count: 0"),
        ({"cpus": 513}, "invalid CPU count: 513"),
        ({"root_ports": 25}, "invalid root port count: 25"),
        ({"boot": "bios"}, "unknown boot method: 'bios'"),
        ({"firmware": None}, "an ACPI boot needs firmware"),
        ({"boot": "dt"}, "takes no firmware"),
        ({"cmdline": "a\nb"}, "contains a newline or a NUL"),
        ({"nodes": (NodeSpec(GIB // 2, (0, 1)),)}, "the NUMA nodes hold 512M, the machine 1G"),
        ({"nodes": (NodeSpec(GIB, (0,)),)}, "CPU 1 is in no NUMA node"),
        ({"nodes": (NodeSpec(GIB, (0, 2)),)}, "node 0 has CPU 2, the machine has CPUs 0 to 1"),
        ({"nodes": (NodeSpec(GIB, (0, 1)), NodeSpec(0, (1,)))}, "CPU 1 is in two NUMA nodes"),
        ({"nodes": (NodeSpec(GIB - MIB, (0, 1)), NodeSpec(MIB))}, "memory of node 0 of 1023M is not"),
        ({"backend": (("share", "off"),)}, "backend option 'share' of boot RAM is set by the harness"),
    ],
)
def test_impossible_machines(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        spec(**changes)
    assert message in caught.value.message


def device(kind: str, **changes: Any) -> DeviceSpec:
    return KINDS[kind](**({"id": "dimm0", "size": GIB} | changes))


def dimm(**changes: Any) -> DeviceSpec:
    return device("dimm", **changes)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ([dimm(id="0x")], "'0x' cannot be a device id"),
        ([dimm(id="a,b")], "'a,b' cannot be a device id"),
        ([dimm(id="rp0")], "device id 'rp0' is taken by the machine itself"),
        ([dimm(), dimm()], "device id 'dimm0' is used twice"),
        ([dimm(size=MIB)], "dimm dimm0 of 1M is not a positive multiple of 2M"),
        ([dimm(size=8 * GIB)], "boot memory and devices need 9G, the machine has room for 8G"),
        ([dimm(id=f"d{n}", size=2 * MIB) for n in range(5)], "5 DIMMs need 5 slots, the machine has 4"),
        ([dimm(slot=4)], "dimm dimm0 is in slot 4, the machine has 4 slots"),
        ([dimm(node=1)], "dimm dimm0 is on node 1, which the machine lacks"),
        ([device("virtio-mem", requested=2 * GIB)], "virtio-mem dimm0 requests 2G of 1G"),
        ([device("virtio-pmem", id=f"p{n}") for n in range(5)], "5 virtio devices need 5 root ports"),
        ([dimm(backend=(("size", "1"),))], "backend option 'size' of dimm0 is set by the harness"),
    ],
)
def test_impossible_devices(devices: list[DeviceSpec], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        spec(cold_devices=tuple(devices))
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("kind", "what"), [("dimm", {"requested": GIB}), ("virtio-mem", {"slot": 1}), ("virtio-pmem", {"node": 0})]
)
def test_what_a_kind_of_device_has_not_cannot_be_said_of_it(kind: str, what: dict[str, int]) -> None:
    with pytest.raises(TypeError, match=next(iter(what))):
        device(kind, **what)


def test_files_and_backends() -> None:
    machine = spec(initrd=Path("/k/initrd"))
    assert [role for role, _ in machine.files] == ["kernel", "initrd", "firmware code", "firmware variables"]
    assert machine.boot_backends == ("ram0",)
    assert spec(boot="dt", firmware=None).files == (("kernel", Path("/k/Image")),)
    nodes = (NodeSpec(GIB // 2, (0,)), NodeSpec(0), NodeSpec(GIB // 2, (1,)))
    assert spec(nodes=nodes).boot_backends == ("ram0", "ram2")


def test_no_room_for_devices_is_a_machine_too() -> None:
    assert spec(maxmem=None, slots=0).slots == 0
    assert spec(maxmem=GIB, slots=0).maxmem == GIB


@pytest.mark.parametrize("name", ["dimm0", "vm-1", "a.b_c", "D"])
def test_good_ids(name: str) -> None:
    dimm(id=name).check()
