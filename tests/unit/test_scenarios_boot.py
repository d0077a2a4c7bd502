# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest descriptions to machines."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from harness.arch import ARM64
from harness.config.guest import GuestSpec, NodeConfig
from harness.config.guest_parts import Firmware, GuestRoot, KernelImage, QemuBinary
from harness.errors import UnsupportedError, UsageError
from harness.progress import SilentProgress
from harness.qemu.devices.device import kinds_on
from harness.qemu.devices.dimm import DimmSpec
from harness.qemu.probe import QemuAbilities
from harness.scenarios import boot
from harness.scenarios.boot import Parts, command_line_of_kernel, cpu_shares, machine_shape, machine_spec
from harness.scenarios.requirements import device_kinds, require_boot, require_config, requirement
from harness.units import GIB, MIB

PARTS = Parts(
    qemu=QemuBinary(("qemu",), None, "test", "10.0"),
    firmware=Firmware(Path("code"), Path("vars")),
    kernel=KernelImage(Path("Image"), "test", None, None, None),
    root=GuestRoot(Path("root")),
)


def test_a_guest_becomes_a_machine_and_its_shape() -> None:
    guest = GuestSpec.default("arm64").with_fields({"cmdline": "rodata=full", "memory": 2 * GIB})
    machine = machine_spec(guest, PARTS, Path("initrd"))
    assert machine.cmdline.startswith("console=ttyAMA0 ") and machine.cmdline.endswith(" rodata=full")
    shape = machine_shape(machine)
    assert (shape.arch, shape.memory, shape.max_memory, shape.slots) == (ARM64, 2 * GIB, 16 * GIB, 8)
    assert shape.ports == ("rp0", "rp1", "rp2", "rp3")
    assert str(shape.device_window()) == "c0000000-63fffffff"


def test_the_options_of_a_device_are_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    given = GuestSpec.default("arm64").with_fields({"machine_options": ("nvdimm=off",)})
    parts = dataclasses.replace(PARTS, machine_options=("nvdimm=on",))
    # The user's come last, and win.
    assert machine_spec(given, parts, Path("initrd")).machine_options == ("nvdimm=on", "nvdimm=off")
    found = dict.fromkeys(("kernel_of", "find_qemu", "firmware", "guest_root", "bios"), PARTS.kernel)
    for name, part in found.items():
        monkeypatch.setattr(boot, name, lambda *_, part=part, **__: part)
    monkeypatch.setattr(boot.probe, "probe", lambda *_: QemuAbilities("10", frozenset(), None, False))
    monkeypatch.setattr(DimmSpec, "machine_options", ("x=on",))
    for needs, options in ((("virtio-mem",), ()), (("dax-kmem", "acpi-dimm", "virtio-mem"), ("x=on",))):
        assert boot.resolve(GuestSpec.default("arm64"), needs, SilentProgress()).machine_options == options
    everything = boot.resolve(GuestSpec.default("arm64"), (), SilentProgress(), kinds=kinds_on("arm64"))
    assert everything.machine_options == ("x=on",)


def test_nodes_share_the_cpus() -> None:
    nodes = (NodeConfig(512 * MIB), NodeConfig(512 * MIB))
    machine = machine_spec(GuestSpec.default("arm64").with_fields({"nodes": nodes}), PARTS, Path("initrd"))
    assert [(node.memory, node.cpus) for node in machine.nodes] == [(512 * MIB, (0,)), (512 * MIB, (1,))]
    assert machine_shape(machine).node_memory == (512 * MIB, 512 * MIB)


@pytest.mark.parametrize(
    ("cpus", "nodes", "shares"),
    [(2, 0, ()), (3, 2, ((0, 1), (2,))), (4, 1, ((0, 1, 2, 3),)), (1, 3, ((0,), (), ()))],
)
def test_cpu_shares(cpus: int, nodes: int, shares: tuple[tuple[int, ...], ...]) -> None:
    assert cpu_shares(cpus, nodes) == shares


def test_abilities_name_what_is_missing() -> None:
    config = {"ACPI_HOTPLUG_MEMORY": "y", "VIRTIO_MEM": "m", "MEMORY_HOTREMOVE": "y"}
    require_config(("acpi-dimm", "virtio-mem"), config, "the kernel")
    require_config(("virtio-pmem",), None, "a kernel that does not tell")
    with pytest.raises(UnsupportedError, match=r"mine has no CONFIG_VIRTIO_PMEM, CONFIG_BLK_DEV_PMEM, .* needs"):
        require_config(("virtio-pmem",), config, "mine")
    assert device_kinds(("acpi-dimm", "dax-kmem")) == {"dimm"}


def test_a_dimm_needs_acpi() -> None:
    require_boot(("virtio-mem",), "dt")
    with pytest.raises(UnsupportedError, match="needs a guest that boots by acpi, this one boots by dt"):
        require_boot(("acpi-dimm",), "dt")
    with pytest.raises(UnsupportedError, match=r"memory on a chosen node \(node=\) needs a guest that boots"):
        require_boot(("acpi-node",), "dt")


def test_an_unknown_ability_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="unknown requirement 'teleport'"):
        requirement("teleport")


def test_persistent_memory_needs_struct_pages() -> None:
    debian_6_1 = {"VIRTIO_PMEM": "m", "BLK_DEV_PMEM": "m", "DEV_DAX_KMEM": "m"}
    with pytest.raises(UnsupportedError, match=r"mine has no CONFIG_ZONE_DEVICE, which virtio-pmem namespaces need"):
        require_config(("virtio-pmem",), debian_6_1, "mine")
    require_config(("virtio-pmem",), {**debian_6_1, "ZONE_DEVICE": "y"}, "mine")


def test_hot_plug_ports_stay_awake_unless_the_user_says_otherwise() -> None:
    spec = GuestSpec.default("arm64")
    assert "pcie_port_pm=off" in command_line_of_kernel(spec).split()
    forced = command_line_of_kernel(spec.with_fields({"cmdline": "quiet pcie_port_pm=force"})).split()
    assert [word for word in forced if word.startswith("pcie_port_pm=")] == ["pcie_port_pm=force"]
