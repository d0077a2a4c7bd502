# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent: the program itself over real SSH, on plain files instead of sysfs; and agents that misbehave."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_peer import SshPeer

from harness.collect.sources import parse_frames
from harness.config.places import guest_scripts_dir
from harness.deadline import Deadline
from harness.errors import DeadlineExpired, GuestError
from harness.guest import drivers, memory_blocks
from harness.guest import ssh as guest_shell
from harness.guest.agent import agent_request
from harness.guest.drivers import wait_work
from harness.guest.identity import Identity
from harness.guest.memory_blocks import BlockOutcome, set_blocks, valid_zones, wait_blocks
from harness.guest.ssh import GuestShell

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
ASK = "/usr/lib/memhp/collect B ptdump"
KEPT = 65536


@pytest.fixture(scope="module")
def identity() -> Identity:
    return Identity.fresh()


@pytest.fixture
def shell(identity: Identity) -> Iterator[GuestShell]:
    with SshPeer(identity) as peer, GuestShell.connect(peer.port, identity, Deadline(60)) as shell:
        yield shell


class World:
    """Plain files and folders in place of sysfs, debugfs and /proc, and an agent compiled to use them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blocks = root / "memory"
        self.dump = root / "kernel_page_tables"
        self.blocks.mkdir()
        self.program = root / "agent"
        self.proc = root / "proc"
        places = {"RUN": root / "run", "BLOCKS": self.blocks, "DUMP": self.dump, "PROC": self.proc}
        source = guest_scripts_dir() / "agent.c"
        defines = [f'-D{name}="{path}"' for name, path in places.items()]
        flags = ["-std=gnu11", "-g", "-pthread", "-fsanitize=address,undefined", "-Wall", "-Wextra", "-Werror"]
        subprocess.run(["cc", *flags, *defines, "-o", str(self.program), str(source)], check=True)

    def add_block(self, number: int, state: str, zones: str) -> Path:
        block = self.blocks / f"memory{number}"
        block.mkdir()
        (block / "state").write_text(f"{state}\n")
        (block / "valid_zones").write_text(f"{zones}\n")
        return block

    def add_process(self, number: int, name: str) -> Path:
        comm = self.proc / str(number) / "comm"
        comm.parent.mkdir(parents=True)
        comm.write_text(f"{name}\n")
        return comm


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    monkeypatch.setattr(guest_shell, "START", f"exec {world.program}")
    return world


@pytest.mark.parametrize(
    ("command", "request_"),
    [
        ("/usr/lib/memhp/collect c0ffee boot_id uptime", "collect c0ffee boot_id uptime"),
        ("/usr/lib/memhp/blocks set online_movable 5", "blocks set online_movable 5"),
        ("/usr/lib/memhp/wait-work events_freezable 5", "wait-work events_freezable 5"),
        ("/usr/lib/memhp/blocks", None),
        ("/usr/lib/memhp/blocks zones; reboot", None),
        ("/usr/lib/memhp/blocks zones\n0 blocks zones", None),
        ("/usr/lib/memhp/blocks  zones", None),
        ("/usr/lib/memhp/pmem list", None),
        ("sh /usr/lib/memhp/blocks zones", None),
        ("true", None),
    ],
)
def test_what_the_agent_is_asked_for(command: str, request_: str | None) -> None:
    assert agent_request(command) == request_


@needs_cc
def test_blocks(shell: GuestShell, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add_block(8, "offline", "Normal Movable")
    world.add_block(9, "online", "Movable")
    limit = Deadline(60)
    assert valid_zones(shell, [8, 9, 10], deadline=limit) == {8: ("Normal", "Movable"), 9: ("Movable",), 10: ()}
    done = set_blocks(shell, [8, 10], "online_movable", deadline=limit)
    assert done == (BlockOutcome(8, True), BlockOutcome(10, False, "ENOENT"))
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


def pid_of(world: World) -> int:
    found = subprocess.run(["pidof", str(world.program)], capture_output=True, text=True, check=True).stdout
    return int(found)


def holds_dump(world: World) -> bool:
    folder = Path(f"/proc/{pid_of(world)}/fd")
    return str(world.dump) in {str(link.readlink()) for link in folder.iterdir() if link.is_symlink()}


@needs_cc
def test_the_dump_stays_open_but_for_a_buffer_in_memory_that_was_added(shell: GuestShell, world: World) -> None:
    def look(size: int) -> None:
        text = b"x" * (size - 1) + b"\n"
        world.dump.write_bytes(text)
        frames = parse_frames(shell.run(ASK, deadline=Deadline(60)).stdout, "B")
        assert (frames["ptdump"].status, frames["ptdump"].data) == ("ok", text)

    world.add_block(0, "online", "Normal")
    look(30_000)
    first = pid_of(world)
    assert holds_dump(world)
    added = world.add_block(8, "offline", "Normal")
    # The kernel's buffer of 32 KB is large enough, and it was allocated before the block was added.
    look(32_767)
    assert holds_dump(world)
    look(32_768)
    assert not holds_dump(world)
    look(100)
    assert not holds_dump(world)
    shutil.rmtree(added)
    look(300_000)
    assert holds_dump(world)
    look(200)
    assert holds_dump(world) and pid_of(world) == first


@needs_cc
def test_sources(shell: GuestShell, world: World) -> None:
    done = shell.run("/usr/lib/memhp/collect B ptdump uptime", deadline=Deadline(60))
    frames = parse_frames(done.stdout, "B")
    assert frames["ptdump"].status == "missing" and frames["uptime"].data.count(b".") == 2
    done = shell.run("/usr/lib/memhp/collect B uptime nonsense", deadline=Deadline(60))
    assert (done.status, done.stderr) == (2, b"collect: no source nonsense\n")
    # The agent still serves requests.
    assert parse_frames(shell.run(ASK, deadline=Deadline(60)).stdout, "B").keys() == {"ptdump"}


@needs_cc
def test_one_that_ended_meanwhile_is_started_again(shell: GuestShell, world: World) -> None:
    shell.run(ASK, deadline=Deadline(60))
    first = pid_of(world)
    agent = shell._agent
    assert agent is not None
    os.kill(first, signal.SIGKILL)
    assert agent.channel.status_event.wait(60)
    shell.run(ASK, deadline=Deadline(60))
    assert pid_of(world) != first


@needs_cc
def test_it_ends_with_the_connection(shell: GuestShell, world: World) -> None:
    shell.run(ASK, deadline=Deadline(60))
    process = os.pidfd_open(pid_of(world))
    try:
        shell.close()
        assert select.select([process], [], [], 60)[0], "the agent is still running"
    finally:
        os.close(process)


def agent_that(does: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_shell, "START", does)


def test_a_guest_root_without_it(shell: GuestShell) -> None:
    # This machine has neither the agent nor the script.
    assert shell.run(ASK, deadline=Deadline(60)).status == 127
    assert not shell._has_agent


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("echo hello", "the guest agent sent an invalid line: 'hello'"),
        ("echo ready; read -r line; echo nonsense", "the guest agent sent an invalid line: 'nonsense'"),
        ("echo ready; read -r line; echo +12x", r"the guest agent sent an invalid line: '\+12x'"),
        ("echo ready; read -r line; echo; echo =0", "the guest agent sent an invalid line: ''"),
        ("echo ready; read -r line; echo '?4'", r"the guest agent sent an invalid line: '\?4'"),
        ("echo ready; read -r line; echo oops >&2; sleep 0.1", "exited while it ran '.*collect B ptdump': oops"),
        ("echo ready; read -r line; echo +100; echo short", "exited while it ran"),
        ("exit 1", "exited while it ran"),
        ("echo ready; read -r line; exec head -c 1000000 /dev/zero", "ptdump' printed more than 65536 bytes"),
        ("exec head -c 1000000 /dev/zero", "printed more than 65536 bytes"),
        ("echo ready; read -r line; echo +99999999", "printed more than 65536 bytes"),
        ("echo ready; read -r line; while :; do echo +2; echo x; done", "printed more than 65536 bytes"),
    ],
)
def test_one_that_misbehaves(shell: GuestShell, monkeypatch: pytest.MonkeyPatch, does: str, message: str) -> None:
    agent_that(does, monkeypatch)
    with pytest.raises(GuestError, match=message):
        shell.run(ASK, deadline=Deadline(60), limit=KEPT)
    # The agent cannot be used again, but the connection can.
    agent_that("echo ready; read -r line; echo '+3'; printf abc; echo '!2'; printf de; echo =7", monkeypatch)
    done = shell.run(ASK, deadline=Deadline(60), limit=KEPT)
    assert (done.status, done.stdout, done.stderr) == (7, b"abc", b"de")


def test_one_that_stalls(shell: GuestShell, monkeypatch: pytest.MonkeyPatch) -> None:
    for does in (
        "exec sleep 1000",
        "echo ready; exec sleep 1000",
        "echo ready; read -r line; echo +9; exec sleep 1000",
    ):
        agent_that(does, monkeypatch)
        with pytest.raises(DeadlineExpired, match="waiting for '/usr/lib/memhp/collect B ptdump' in the guest"):
            shell.run(ASK, deadline=Deadline(3))
    assert shell.run("echo still", deadline=Deadline(60)).stdout == b"still\n"


def test_a_connection_that_breaks(identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    agent_that("echo ready; read -r line; echo +9; exec sleep 1000", monkeypatch)
    with SshPeer(identity) as peer, GuestShell.connect(peer.port, identity, Deadline(60)) as shell:
        peer.on_command = peer.hang_up
        with pytest.raises(GuestError, match="lost the guest while it ran '/usr/lib/memhp/collect B ptdump'"):
            shell.run(ASK, deadline=Deadline(60))
