# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that are plugged at boot, reboots, and steps for one architecture in scenario files."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config.cold import DimmArgs, VirtioMemArgs
from harness.config.guest import GuestSpec
from harness.errors import ConfigError, UsageError
from harness.scenarios.file import Scenario, read_scenario
from harness.scenarios.steps import Repeat
from harness.units import GIB, MIB

HEAD = "name: s\nguest: {memory: 1G, maxmem: 4G, slots: 2}\nsteps:\n"


def read(tmp_path: Path, steps: str, head: str = HEAD) -> Scenario:
    path = tmp_path / "s.yaml"
    path.write_text(head + steps)
    return read_scenario(path)


def cold(devices: str) -> str:
    return f"name: s\nguest:\n  maxmem: 4G\n  slots: 2\n  devices: {devices}\nsteps:\n"


def test_cold_devices_are_there_for_the_steps(tmp_path: Path) -> None:
    head = cold("[{plug-dimm: {id: d, size: 256M}}, {plug-virtio-mem: {id: v, max: 1G, requested: 128M}}]")
    scenario = read(tmp_path, "  - online: {device: d}\n  - resize: {id: v, to: 0}\n  - unplug: {id: v}\n", head)
    assert scenario.needs == ("acpi-dimm", "virtio-mem")
    dimm, vmem = scenario.apply_to(GuestSpec.default("arm64")).devices
    assert (dimm, vmem) == (DimmArgs("d", 256 * MIB), VirtioMemArgs("v", GIB, requested=128 * MIB))
    with pytest.raises(ConfigError, match=r"device id 'd' is used twice"):
        read(tmp_path, "  - plug-dimm: {id: d, size: 1G}\n", head)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("[{plug-dimm: {id: d, size: 8G}}]", r"s\.yaml:5: guest\.devices\.size: 8G does not fit"),
        ("[{plug-pmem: {id: d, size: 1G}}]", r"unknown key 'plug-pmem'"),
        ("[{}]", r"one device has exactly one verb\n  hint: one list item for each device"),
        ("[{plug-dimm: {id: d, size: 1G, address: top}}]", r"where the room ends is not known before the machine is"),
        (
            "[{plug-dimm: {id: d, size: 1G, backing: thp}}]",
            r"devices\[0\]\.plug-dimm\.backing: a device that is there at boot",
        ),
    ],
)
def test_wrong_cold_devices(tmp_path: Path, devices: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, "  - check: {}\n", cold(devices))


def test_a_reboot_keeps_what_is_plugged(tmp_path: Path) -> None:
    steps = "  - plug-dimm: {id: d, size: 1G}\n  - reboot: {}\n  - unplug: {id: d}\n"
    assert [step.title for step in read(tmp_path, steps).steps] == ["plug-dimm d 1G", "reboot", "unplug d"]


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (
            "plug-pmem: {id: p, size: 1G}",
            "the model cannot follow the namespace of 'p' through a boot\n  hint: unplug it first",
        ),
        (
            "plug-dimm: {id: d, size: 1G}\n  - hold: {id: x, device: d}",
            "the pages held as 'x' do not survive a boot\n  hint: release them first",
        ),
        ("load: {id: x, kind: ptdump}", "the load 'x' does not survive a boot\n  hint: unload it first"),
    ],
)
def test_what_a_reboot_must_not_meet(tmp_path: Path, before: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, f"  - {before}\n  - reboot: {{}}\n")
    assert message in str(caught.value)


def test_steps_of_one_architecture(tmp_path: Path) -> None:
    inner = "  - repeat: {times: 2, steps: [{check: {}, only: riscv64}, {check: {}}]}\n"
    scenario = read(tmp_path, "  - check: {}\n    only: arm64\n" + inner)
    arm, riscv = scenario.steps_on("arm64"), scenario.steps_on("riscv64")
    assert [step.verb for step in arm] == ["check", "repeat"] and [step.verb for step in riscv] == ["repeat"]
    assert isinstance(arm[1], Repeat) and isinstance(riscv[0], Repeat)
    assert (len(arm[1].steps), len(riscv[0].steps)) == (1, 2)
    with pytest.raises(ConfigError, match=r"only: 'mips' is not one of arm64, riscv64"):
        read(tmp_path, "  - {check: {}, only: mips}\n")
    pair = "{parallel: [{fill: {leave: 64M}}, {plug-dimm: {id: d, size: 1G}}], only: arm64}"
    with pytest.raises(ConfigError, match=r"parallel steps cannot be limited to an architecture"):
        read(tmp_path, f"  - {pair}\n")


def test_huge_pages_of_the_host_are_a_need(tmp_path: Path) -> None:
    needs = read(tmp_path, "  - plug-dimm: {id: d, size: 1G, backing: hugetlb-2M}\n").needs
    assert needs == ("acpi-dimm", "host-hugetlb-2M")
    with pytest.raises(ConfigError, match=r"backing: '4M' is not one of thp, hugetlb-2M, hugetlb-1G"):
        read(tmp_path, "  - plug-dimm: {id: d, size: 1G, backing: 4M}\n")


def test_a_cold_device_must_fit_the_users_guest(tmp_path: Path) -> None:
    scenario = read(tmp_path, "  - check: {}\n", cold("[{plug-dimm: {id: d, size: 2G}}]"))
    with pytest.raises((ConfigError, UsageError), match=r"2G does not fit"):
        scenario.apply_to(GuestSpec.default("arm64").with_fields({"maxmem": 2 * GIB}))


def test_faults_take_a_device_that_is_devdax_and_leave_it_so(tmp_path: Path) -> None:
    plug = "  - plug-pmem: {id: p, size: 1G}\n"
    dax = "  - namespace: {id: p, mode: devdax}\n"
    fault = "  - {kmem-fault: {id: p, step: 3}, expect: failed}\n"
    scenario = read(tmp_path, plug + dax + fault + fault + "  - kmem: {id: p}\n")
    assert scenario.needs == ("dax-kmem", "fault-injection", "virtio-pmem")
    assert scenario.steps[2].title == "kmem-fault p step=3 slab (failed)"
    own = read(tmp_path, plug + dax + fault.replace("3}", "3, memmap: own}")).steps[2]
    assert own.title == "kmem-fault p step=3 slab own (failed)"
    message = r"'p' is in raw mode here, kmem-fault takes it from devdax\n  hint: the step before it would be namespace"
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, plug + fault)
