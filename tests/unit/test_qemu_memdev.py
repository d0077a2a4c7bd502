# SPDX-License-Identifier: GPL-2.0-or-later
"""Every course that plug, unplug and resize can take, with a scripted QEMU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qemu_peer import Peer, Refuse, machine

from harness.deadline import Deadline
from harness.errors import DeadlineExpired, QemuError, QmpRefused, UsageError
from harness.qemu import memdev
from harness.qemu.devices.device import parse_memory_devices
from harness.qemu.devices.dimm import DimmSpec
from harness.qemu.devices.virtio_mem import VirtioMemSpec
from harness.qemu.devices.virtio_pmem import VirtioPmemSpec
from harness.qemu.machine import Machine
from harness.state import MemoryDevice
from harness.units import GIB, MIB, AddrRange

DIMM = {
    "type": "dimm",
    "data": {
        "id": "dimm0", "addr": 0x80000000, "size": GIB, "slot": 2, "node": 1,
        "memdev": "/objects/mem-dimm0", "hotpluggable": True, "hotplugged": True,
    },
}  # fmt: skip
VMEM = {
    "type": "virtio-mem",
    "data": {
        "id": "vm0", "memaddr": 0x100000000, "requested-size": 512 * MIB, "size": 256 * MIB,
        "max-size": 2 * GIB, "block-size": 2 * MIB, "node": 0, "memdev": "/objects/mem-vm0",
    },
}  # fmt: skip
PMEM = {
    "type": "virtio-pmem",
    "data": {"id": "pm0", "memaddr": 0x200000000, "size": GIB, "memdev": "/objects/mem-pm0"},
}

#: seconds for what goes before a wait that must end without result
SHORT = 3.0


def running(yes: bool) -> Any:
    return lambda peer, arguments: {"running": yes, "status": "running" if yes else "prelaunch"}


def devices(*found: dict[str, Any]) -> Any:
    return lambda peer, arguments: list(found)


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer({"query-memory-devices": devices(DIMM, VMEM), "query-status": running(True)})
    yield made
    made.close()


@pytest.fixture
def guest(peer: Peer, tmp_path: Path) -> Iterator[Machine]:
    made = machine(peer, tmp_path)
    yield made
    made.qmp.close()


def plug(guest: Machine, **options: Any) -> memdev.HotplugOutcome:
    deadline = options.pop("deadline", Deadline(60))
    return memdev.plug(guest, DimmSpec("dimm0", GIB, **options), deadline=deadline)


def unplug(guest: Machine, device: str = "dimm0", seconds: float = 60) -> memdev.HotplugOutcome:
    return memdev.unplug(guest, device, deadline=Deadline(seconds))


def says(*events: tuple[Any, ...]) -> Any:
    """An answer that first sends ``events``: (device, source, status) for an _OST event, (name, data) for any other."""

    def answer(peer: Peer, arguments: dict[str, Any]) -> Any:
        for event in events:
            if len(event) == 2:
                name, data = event
                peer.event(name, **data)
            else:
                device, source, status = event
                peer.ost(device, source, status, slot="2")
        return {}

    return answer


def test_plug_confirmed(guest: Machine, peer: Peer) -> None:
    peer.answers["device_add"] = says(("other", 1, 1), ("dimm0", 3, 1), ("dimm0", 1, 0x80), ("dimm0", 1, 0))
    outcome = plug(guest, node=1, slot=2, address=0x80000000, backend=(("prealloc", True),))
    assert (outcome.kind, outcome.detail, len(outcome.events)) == ("done", "_OST status 0", 4)
    assert peer.commands[1:] == [
        (
            "object-add",
            {"qom-type": "memory-backend-memfd", "id": "mem-dimm0", "size": GIB, "share": True, "prealloc": True},
        ),
        (
            "device_add",
            {"driver": "pc-dimm", "id": "dimm0", "memdev": "mem-dimm0", "node": 1, "slot": 2, "addr": 0x80000000},
        ),
    ]


def test_plug_refused_by_the_guest(guest: Machine, peer: Peer) -> None:
    peer.answers["device_add"] = says(("dimm0", 1, 0x81))
    outcome = plug(guest)
    assert (outcome.kind, outcome.detail) == ("refused", "_OST status 129: device driver load failure")


def test_plug_refused_by_qemu_leaves_nothing(guest: Machine, peer: Peer) -> None:
    def refuse(peer: Peer, arguments: dict[str, Any]) -> Any:
        raise Refuse("slot 2 is busy")

    peer.answers["device_add"] = refuse
    with pytest.raises(QmpRefused, match="QEMU refused device_add: slot 2 is busy"):
        plug(guest)
    assert peer.commands[-1] == ("object-del", {"id": "mem-dimm0"})


def ramblocks(*blocks: str) -> str:
    lines = ["Block Name  PSize  Offset  Used  Total  HVA  RO"]
    lines += [
        f"{block}  4 KiB" + "  0x0000000000000000" * 3 + f"  {number:#018x}  rw" for number, block in enumerate(blocks)
    ]
    return "\r\n".join([*lines, ""])


def test_a_backend_waits_for_the_memory_of_its_namesake(
    guest: Machine, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer.answers["query-memory-devices"] = devices(PMEM)
    peer.answers["device_del"] = says(("DEVICE_DELETED", {"device": "dimm0"}))
    peer.answers["device_add"] = says(("dimm0", 1, 0))
    unplug(guest)
    # The other unnamed block belongs to virtio-pmem.
    lists = [ramblocks("ram0", "", ""), ramblocks("ram0", "", ""), ramblocks("ram0", "")]
    told: list[str] = []

    def answer(peer: Peer, arguments: dict[str, Any]) -> str:
        line = arguments["command-line"]
        told.append(line)
        return lists.pop(0) if line == "info ramblock" else f"Host virtual address for 0x200000000 (mem-pm0) is {1:#x}"

    peer.answers["human-monitor-command"] = answer
    assert plug(guest).kind == "done"
    assert told.count("info ramblock") == 3 and not lists
    # No block has this name, so nothing needs to be waited for.
    memdev.plug(guest, DimmSpec("dimm1", GIB), deadline=Deadline(60), await_guest=False)
    assert told.count("info ramblock") == 3
    lists = [ramblocks("ram0", "", "")] * 100
    monkeypatch.setattr("harness.qemu.machine._FREED_SECONDS", 0.0)
    unplug(guest)
    with pytest.raises(DeadlineExpired, match="QEMU to free the old memory of mem-dimm0; last seen: RAM blocks of no"):
        plug(guest)


def test_plug_that_no_guest_answers(guest: Machine) -> None:
    with pytest.raises(DeadlineExpired, match="the guest's _OST answer to the plug of dimm0") as caught:
        plug(guest, deadline=Deadline(SHORT))
    assert caught.value.hint == "a kernel without CONFIG_ACPI_HOTPLUG_MEMORY never answers"


def test_plug_where_nobody_can_answer(guest: Machine, peer: Peer, tmp_path: Path) -> None:
    peer.answers["query-status"] = running(False)
    assert plug(guest).kind == "accepted"
    other = Peer({"query-status": running(True)})
    quiet = machine(other, tmp_path, boot="dt", firmware=None)
    assert plug(quiet).kind == "accepted"
    quiet.qmp.close()
    other.close()


def test_plug_checks_first(guest: Machine, peer: Peer) -> None:
    with pytest.raises(UsageError, match="pc-dimm dimm0 of 1M is not a positive multiple of 2M"):
        memdev.plug(guest, DimmSpec("dimm0", MIB), deadline=Deadline(60))
    with pytest.raises(UsageError, match="'a b' cannot be a device id"):
        memdev.plug(guest, DimmSpec("a b", GIB), deadline=Deadline(60))
    assert [name for name, _ in peer.commands] == ["query-status", "query-status"]


GONE = ("DEVICE_DELETED", {"device": "dimm0", "path": "/machine/peripheral/dimm0"})


def test_unplug(guest: Machine, peer: Peer) -> None:
    peer.answers["device_del"] = says(("dimm0", 1, 1), ("dimm0", 3, 0x84), GONE, (None, 3, 0))
    outcome = unplug(guest)
    assert (outcome.kind, outcome.detail) == ("deleted", "DEVICE_DELETED, final _OST status 0")
    assert len(outcome.events) == 4
    assert peer.commands[-1] == ("object-del", {"id": "mem-dimm0"})


def test_unplug_without_final_ost(guest: Machine, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memdev, "_FINAL_OST_SECONDS", 0.25)
    peer.answers["device_del"] = says(("dimm0", 3, 0x84), GONE)
    outcome = unplug(guest)
    assert (outcome.kind, outcome.detail) == ("deleted", "DEVICE_DELETED, no final _OST within 0.25 s")


def test_unplug_of_a_pci_device(guest: Machine, peer: Peer) -> None:
    child = ("DEVICE_DELETED", {"path": "/machine/peripheral/vm0/virtio-backend"})
    peer.answers["device_del"] = says(child, ("DEVICE_DELETED", {"device": "vm0", "path": "/machine/peripheral/vm0"}))
    outcome = unplug(guest, "vm0")
    assert (outcome.kind, outcome.detail) == ("deleted", "DEVICE_DELETED")
    assert peer.commands[-1] == ("object-del", {"id": "mem-vm0"})


@pytest.mark.parametrize(
    ("event", "detail"),
    [
        (("dimm0", 3, 0x82), "_OST status 130: device busy"),
        (("dimm0", 3, 0x1), "_OST status 1: non-specific failure"),
        (("dimm0", 0x103, 0x80), "_OST status 128: device ejection not supported"),
        (("dimm0", 3, 0x99), "_OST status 153: a status the ACPI specification does not name"),
        (("MEM_UNPLUG_ERROR", {"device": "dimm0", "msg": "no way"}), "no way"),
        (("DEVICE_UNPLUG_GUEST_ERROR", {"device": "dimm0", "path": "/x"}), "DEVICE_UNPLUG_GUEST_ERROR"),
    ],
)
def test_unplug_refused_by_the_guest(guest: Machine, peer: Peer, event: tuple[Any, ...], detail: str) -> None:
    peer.answers["device_del"] = says(("dimm0", 3, 0x84), event)
    outcome = unplug(guest)
    assert (outcome.kind, outcome.detail, len(outcome.events)) == ("refused", detail, 2)
    assert peer.commands[-1][0] == "device_del"


def test_unplug_that_never_ends(guest: Machine, peer: Peer) -> None:
    peer.answers["device_del"] = says(("dimm0", 3, 0x84))
    with pytest.raises(DeadlineExpired, match="waiting for the end of the unplug of dimm0; last seen: ACPI_DEVICE_OST"):
        unplug(guest, seconds=SHORT)


def test_ejected_by_the_guest(guest: Machine, peer: Peer) -> None:
    mark = guest.qmp.seq
    peer.event("DEVICE_DELETED", path="/machine/peripheral/pm0/virtio-backend")
    peer.event("DEVICE_DELETED", device="pm0", path="/machine/peripheral/pm0")
    outcome = memdev.await_ejected(guest, "pm0", since=mark, deadline=Deadline(60))
    assert (outcome.kind, outcome.detail, len(outcome.events)) == ("deleted", "ejected by the guest", 2)
    assert peer.commands == [("object-del", {"id": "mem-pm0"})]
    with pytest.raises(DeadlineExpired, match="waiting for the guest to eject pm1"):
        memdev.await_ejected(guest, "pm1", since=mark, deadline=Deadline(0.1))


def test_pci_slot(guest: Machine, peer: Peer) -> None:
    peer.answers["qom-get"] = lambda peer, arguments: "/machine/peripheral/rp2/rp2"
    assert memdev.pci_slot(guest, "pm0", deadline=Deadline(60)) == 3
    peer.answers["qom-get"] = lambda peer, arguments: "/machine/unattached/device[3]/pcie.0"
    with pytest.raises(QemuError, match=r"pm0 is on /machine/unattached/device\[3\]/pcie.0, not in a root port"):
        memdev.pci_slot(guest, "pm0", deadline=Deadline(60))

    def refuse(peer: Peer, arguments: dict[str, Any]) -> Any:
        raise Refuse("not found")

    peer.answers["qom-get"] = refuse
    with pytest.raises(QemuError, match="QEMU has no device 'pm0'"):
        memdev.pci_slot(guest, "pm0", deadline=Deadline(60))


def test_resize_and_wait(guest: Machine, peer: Peer) -> None:
    def grow(peer: Peer, arguments: dict[str, Any]) -> Any:
        size = arguments["value"]
        peer.answers["query-memory-devices"] = devices(VMEM | {"data": VMEM["data"] | {"size": size}})  # type: ignore[operator]
        peer.event("MEMORY_DEVICE_SIZE_CHANGE", id="vm0", size=size)
        return {}

    peer.answers["qom-set"] = grow
    memdev.resize(guest, "vm0", GIB, deadline=Deadline(60))
    memdev.wait_size(guest, "vm0", GIB, deadline=Deadline(60))
    assert peer.commands[0] == (
        "qom-set",
        {"path": "/machine/peripheral/vm0", "property": "requested-size", "value": GIB},
    )


@pytest.mark.parametrize(("waited", "pause"), [(0.0, 0.002), (0.032, 0.002), (0.16, 0.01), (0.8, 0.05), (60.0, 0.05)])
def test_a_wait_for_a_size_gets_little_longer_by_its_pauses(waited: float, pause: float) -> None:
    assert memdev.size_pause(waited) == pause


def test_wait_size_that_never_comes(guest: Machine) -> None:
    with pytest.raises(DeadlineExpired, match="virtio-mem vm0 to have 512M plugged; last seen: 256M plugged"):
        memdev.wait_size(guest, "vm0", 512 * MIB, deadline=Deadline(SHORT))
    with pytest.raises(QemuError, match="QEMU has no memory device 'vm9'"):
        memdev.wait_size(guest, "vm9", 0, deadline=Deadline(60))


def test_virtio_devices_take_the_first_free_port(guest: Machine, peer: Peer) -> None:
    taken = {"/machine/peripheral/rp0/rp0"}

    def ports(peer: Peer, arguments: dict[str, Any]) -> Any:
        return [{"name": "child[0]" if arguments["path"] in taken else "hotplug-handler", "type": "x"}]

    peer.answers["qom-list"] = ports
    outcome = memdev.plug(guest, VirtioMemSpec("vm1", GIB, requested=128 * MIB), deadline=Deadline(60))
    assert (outcome.kind, outcome.detail) == ("accepted", "plugged into rp1")
    device = {"driver": "virtio-mem-pci", "id": "vm1", "memdev": "mem-vm1", "requested-size": 128 * MIB, "bus": "rp1"}
    assert peer.commands[-1] == ("device_add", device)
    memdev.plug(guest, VirtioPmemSpec("pm1", GIB, GIB, port="rp3"), deadline=Deadline(60))
    device = {"driver": "virtio-pmem-pci", "id": "pm1", "memdev": "mem-pm1", "memaddr": GIB, "bus": "rp3"}
    assert peer.commands[-1] == ("device_add", device)
    taken |= {f"/machine/peripheral/rp{number}/rp{number}" for number in range(4)}
    with pytest.raises(UsageError, match="all 4 root ports are in use"):
        memdev.plug(guest, VirtioPmemSpec("pm2", GIB), deadline=Deadline(60))


def test_parse_memory_devices() -> None:
    assert parse_memory_devices([PMEM, VMEM, DIMM]) == (
        MemoryDevice(
            "dimm0", "dimm", AddrRange.sized(0x80000000, GIB), GIB, GIB, None, None, 1, 2, "mem-dimm0"
        ),
        MemoryDevice(
            "vm0", "virtio-mem", AddrRange.sized(0x100000000, 2 * GIB), 256 * MIB, 2 * GIB, 512 * MIB, 2 * MIB, 0,
            None, "mem-vm0",
        ),
        MemoryDevice(
            "pm0", "virtio-pmem", AddrRange.sized(0x200000000, GIB), GIB, GIB, None, None, None, None, "mem-pm0"
        ),
    )  # fmt: skip
    with pytest.raises(QemuError, match="unknown kind 'sgx-epc'"):
        parse_memory_devices([{"type": "sgx-epc", "data": {}}])
    with pytest.raises(QemuError, match="list of memory devices has an unknown format"):
        parse_memory_devices([{"type": "dimm", "data": {}}])
