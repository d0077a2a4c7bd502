# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent's client: requests, answers, batches, and agents that misbehave."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from agent_world import World, needs_cc
from guest_peer import SshPeer

from harness.collect.sources import parse_frames
from harness.deadline import Deadline
from harness.errors import DeadlineExpired, GuestError
from harness.guest import ssh as guest_shell
from harness.guest.agent import agent_request
from harness.guest.identity import Identity
from harness.guest.memory_blocks import set_blocks
from harness.guest.ssh import CommandResult, GuestShell

ASK = "/usr/lib/memhp/collect B ptdump"
KEPT = 65536


@pytest.mark.parametrize(
    ("command", "request_"),
    [
        ("/usr/lib/memhp/collect c0ffee boot_id uptime", "collect c0ffee boot_id uptime"),
        ("/usr/lib/memhp/blocks set online_movable 5", "blocks set online_movable 5"),
        ("/usr/lib/memhp/wait-work events_freezable 5", "wait-work events_freezable 5"),
        ("/usr/lib/memhp/pmem devdax namespace0.0 ram 2097152", "pmem devdax namespace0.0 ram 2097152"),
        ("/usr/lib/memhp/slot 1 off", "slot 1 off"),
        ("/usr/lib/memhp/wait-driver nd namespace0.0 nd_pmem 5", "wait-driver nd namespace0.0 nd_pmem 5"),
        ("/usr/lib/memhp/files read", "files read"),
        ("/usr/bin/load-keeper pause 1000", "load-keeper pause 1000"),
        ("/usr/bin/load-keeper stop 1000 my-load", "load-keeper stop 1000 my-load"),
        ("/usr/bin/load-keeper start 1000 a 1 /usr/bin/load-worker anon", None),
        ("/usr/bin/load-keeper pause 1000; reboot", None),
        ("/usr/lib/memhp/load-keeper pause 1000", None),
        ("/usr/bin/slot 1 off", None),
        ("/usr/lib/memhp/load-hugetlb go", None),
        ("/usr/lib/memhp/blocks", None),
        ("/usr/lib/memhp/blocks zones; reboot", None),
        ("/usr/lib/memhp/blocks zones\n0 blocks zones", None),
        ("/usr/lib/memhp/blocks  zones", None),
        ("/usr/lib/memhp/pmem list", "pmem list"),
        ("sh /usr/lib/memhp/blocks zones", None),
        ("true", None),
    ],
)
def test_what_the_agent_is_asked_for(command: str, request_: str | None) -> None:
    assert agent_request(command) == request_


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


STARTED_BY_A_SESSION = """
import os, subprocess, sys
cpus = os.sched_getaffinity(0)
os.sched_setaffinity(0, {min(cpus)} if sys.argv[1] == "one" else cpus)
everywhere = lambda: os.sched_setaffinity(0, cpus)
with subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=everywhere) as agent:
    agent.stdout.readline()
    print(len(os.sched_getaffinity(agent.pid)), len(cpus))
    agent.stdin.close()
"""


@needs_cc
@pytest.mark.parametrize(
    ("session", "more", "near"), [("one", [], True), ("one", ["anywhere"], False), ("all", [], False)]
)
def test_it_keeps_to_the_cpu_of_its_session(world: World, session: str, more: list[str], near: bool) -> None:
    argv = [sys.executable, "-c", STARTED_BY_A_SESSION, session, str(world.program), *more]
    used, there = map(int, subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())
    assert used == (1 if near else there)


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
        ("echo ready; read -r line; echo; echo =0 0", "the guest agent sent an invalid line: ''"),
        ("echo ready; read -r line; echo =0", "the guest agent sent an invalid line: '=0'"),
        ("echo ready; read -r line; echo =1 0", "the guest agent sent an invalid line: '=1 0'"),
        ("echo ready; read -r line; echo =0 -1", "the guest agent sent an invalid line: '=0 -1'"),
        ("echo ready; read -r line; printf '+\\331\\241\\n'", r"the guest agent sent an invalid line: '\+"),
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
    agent_that("echo ready; read -r line; echo '+3'; printf abc; echo '!2'; printf de; echo =0 7", monkeypatch)
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


def test_several_requests_are_answered_in_order(shell: GuestShell, monkeypatch: pytest.MonkeyPatch) -> None:
    agent_that(
        'echo ready; for n in 0 1; do read -r line; echo "+${#line}"; printf \'%s\' "$line"; echo =$n $n; done',
        monkeypatch,
    )
    commands = [(ASK, b""), ("/usr/lib/memhp/slot 1 on", b"")]
    assert shell.run_all(commands, deadline=Deadline(60)) == (
        CommandResult(0, b"0 0 collect B ptdump", b""),
        CommandResult(1, b"1 0 slot 1 on", b""),
    )


def test_an_answer_is_told_as_soon_as_it_is_there(
    shell: GuestShell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    agent_that(
        f"echo ready; read -r line; echo =0 0; until [ -e {told} ]; do sleep 0.01; done; read -r line; echo =1 0",
        monkeypatch,
    )
    done = shell.run_all([(ASK, b""), (ASK, b"")], deadline=Deadline(60), answered=told.touch)
    assert [result.status for result in done] == [0, 0]


@pytest.mark.parametrize(
    "does",
    [
        "read -r line; echo =0 0; echo =0 0",
        "read -r line; echo =1 0; echo =0 0",
        # What an agent sends unasked never becomes the answer to the next request.
        "read -r line; echo '=0 0\n+5\nwrong=0 0'",
    ],
)
def test_an_answer_to_another_request(shell: GuestShell, monkeypatch: pytest.MonkeyPatch, does: str) -> None:
    agent_that(f"echo ready; {does}; exec sleep 1000", monkeypatch)
    with pytest.raises(GuestError, match="the guest agent sent an invalid line: '="):
        shell.run(ASK, deadline=Deadline(60))
        shell.run(ASK, deadline=Deadline(60))


@pytest.mark.parametrize("ending", ["", "echo oops >&2", "head -c 100000 /dev/zero", "echo =0 0"])
def test_one_that_ends_between_two_answers(shell: GuestShell, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    agent_that(f"echo ready; read -r line; echo =0 0; {ending or ':'}", monkeypatch)
    with pytest.raises(GuestError, match=r"exited while it ran '.*slot 1 on'|printed more than|invalid line"):
        shell.run_all([(ASK, b""), ("/usr/lib/memhp/slot 1 on", b"")], deadline=Deadline(60), limit=KEPT)
    assert shell._agent is None


@needs_cc
def test_a_batch(shell: GuestShell, world: World) -> None:
    world.add_block(8, "offline", "Normal Movable")
    commands = [
        ("/usr/lib/memhp/blocks set online", b"8\n9\n"),
        ("/usr/lib/memhp/collect B nonsense", b""),
        ("/usr/lib/memhp/blocks zones", b"8\n" * 200_000),
        ("/usr/lib/memhp/blocks wait 6000", b"8 online\n"),
        ("/usr/lib/memhp/pmem nonsense x", b""),
    ]
    done = shell.run_all(commands, deadline=Deadline(60))
    assert [result.status for result in done] == [0, 2, 0, 0, 2]
    assert re.fullmatch(r"8 [0-9]+ ok\n9 0 failed No such file or directory\n", done[0].text)
    assert done[1].stderr == b"collect: no source nonsense\n" and done[4].stderr == b"agent: invalid request: pmem\n"
    assert done[2].stdout == b"8 Normal Movable\n" * 200_000 and done[3].stdout == b""


def test_commands_without_an_agent(shell: GuestShell) -> None:
    told: list[None] = []
    commands = [("cat", b"in"), ("exit 3", b""), (ASK, b"")]
    done = shell.run_all(commands, deadline=Deadline(60), answered=lambda: told.append(None))
    assert [(result.status, result.stdout) for result in done] == [(0, b"in"), (3, b""), (127, b"")]
    assert len(told) == 3


@needs_cc
def test_one_that_is_busy_keeps_nobody_waiting(shell: GuestShell, world: World) -> None:
    block = world.add_block(8, "offline", "Normal")
    asked = "/usr/lib/memhp/blocks wait 6000"
    waiting = threading.Thread(
        target=shell.run, args=(asked,), kwargs={"stdin": b"8 online\n", "deadline": Deadline(60)}
    )
    waiting.start()
    while shell._agent_lock.acquire(blocking=False):
        shell._agent_lock.release()
    # The other one waits for what only this one does.
    assert set_blocks(shell, [8], "online", deadline=Deadline(60))[0].ok
    waiting.join(60)
    assert not waiting.is_alive() and (block / "state").read_text() == "online\n"
    # Only the first one stays.
    resident = shell._agent
    assert resident is not None and not resident.ended
    while len(subprocess.run(["pidof", str(world.program)], capture_output=True, text=True).stdout.split()) > 1:
        assert shell.run("true", deadline=Deadline(60)).status == 0


def test_a_connection_that_breaks(identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    agent_that("echo ready; read -r line; echo +9; exec sleep 1000", monkeypatch)
    with SshPeer(identity) as peer, GuestShell.connect(peer.port, identity, Deadline(60)) as shell:
        peer.on_command = peer.hang_up
        with pytest.raises(GuestError, match="lost the guest while it ran '/usr/lib/memhp/collect B ptdump'"):
            shell.run(ASK, deadline=Deadline(60))
