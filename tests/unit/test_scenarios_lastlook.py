# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's last look at a lost guest: what it says, that nothing in it can harm a run, and that nothing is judged."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.check import Verdict
from harness.collect.hostside import KernelView
from harness.collect.lost import LOST_SOURCES, look_at_lost
from harness.collect.snapshot_folder import load_state, save_lost
from harness.deadline import Deadline
from harness.errors import DeadlineExpired, InfraError, QemuError, UsageError
from harness.model.booted import booted_model
from harness.parsers.dmesg import parse_dmesg
from harness.scenarios.changes import describe_changes, describe_lost
from harness.scenarios.lastlook import LastLook, _last_words, take_last_look
from harness.scenarios.recheck import recheck
from harness.scenarios.record import RecordedRun, Recorder, load_run
from harness.scenarios.session import Session
from harness.state import GuestState, KernelFacts, KernelRecords, NotObserved

RECORDED = Path(__file__).parent / "fixtures" / "bundles" / "arm64-ends"
UNREAD = NotObserved("it cannot be read")
#: the text of the guest, and the host's source of the same
HOSTS = {"iomem": "host_iomem", "blocks": "host_blocks", "meminfo": "host_meminfo", "zoneinfo": "host_zoneinfo"}
PANIC = "[    9.000000] Kernel panic - not syncing: Fatal exception"


def by_host(state: GuestState) -> GuestState:
    """``state`` as if the host had read the same in its memory."""
    records = KernelRecords(iomem=state.iomem, blocks=state.blocks, meminfo=state.meminfo)
    return dataclasses.replace(state, records=records)


@pytest.fixture(scope="module")
def run() -> RecordedRun:
    return load_run(RECORDED)


@pytest.fixture(scope="module")
def states(run: RecordedRun) -> tuple[GuestState, GuestState]:
    """Before and after a DIMM came online, both with the host's records."""
    before, after = (step.state for step in run.steps[:2])
    assert before is not None and after is not None
    return by_host(before), by_host(after)


def test_the_changes_are_those_of_any_other_step(run: RecordedRun, states: tuple[GuestState, GuestState]) -> None:
    before, lost = states
    # What a live guest tells does not count, whatever it was.
    talked = dataclasses.replace(before, iomem=(), blocks=(), meminfo={"MemTotal": 1}, page_tables=UNREAD)
    kernel = booted_model(run.shape, run.facts, run.boot, run.shape.cold).layout.kernel
    lines = describe_lost(talked, lost, kernel)
    assert lines[0] == "read from its memory afterwards: memory blocks 6 online"
    assert set(lines[1:]) == set(describe_changes(before, lost, kernel)) and len(lines) > 4
    assert describe_lost(lost, lost, kernel) == (f"{lines[0]}; as in the look before this step",)


def test_blocks_are_counted_by_state_and_what_was_not_read_is_told(states: tuple[GuestState, GuestState]) -> None:
    before, lost = states
    assert not isinstance(lost.memory_blocks, NotObserved)
    first, *rest = lost.memory_blocks
    blocks = (dataclasses.replace(first, state="going-offline"), *rest)
    half = dataclasses.replace(
        lost, records=KernelRecords(iomem=UNREAD, blocks=blocks, meminfo=UNREAD), host_tables=NotObserved("torn")
    )
    [line, *changes] = describe_lost(before, half)
    assert line == (
        "read from its memory afterwards: memory blocks 1 going-offline, 5 online; "
        "no iomem, MemTotal (it cannot be read); no page tables (torn)"
    )
    assert changes == ["memory8 online DMA → going-offline", "memory16-17 absent → online Movable"]
    assert describe_lost(before, UNREAD) == ("read from its memory afterwards: nothing (it cannot be read)",)


def test_processes_that_died_of_a_signal_are_told(states: tuple[GuestState, GuestState]) -> None:
    before, lost = states
    text = (
        "<6>[    9.000000] dropbear[77]: unhandled exception: DABT (lower EL), ESR 0x0000000092000006, "
        "level 2 translation fault in dropbear[aaaa,aaaa000+3c000]\n"
        "<6>[    9.000001] CPU: 0 UID: 0 PID: 77 Comm: dropbear Not tainted 6.12.117-hp\n"
        "<6>[    9.000002] dropbear: potentially unexpected fatal signal 11.\n"
        "<6>[    9.000003] agent[80]: unhandled signal 11 code 0x1 at 0x0000000000000008\n"
    )
    died = dataclasses.replace(lost, records=dataclasses.replace(lost.records, log=parse_dmesg(text)))
    [line, *_] = describe_lost(before, died)
    told = [part.removeprefix("its kernel says: ") for part in line.split("; ") if "its kernel says" in part]
    assert [one[:22] for one in told] == ["dropbear[77]: unhandle", "dropbear: potentially ", "agent[80]: unhandled s"]


class Qmp:
    """QEMU's end of a lost guest; it ran if ``running``."""

    def __init__(self, running: bool = True, events: tuple[str, ...] = (), error: Exception | None = None) -> None:
        self.alive, self.running, self.error = True, running, error
        self.seen = [SimpleNamespace(name=name) for name in events]

    def events(self, since: int) -> list[Any]:
        return self.seen[since:]


def machine(qmp: Qmp) -> Any:
    @contextlib.contextmanager
    def paused(deadline: Deadline) -> Iterator[None]:
        if qmp.error is not None:
            raise qmp.error
        yield

    return SimpleNamespace(qmp=qmp, paused=paused)


class View(KernelView):
    """Reads what it is told to."""

    def __init__(self, read: Callable[[], Any]) -> None:
        object.__setattr__(self, "_told", read)

    def read(self, memory: object, since: object = 0) -> Any:
        return self._told()  # type: ignore[attr-defined]


def fail(error: Exception) -> Callable[..., Any]:
    def run(*_: object) -> Any:
        raise error

    return run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU tells of no memory device."""
    monkeypatch.setattr("harness.collect.lost.ask_qemu", lambda *_: ({"devices": b"[]", "backends": b"{}"}, []))


def look(qmp: Qmp, read: Callable[[], Any], booted: int = 0) -> tuple[set[str], set[str]]:
    """The sources that the look has, and the reasons for the others."""
    raw = look_at_lost(machine(qmp), View(read), since=0, booted=booted, deadline=Deadline(60))
    absent = dict(line.split(" ", 1) for line in raw.pop("absent").decode().splitlines())
    assert raw.keys() | absent.keys() == set(LOST_SOURCES) and not raw.keys() & absent.keys()
    return set(raw), set(absent.values())


@pytest.mark.usefixtures("asked")
def test_each_source_that_cannot_be_read_has_its_reason() -> None:
    told = {"devices", "backends"}
    assert look(Qmp(), lambda: NotObserved("no vmcoreinfo")) == (told, {"no vmcoreinfo"})
    assert look(Qmp(), fail(InfraError("no memory\nthere"))) == (told, {"no memory there"})
    late = DeadlineExpired("QEMU's answer to stop", 5.0)
    assert look(Qmp(error=late), lambda: UNREAD) == (told, {late.message})


def test_qemu_that_says_nothing_is_the_reason_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.collect.lost.ask_qemu", fail(QemuError("lost QEMU")))
    assert look(Qmp(), lambda: UNREAD) == (set(), {"lost QEMU"})


@pytest.mark.usefixtures("asked")
def test_the_memory_of_a_machine_that_was_reset_is_another_kernels() -> None:
    reset = {"the machine was reset, so this may be another kernel's memory"}
    assert look(Qmp(events=("RESET",)), lambda: UNREAD)[1] == reset
    assert look(Qmp(events=("RESET", "STOP")), lambda: UNREAD, booted=1)[1] == {UNREAD.reason}


def take(qmp: Qmp, read: Callable[[], Any], directory: Path, before: GuestState) -> LastLook:
    console: Any = SimpleNamespace(wait_dead=lambda deadline: None)
    facts = KernelFacts("arm64", "6.12", "", 4096, 1 << 27, None, UNREAD, {})
    guest: Any = SimpleNamespace(machine=machine(qmp), console=console, kernel=View(read), facts=facts)
    return take_last_look(guest, Recorder(directory), 2, before, None, booted=0, since=0)


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("error", [ValueError("odd"), KeyError(7), OverflowError(), MemoryError(), OSError(28, "full")])
def test_no_failure_of_the_look_hides_the_error_that_lost_the_guest(
    error: Exception, tmp_path: Path, states: tuple[GuestState, GuestState]
) -> None:
    assert take(Qmp(), fail(error), tmp_path, states[0]) == LastLook()
    assert f"{type(error).__name__}" in (tmp_path / "notes.txt").read_text()
    # Not even where nothing can be written any more.
    assert take(Qmp(), fail(error), tmp_path / "gone", states[0]) == LastLook()


@pytest.mark.usefixtures("asked")
def test_a_look_is_saved_and_noted(tmp_path: Path, states: tuple[GuestState, GuestState]) -> None:
    last = take(Qmp(), lambda: UNREAD, tmp_path, states[0])
    line = "no memory blocks, iomem, MemTotal, page tables (it cannot be read)"
    assert last == LastLook((f"read from its memory afterwards: {line}",))
    assert (tmp_path / "notes.txt").read_text() == f"step 2: {last.lines[0]}\n"
    assert (tmp_path / "states" / "002" / "lost" / "devices.json").read_text() == "[]"
    dead = Qmp()
    dead.alive = False
    assert take(dead, lambda: UNREAD, tmp_path / "dead", states[0]) == LastLook()
    assert not (tmp_path / "dead").exists()


def test_the_last_words_are_those_from_the_first_alarm_on() -> None:
    log = parse_dmesg(
        "<6>[    1.000000] harmless\n"
        "<0>[   70.500000] watchdog: BUG: soft lockup - CPU#0 stuck for 134s!\n"
        "<4>[   80.000000] WARNING: CPU: 0 PID: 1 at mm/memory_hotplug.c:1 f+0x0/0x10\n"
        "<4>[   80.000001] Call trace:\n"
        f"<0>{PANIC}\n"
    )
    warning = "[   80.000000] WARNING: CPU: 0 PID: 1 at mm/memory_hotplug.c:1 f+0x0/0x10"
    assert _last_words(log, "") == ((warning, PANIC), (warning, "[   80.000001] Call trace:", PANIC))
    # When a watchdog expired, only the console tells.
    assert _last_words(log[:2], "") == _last_words((), "") == ((), ())


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The kernel died in step 2, as it added a DIMM."""
    copy = Path(shutil.copytree(RECORDED, tmp_path / "bundle"))
    for number in range(3, 11):
        shutil.rmtree(copy / "states" / f"{number:03d}")
    died = copy / "states" / "002"
    raw = {host: (died / f"{name}.txt").read_bytes() for name, host in HOSTS.items()}
    raw |= {"host_tables": (died / "host_tables.txt").read_bytes(), "absent": b"host_log it cannot be read\n"}
    step = json.loads((died / "step.json").read_text())
    step["outcome"]["alarms"] = [PANIC]
    shutil.rmtree(died)
    died.mkdir()
    (died / "step.json").write_text(json.dumps(step))
    save_lost(died / "lost", raw)
    for name, host in HOSTS.items():
        before = copy / "states" / "001"
        shutil.copy(before / f"{name}.txt", before / f"{host}.txt")
    (copy / "verdict.json").write_text('{"verdict": "fail", "reason": "step 2", "steps": 2}')
    return copy


def test_a_check_of_the_bundle_shows_the_state_in_which_the_kernel_died(bundle: Path, run: RecordedRun) -> None:
    lost = load_state(bundle / "states" / "002" / "lost", run.facts)
    assert (lost.boot_id, lost.uptime) == ("", 0.0) and lost.records.log == UNREAD
    result = recheck(bundle)
    step = result.steps[2]
    assert result.verdict is Verdict.FAIL
    assert [check.invariant for check in step.checks if check.status == "fail"] == ["LOG-1"]
    assert step.changes[:2] == (
        "read from its memory afterwards: memory blocks 6 online",
        "iomem + 80000000-8fffffff : System RAM",
    )
    assert "memory16-17 absent → online Movable" in step.changes and "MemTotal +256M" in step.changes
    assert any(change.startswith("vmemmap + ") for change in step.changes)


def test_what_of_a_dead_kernel_makes_no_sense_is_told(bundle: Path) -> None:
    tree = bundle / "states" / "002" / "lost" / "host_iomem.txt"
    with tree.open("a") as lines:
        lines.write("the resource at 0xdead000000000100 cannot be read\n")
    [*_, last] = recheck(bundle).steps[2].changes
    assert last.endswith(": the resource at 0xdead000000000100 cannot be read") and " line " in last


def test_nothing_that_a_dead_kernel_left_is_judged_nor_stops_a_check(bundle: Path) -> None:
    clean, lost = recheck(bundle), bundle / "states" / "002" / "lost"
    shutil.rmtree(bundle / "states" / "002" / "lost")
    bare = recheck(bundle)
    assert (clean.verdict, clean.steps[2].checks) == (bare.verdict, bare.steps[2].checks)
    assert bare.steps[2].changes == ()
    garbage = {"host_iomem": b"\xff\xfe\n", "host_blocks": b"memory\n", "host_meminfo": b"", "host_tables": b"x"}
    for name, data in garbage.items():
        save_lost(lost, {"absent": b"", name: data})
        now = recheck(bundle)
        assert (now.verdict, now.steps[2].checks) == (clean.verdict, clean.steps[2].checks)
        assert now.steps[2].changes[0].startswith("read from its memory afterwards: no")
    (lost / "meta.json").write_text("[]")
    assert "nothing (" in recheck(bundle).steps[2].changes[0]


@pytest.mark.parametrize("kind", [UsageError, QemuError])
def test_only_a_guest_that_was_lost_gets_a_last_look(kind: type[Exception]) -> None:
    session = Session.__new__(Session)
    assert session._last_look(kind("no such device")) == LastLook()  # type: ignore[arg-type]
