# SPDX-License-Identifier: GPL-2.0-or-later
"""What the agent does: the program itself over real SSH, on plain files instead of sysfs."""

from __future__ import annotations

import re
import shutil
import socket
import threading

import pytest
from agent_world import World, needs_cc

from harness.deadline import Deadline
from harness.errors import DeadlineExpired, GuestError, UnsupportedError, UsageError
from harness.guest import drivers, loads, memory_blocks, namespaces
from harness.guest.drivers import wait_work
from harness.guest.kernel_files import Content, read_files, write_files
from harness.guest.memory_blocks import BlockOutcome, set_blocks, valid_zones, wait_blocks
from harness.guest.namespaces import PmemOutcome
from harness.guest.ssh import GuestShell


@needs_cc
def test_blocks(shell: GuestShell, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add_block(8, "offline", "Normal Movable")
    world.add_block(9, "online", "Movable")
    limit = Deadline(60)
    assert valid_zones(shell, [8, 9, 10], deadline=limit) == {8: ("Normal", "Movable"), 9: ("Movable",), 10: ()}
    written, missing = set_blocks(shell, [8, 10], "online_movable", deadline=limit)
    assert (written, missing) == (BlockOutcome(8, True, None, written.seconds), BlockOutcome(10, False, "ENOENT", 0.0))
    assert written.seconds is not None and 0.0 < written.seconds < 60.0
    assert (world.blocks / "memory8" / "state").read_text() == "online_movable\n"
    set_blocks(shell, [8], "online", deadline=limit, patience=3)
    wait_blocks(shell, present=[9], absent=[10], states={8: "online", 9: "online"}, deadline=limit)
    # The agent has no time to wait, but enough to answer.
    monkeypatch.setattr(memory_blocks, "_REPORT_SECONDS", 60.0)
    with pytest.raises(DeadlineExpired) as late:
        wait_blocks(shell, absent=[9], present=[11], states={8: "offline", 10: "online"}, deadline=Deadline(60))
    said = late.value.message
    assert "memory11 present, memory9 absent, memory8 offline, memory10 online" in said
    assert "memory11 absent, memory9 present, memory8 online, memory10 absent" in said


@needs_cc
def test_many_blocks(shell: GuestShell, world: World) -> None:
    numbers = range(10_000, 30_000)
    assert set(valid_zones(shell, numbers, deadline=Deadline(60))) == set(numbers)


@needs_cc
def test_a_kernel_without_blocks(shell: GuestShell, world: World) -> None:
    world.blocks.rmdir()
    with pytest.raises(GuestError, match=r"blocks script failed \(status 2\): blocks: can't find .*/memory"):
        valid_zones(shell, [8], deadline=Deadline(60))


@needs_cc
def test_work(shell: GuestShell, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add_process(1, "init+queue")
    world.add_process(20, "kworker/0:0-queue")
    world.add_process(21, "kworker/0:1+queue_other")
    world.add_process(22, "kworker/0:2+other_queue")
    wait_work(shell, "queue", deadline=Deadline(60))
    first, second = world.add_process(23, "kworker/0:3+queue"), world.add_process(3, "kworker/u4:1+queue")
    with (
        monkeypatch.context() as at_once,
        pytest.raises(
            DeadlineExpired,
            match=r"workqueue queue to finish its work; last seen: kworker/0:3\+queue kworker/u4:1\+queue",
        ),
    ):
        at_once.setattr(drivers, "_REPORT_SECONDS", 60.0)
        wait_work(shell, "queue", deadline=Deadline(60))
    first.unlink()
    # A task's name changes at once: a file that is truncated first would show none.
    renamed = second.with_name("comm.new")
    renamed.write_text("kworker/u4:1-queue\n")
    threading.Timer(0.5, renamed.replace, [second]).start()
    wait_work(shell, "queue", deadline=Deadline(60))
    assert second.read_text() == "kworker/u4:1-queue\n"


@needs_cc
def test_files(shell: GuestShell, world: World) -> None:
    block = world.add_block(8, "offline", "Normal")
    (block / "node0").symlink_to("../node0")
    (block / "odd").write_bytes(b"no end\nfile 3 /a\x00")
    written = write_files(
        shell, [(str(block / "state"), "online now"), (str(block / "none"), "1")], deadline=Deadline(60)
    )
    assert [result.error for result in written] == [None, "ENOENT"]
    files = [f"{block}/*[od]*d*", f"{block}/v*", str(block / "none"), f"{block}/x*", str(block)]
    assert read_files(shell, files, deadline=Deadline(60)) == {
        str(block / "node0"): Content(b"", "ENOENT"),
        str(block / "odd"): Content(b"no end\nfile 3 /a\x00"),
        str(block / "valid_zones"): Content(b"Normal\n"),
        str(block / "none"): Content(b"", "ENOENT"),
        f"{block}/x*": Content(b"", "ENOENT"),
        str(block): Content(b"", "EISDIR"),
    }
    links = read_files(shell, [str(block / "node0"), str(block / "odd")], links=True, deadline=Deadline(60))
    assert links == {str(block / "node0"): Content(b"../node0"), str(block / "odd"): Content(b"", "EINVAL")}
    assert (block / "state").read_text() == "online now\n"
    endless = read_files(shell, ["/dev/zero"], deadline=Deadline(60))
    assert endless == {"/dev/zero": Content(b"", "EFBIG")}


@needs_cc
def test_drivers(shell: GuestShell, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    device = world.add_device("virtio", "virtio3", "virtio_mem", status="0x0000000b")
    threading.Timer(0.5, (device / "status").write_text, ["0x0000000f\n"]).start()
    drivers.wait_driver(shell, "virtio", "virtio3", "virtio_mem", deadline=Deadline(60))
    assert (device / "status").read_text() == "0x0000000f\n"
    world.add_device("nd", "namespace0.0", "nd_pmem", holder="")
    drivers.wait_driver(shell, "nd", "namespace0.0", "nd_pmem", deadline=Deadline(60))
    world.add_device("nd", "namespace1.0")
    monkeypatch.setattr(drivers, "_REPORT_SECONDS", 60.0)
    for name, driver, seen in (
        ("namespace0.0", "dax_pmem", "namespace0.0 with nd_pmem"),
        ("namespace1.0", "nd_pmem", "namespace1.0 with no driver"),
        ("namespace2.0", "nd_pmem", "no namespace2.0"),
    ):
        with pytest.raises(DeadlineExpired, match=f"{driver} to bind to {name} in the guest; last seen: {seen}"):
            drivers.wait_driver(shell, "nd", name, driver, deadline=Deadline(60))


def config_space(number: int, *, port: bool = True) -> bytes:
    """Of a root port: a chain of two capabilities, the second one is PCI Express with this slot's number."""
    space = bytearray(256)
    space[0x06] = 0x10
    space[0x34] = 0x40
    space[0x40:0x42] = bytes((0x05, 0x80))
    space[0x80:0x82] = bytes((0x10 if port else 0x11, 0x40))
    space[0x94:0x98] = (number << 19 | 0x7F).to_bytes(4, "little")
    space[0x98:0x9A] = (0x07C1).to_bytes(2, "little")
    return bytes(space)


@needs_cc
def test_slots(shell: GuestShell, world: World) -> None:
    slot = world.bus / "pci" / "slots" / "4"
    slot.mkdir(parents=True)
    (slot / "power").touch()
    drivers.switch_slot(shell, 4, True, deadline=Deadline(60))
    assert (slot / "power").read_text() == "1\n"
    drivers.switch_slot(shell, 4, False, deadline=Deadline(60))
    assert (slot / "power").read_text() == "0\n"
    for name, kind, space in (
        ("0000:00:01.0", "0x020000", config_space(5)),
        # Its capabilities form a circle.
        ("0000:00:02.0", "0x060400", config_space(5, port=False)),
        ("0000:00:03.0", "0x060400", config_space(6)),
        ("0000:00:04.0", "0x060400", config_space(5)),
        ("0000:00:05.0", "0x060400", b""),
    ):
        (world.add_device("pci", name, rescan="") / "config").write_bytes(space)
        (world.bus / "pci" / "devices" / name / "class").write_text(f"{kind}\n")
    port = world.bus / "pci" / "devices" / "0000:00:04.0"
    child = port / "0000:01:00.0"
    child.mkdir()
    (child / "remove").touch()
    drivers.switch_slot(shell, 5, True, deadline=Deadline(60))
    assert (port / "config").read_bytes()[0x98:0x9A] == (0x01C1).to_bytes(2, "little")
    assert (port / "rescan").read_text() == "1\n" and (child / "remove").read_text() == ""
    drivers.switch_slot(shell, 5, False, deadline=Deadline(60))
    assert (port / "config").read_bytes()[0x98:0x9A] == (0x07C1).to_bytes(2, "little")
    assert (child / "remove").read_text() == "1\n"
    with pytest.raises(GuestError, match=r"slot script failed \(status 1\): slot 7: no root port has this slot"):
        drivers.switch_slot(shell, 7, True, deadline=Deadline(60))


@needs_cc
def test_persistent_memory(shell: GuestShell, world: World) -> None:
    limit = Deadline(60)
    for driver in ("dax_pmem", "nd_pmem"):
        world.add_driver("nd", driver)
    for driver in ("device_dax", "kmem"):
        world.add_driver("dax", driver, "new_id", "remove_id")
    world.add_device("nd", "region0", dax_seed="dax0.1")
    seed = world.add_device("nd", "dax0.1", mode="", align="", uuid="", namespace="")
    pfn = world.add_device("nd", "pfn0.0", "nd_pmem", namespace="namespace0.0")
    world.add_device("nd", "namespace0.0", size="4194304", mode="memory", holder="pfn0.0", resource="0x140000000")
    world.add_device("nd", "namespace0.1", size="0")
    assert shell.run("/usr/lib/memhp/pmem list", deadline=limit).text == (
        "namespace0.0 region0 memory 4194304 0x140000000 pfn0.0\n"
    )
    made = namespaces.create_devdax(shell, "namespace0.0", map="dev", deadline=limit)
    assert made == PmemOutcome(False, "dax0.0 is not bound to device_dax (driver: none)")
    assert (pfn / "namespace").read_text() == "\n"
    assert [(seed / name).read_text() for name in ("mode", "align", "namespace")] == [
        "pmem\n",
        "2097152\n",
        "namespace0.0\n",
    ]
    assert re.fullmatch(r"[0-9a-f-]{36}\n", (seed / "uuid").read_text())
    drivers_nd, drivers_dax = world.bus / "nd" / "drivers", world.bus / "dax" / "drivers"
    assert (drivers_nd / "nd_pmem" / "unbind").read_text() == "pfn0.0\n"
    assert (drivers_nd / "dax_pmem" / "bind").read_text() == "dax0.1\n"
    dax = world.add_device("dax", "dax0.0", "device_dax", resource="0x140000000", size="268435456")
    assert namespaces.create_devdax(shell, "namespace0.0", deadline=limit) == PmemOutcome(True, "dax0.0")
    refused = namespaces.to_system_ram(shell, "dax0.0", deadline=limit)
    assert refused == PmemOutcome(False, "kmem did not bind dax0.0: see the kernel log")
    assert [(drivers_dax / "kmem" / name).read_text() for name in ("new_id", "remove_id")] == ["dax0.0\n"] * 2
    (dax / "driver").unlink()
    (dax / "driver").symlink_to(drivers_dax / "kmem")
    assert namespaces.to_system_ram(shell, "dax0.0", deadline=limit) == PmemOutcome(
        False, "dax0.0 is system RAM already"
    )
    said = namespaces.destroy(shell, "namespace0.0", deadline=limit)
    assert said == PmemOutcome(False, "dax0.0 is in use as system RAM")
    (world.blocks / "block_size_bytes").write_text("8000000\n")
    block = world.add_block(0x140000000 // (1 << 27) + 1, "online", "Movable")
    assert namespaces.to_devdax(shell, "dax0.0", deadline=limit) == PmemOutcome(False, f"{block.name} is online")
    (block / "state").write_text("offline\n")
    kept = namespaces.to_devdax(shell, "dax0.0", deadline=limit)
    assert kept == PmemOutcome(False, f"the kernel kept memory blocks: {block.name.removeprefix('memory')}")
    shutil.rmtree(block)
    assert namespaces.to_devdax(shell, "dax0.0", deadline=limit) == PmemOutcome(True, "dax0.0")
    with pytest.raises(UnsupportedError, match=r"this kernel has no dax0\.0/state"):
        namespaces.set_state(shell, "dax0.0", "unplugged", deadline=limit)
    (dax / "state").touch()
    assert namespaces.set_state(shell, "dax0.0", "online", patience=60, deadline=limit).text == "dax0.0 online"
    with pytest.raises(GuestError, match=r"the guest has no dax9\.0"):
        namespaces.to_devdax(shell, "dax9.0", deadline=limit)
    shutil.rmtree(drivers_dax / "device_dax")
    with pytest.raises(GuestError, match="the guest's kernel has no driver device_dax"):
        namespaces.to_devdax(shell, "dax0.0", deadline=limit)


@needs_cc
def test_loads(shell: GuestShell, world: World) -> None:
    assert loads.pause_loads(shell, deadline=Deadline(60)) == {}
    with pytest.raises(UsageError, match="the guest has no load 'a'"):
        loads.stop_load(shell, "a", deadline=Deadline(60))
    world.loads.mkdir()
    # A keeper was there, and is gone.
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        left.bind(str(world.loads / "a"))
    counts = loads.resume_loads(shell, deadline=Deadline(60))
    assert counts == {"a": loads.LoadCount(0, 0, False, "its keeper is gone")}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as keeper:
        keeper.bind(str(world.loads / "b"))
        keeper.listen()

        def answer() -> None:
            with keeper.accept()[0] as client:
                assert client.recv(100) == b"pause"
                client.send(b"7 1 resting a reason")

        thread = threading.Thread(target=answer)
        thread.start()
        counts = loads.pause_loads(shell, deadline=Deadline(60))
        thread.join(60)
    assert counts["b"] == loads.LoadCount(7, 1, True, "a reason") and set(counts) == {"a", "b"}
