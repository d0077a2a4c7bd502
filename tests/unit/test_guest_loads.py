# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads: commands sent to the guest and its answers; and the real load-keeper, also with workers that misbehave."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_peer import CannedShell, said

from harness.config.places import guest_scripts_dir
from harness.deadline import Deadline
from harness.errors import DeadlineExpired, GuestError, UnsupportedError, UsageError
from harness.guest.loads import LOADS, LoadCount, pause_loads, resume_loads, start_load, stop_load

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


def asked(shell: CannedShell) -> str:
    """The last command without its milliseconds, which must be just below a deadline of 5 s."""
    command, stdin = shell.asked[-1]
    assert stdin == b""
    ms = re.search(r" ([0-9]+)\b", command)
    assert ms is not None and 2500 <= int(ms[1]) <= 3000
    return command.replace(ms[0], " MS", 1)


def test_a_load_is_started() -> None:
    shell = CannedShell(said(""), said(""), said(""))
    start_load(shell, "walk", "ptdump", {}, deadline=Deadline(5))
    assert asked(shell) == "/usr/bin/load-keeper start MS walk 1 /usr/bin/load-worker ptdump"
    start_load(shell, "walk", "ptdump", {"cpus": 2}, deadline=Deadline(5))
    assert asked(shell) == "/usr/bin/load-keeper start MS walk 2 /usr/bin/load-worker ptdump"
    start_load(shell, "huge", "hugetlb", {"size": 1 << 21, "node": 0}, deadline=Deadline(5))
    assert (
        asked(shell) == "/usr/bin/load-keeper start MS huge 1 /usr/lib/memhp/load-hugetlb hugetlb node=0 size=2097152"
    )


@pytest.mark.parametrize(
    ("id", "kind", "args", "message"),
    [
        ("a b", "ptdump", {}, "invalid name for a load: 'a b'"),
        ("", "ptdump", {}, "invalid name for a load: ''"),
        ("x", "walk", {}, "unknown kind of load: 'walk'"),
        ("x", "ptdump", {"speed": 1}, "the load ptdump has no 'speed'"),
        ("x", "ptdump", {"cpus": 0}, "a load has 1 to 16 workers, not 0"),
        ("x", "ptdump", {"cpus": 17}, "a load has 1 to 16 workers, not 17"),
        ("x", "ptdump", {"cpus": -1}, "cpus: -1 is out of range"),
    ],
)
def test_a_load_that_cannot_be_meant(id: str, kind: str, args: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        start_load(CannedShell(), id, kind, args, deadline=Deadline(5))


def test_a_load_that_the_guest_cannot_do() -> None:
    shell = CannedShell(said("/sys/kernel/debug/kernel_page_tables: No such file or directory\n", 3))
    with pytest.raises(UnsupportedError, match=r"cannot run the load ptdump: .*page_tables: No such file") as caught:
        start_load(shell, "x", "ptdump", {}, deadline=Deadline(5))
    assert caught.value.requirement == "ptdump"


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (4, UsageError, "the guest already has a load 'x'"),
        (127, GuestError, "the guest has no /usr/bin/load-keeper"),
        (2, GuestError, r"the guest's load-keeper failed \(status 2\): load-keeper: fork: out of memory"),
    ],
)
def test_a_load_that_does_not_start(status: int, error: type[Exception], message: str) -> None:
    shell = CannedShell(said("", status, "load-keeper: fork: out of memory\n"))
    with pytest.raises(error, match=message):
        start_load(shell, "x", "ptdump", {}, deadline=Deadline(5))


def test_loads_are_paused_counted_and_resumed() -> None:
    shell = CannedShell(
        said("walk 37 0 resting\nfill 812 3 resting mmap: Cannot allocate memory\n"),
        said("walk 37 0 running\nfill 812 3 dead a worker was killed by signal 9\n"),
        said("walk 38 0 busy\nother 0 0 gone\n"),
        said(""),
    )
    assert pause_loads(shell, deadline=Deadline(5)) == {
        "walk": LoadCount(37, 0, True),
        "fill": LoadCount(812, 3, True, "mmap: Cannot allocate memory"),
    }
    assert asked(shell) == "/usr/bin/load-keeper pause MS"
    assert resume_loads(shell, deadline=Deadline(5))["fill"] == LoadCount(
        812, 3, False, "a worker was killed by signal 9"
    )
    assert asked(shell) == "/usr/bin/load-keeper resume MS"
    assert resume_loads(shell, deadline=Deadline(5)) == {
        "walk": LoadCount(38, 0, True),
        "other": LoadCount(0, 0, False, "its keeper is gone"),
    }
    assert pause_loads(shell, deadline=Deadline(5)) == {}


def test_loads_that_do_not_come_to_rest_are_named() -> None:
    shell = CannedShell(said("b 7 1 busy read: Input/output error\nok 3 0 resting\na 5 0 busy\n"))
    with pytest.raises(
        DeadlineExpired,
        match=r"waiting for loads in the guest to end a round: a, b; "
        r"last seen: a after 5 rounds, b after 7 rounds \(read: Input/output error\)",
    ):
        pause_loads(shell, deadline=Deadline(5))


@pytest.mark.parametrize(
    "answer",
    ["walk\n", "walk 1 2 sleeping\n", "walk -1 2 resting\n", "a 1 2 resting\na 1 2 resting\n", "walk 1 2 dead \x1b\n"],
)
def test_an_answer_that_nobody_understands(answer: str) -> None:
    with pytest.raises(GuestError, match="the guest's load-keeper printed"):
        resume_loads(CannedShell(said(answer)), deadline=Deadline(5))


def test_a_load_is_stopped() -> None:
    shell = CannedShell(said("walk 40 0 stopped\n"), said("walk 40 0 dead a worker ended with status 1\n"))
    assert stop_load(shell, "walk", deadline=Deadline(5)) == LoadCount(40, 0, True)
    assert asked(shell) == "/usr/bin/load-keeper stop MS walk"
    assert not stop_load(shell, "walk", deadline=Deadline(5)).running


@pytest.mark.parametrize(
    ("id", "answer", "error", "message"),
    [
        ("walk", said("walk 40 0 killed\n"), DeadlineExpired, "to end a round: walk; last seen: walk after 40 rounds"),
        ("walk", said("walk 0 0 busy\n"), DeadlineExpired, "to end a round: walk"),
        ("walk", said("", 4), UsageError, "the guest has no load 'walk'"),
        ("walk", said(""), GuestError, "asked to stop the load walk, but answered for none"),
        ("; reboot", said(""), UsageError, "invalid name for a load: '; reboot'"),
    ],
)
def test_a_load_that_is_not_stopped(id: str, answer: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        stop_load(CannedShell(answer), id, deadline=Deadline(5))  # type: ignore[arg-type]


def test_what_a_kernel_lacks_is_named() -> None:
    kind = LOADS["ptdump"]
    assert kind.lacking({"DEBUG_FS": "y", "PTDUMP_DEBUGFS": "y"}) == ()
    kind.require({"DEBUG_FS": "y", "PTDUMP_DEBUGFS": "y", "MODULES": "y"})
    with pytest.raises(UnsupportedError, match="the load ptdump needs a kernel with CONFIG_PTDUMP_DEBUGFS"):
        kind.require({"DEBUG_FS": "y"})


def test_every_kind_is_named_like_its_key() -> None:
    for name, kind in LOADS.items():
        assert name == kind.name and kind.summary and kind.needs
        assert (guest_scripts_dir() / Path(kind.program).name).exists() or kind.program == "/usr/bin/load-worker"


@pytest.mark.skipif(shutil.which("dash") is None, reason="needs dash")
def test_only_memory_that_came_later_and_is_online_is_told_to_go_online(tmp_path: Path) -> None:
    def add(number: int, state: str) -> None:
        block = tmp_path / f"memory{number}"
        block.mkdir()
        (block / "state").write_text(f"{state}\n")
        (block / "online").write_text("as before\n")

    add(2, "online")
    script = (guest_scripts_dir() / "load-online").read_text().replace("/sys/devices/system/memory", str(tmp_path))
    with subprocess.Popen(["dash", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as load:
        assert load.stdin is not None and load.stdout is not None and load.stdout.readline() == "ready\n"
        for number, state in ((16, "online"), (17, "offline"), (18, "going-offline"), (19, "going-online")):
            add(number, state)
        # one that has just gone
        (tmp_path / "memory20").mkdir()
        load.stdin.write("go\n")
        load.stdin.flush()
        assert load.stdout.readline() == "ok\n"
        load.stdin.close()
        assert load.wait(60) == 0
    told = {path.parent.name for path in tmp_path.glob("*/online") if path.read_text() == "1\n"}
    assert told == {"memory16", "memory18"} and len(list(tmp_path.glob("*/online"))) == 5


#: milliseconds for what happens at once, but on a busy machine
PATIENCE = "60000"


class Keeper:
    """The real load-keeper on this machine; its workers are scripts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loads = folder / "loads"
        self.loads.mkdir()
        self.program = folder / "load-keeper"
        subprocess.run(
            ["cc", f'-DFOLDER="{self.loads}"', "-o", self.program, guest_scripts_dir() / "load-keeper.c"], check=True
        )

    def run(self, *words: str) -> tuple[int, str]:
        done = subprocess.run([self.program, *words], capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout

    def start(self, id: str, script: str, workers: int = 1) -> tuple[int, str]:
        path = self.folder / f"{id}.sh"
        # The program of an earlier load may still be running.
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return self.run("start", PATIENCE, id, str(workers), str(path))

    def counts(self, command: str, ms: str = PATIENCE) -> dict[str, list[str]]:
        status, text = self.run(command, ms)
        assert status == 0
        return {line.split()[0]: line.split()[1:] for line in text.splitlines()}

    def until(self, id: str, state: str) -> list[str]:
        limit = Deadline(60)
        while (count := self.counts("count")[id])[2] != state:
            limit.check(f"{id} to be {state}", str(count))
        return count


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    # The path of a socket must be short, and pytest's paths are long.
    with tempfile.TemporaryDirectory(prefix="keep") as folder:
        keeper = Keeper(Path(folder))
        yield keeper
        # What a failed test leaves would work for ever.
        for id in keeper.counts("count"):
            keeper.run("stop", "200", id)


ROUND = 'echo ready; while read -r line; do [ "$line" = go ] || exit 9; echo ok; done'


@needs_cc
def test_keeper_rounds_stand_still_while_paused(keeper: Keeper) -> None:
    assert keeper.start("walk", ROUND, workers=3) == (0, "")
    assert keeper.start("walk", ROUND) == (4, "")
    paused = keeper.counts("pause")["walk"]
    assert paused[2] == "resting" and paused == keeper.counts("count")["walk"] == keeper.counts("pause")["walk"]
    assert keeper.counts("resume")["walk"] == [paused[0], "0", "running"]
    again = keeper.counts("pause")["walk"]
    # All three workers started at least one round.
    assert int(again[0]) >= int(paused[0]) + 3
    assert keeper.run("stop", PATIENCE, "walk") == (0, f"walk {again[0]} 0 stopped\n")
    assert keeper.run("stop", PATIENCE, "walk") == (4, "") and not list(keeper.loads.iterdir())
    assert keeper.counts("count") == {}


@needs_cc
@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ("echo 'no such file'; exit 1", "no such file"),
        ("exit 1", "a worker ended before it was ready"),
        ("head -c 500 /dev/zero", "a worker wrote an invalid line"),
    ],
)
def test_keeper_says_why_a_load_cannot_be(keeper: Keeper, script: str, answer: str) -> None:
    assert keeper.start("bad", script, workers=2) == (3, f"{answer}\n")
    assert not list(keeper.loads.iterdir())


@needs_cc
def test_keeper_does_not_wait_for_ever_for_a_start(keeper: Keeper) -> None:
    assert keeper.run("start", "100", "late", "1", "/bin/cat") == (3, "not ready in time\n")
    assert (
        keeper.run("start", PATIENCE, "none", "1", "/no/such/program")[1]
        == "/no/such/program: No such file or directory\n"
    )
    assert keeper.run("start", "100", "../x", "1", "/bin/cat")[0] == 2
    assert keeper.run("start", "100", "x", "17", "/bin/cat")[0] == 2
    assert keeper.run("sleep", "100")[0] == 2
    assert not list(keeper.loads.iterdir())


@needs_cc
@pytest.mark.parametrize(
    ("end", "note"),
    [
        ("exit 7", "a worker ended with status 7"),
        ("kill -9 $$", "a worker was killed by signal 9"),
        ("echo what; read -r line", "a worker wrote: what"),
        ("yes | tr -d '\\n'", "a worker wrote an invalid line"),
        ("printf 'a\\033b\\n'; read -r line", "a worker wrote: a?b"),
    ],
)
def test_keeper_knows_the_dead(keeper: Keeper, end: str, note: str) -> None:
    assert keeper.start(
        "dying", f"echo ready; read -r line; echo failed no luck; read -r line; echo ok; read -r line; {end}"
    ) == (0, "")
    try:
        # Its only worker does round after round until it ends.
        count = keeper.until("dying", "dead")
        assert " ".join(count) == f"1 1 dead {note}"
        assert keeper.counts("pause")["dying"] == keeper.counts("resume")["dying"] == count
    finally:
        assert keeper.run("stop", PATIENCE, "dying") == (0, f"dying 1 1 dead {note}\n")


@needs_cc
def test_keeper_names_a_round_that_does_not_end(keeper: Keeper) -> None:
    gate = keeper.folder / "gate"
    os.mkfifo(gate)
    assert keeper.start("stuck", f"echo ready; while read -r line; do cat {gate} >/dev/null; echo ok; done") == (0, "")
    assert keeper.start("walk", ROUND) == (0, "")
    limit = Deadline(60)
    while (paused := keeper.counts("pause", "200"))["walk"][2] != "resting":
        limit.check("walk to rest", str(paused))
    assert paused["stuck"] == ["0", "0", "busy"]
    gate.write_text("open\n")
    assert keeper.counts("pause")["stuck"] == ["1", "0", "resting"]
    assert keeper.counts("resume")["stuck"] == ["1", "0", "running"]
    assert keeper.run("stop", "200", "stuck") == (0, "stuck 1 0 killed\n")
    assert keeper.run("stop", PATIENCE, "walk")[0] == 0


@needs_cc
def test_keeper_that_was_killed_is_gone(keeper: Keeper) -> None:
    assert keeper.start("alone", f"echo $PPID >{keeper.folder}/pid; {ROUND}") == (0, "")
    os.kill(int((keeper.folder / "pid").read_text()), signal.SIGKILL)
    assert keeper.until("alone", "gone") == ["0", "0", "gone"] and keeper.start("alone", ROUND) == (4, "")
    assert keeper.run("stop", PATIENCE, "alone") == (0, "alone 0 0 gone\n")
    assert not list(keeper.loads.iterdir())
