# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs on real guests that end badly: the right verdict, a bundle, and nothing else left behind."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agreement import disagreements
from leftovers import LONG_SCENARIO

from harness.check import Verdict
from harness.config.guest import GuestSpec
from harness.deadline import Deadline
from harness.errors import InfraError, ParseError, UsageError
from harness.parsers.notes import note_lines
from harness.qemu import memdev
from harness.qemu.devices.dimm import DimmSpec
from harness.scenarios.boot import Parts, boot_guest
from harness.scenarios.file import read_scenario
from harness.scenarios.outcome import Outcome
from harness.scenarios.recheck import recheck
from harness.scenarios.record import Recorder
from harness.scenarios.reporter import SilentReporter
from harness.scenarios.run_options import RunOptions
from harness.scenarios.runner import run_scenarios
from harness.scenarios.session import Session
from harness.scenarios.verbs.blocks import AutoOnlineVerb, OfflineVerb
from harness.scenarios.verbs.dimm import PlugDimmVerb
from harness.scenarios.verbs.reboot import CheckVerb
from harness.scenarios.verbs.virtio_mem import PlugVirtioMemVerb, ResizeVerb
from harness.units import MIB

pytestmark = [pytest.mark.memhp_guest, pytest.mark.either_arch]

DIMM = """
name: one-dimm
steps:
  - plug-dimm: {id: dimm0, size: 128M}
  - check: {}
"""


@contextlib.contextmanager
def session_on(spec: GuestSpec, parts: Parts, directory: Path) -> Iterator[Session]:
    directory.mkdir(mode=0o700)
    recorder = Recorder(directory)
    recorder.start("by-hand", "", {"guest": spec.name, "seed": 0})
    with boot_guest(spec, parts, directory, 600.0) as guest:
        yield Session(guest, RunOptions(settle=3.0), recorder)


@pytest.fixture
def session(memhp_guest_spec: GuestSpec, memhp_artifacts: Parts, tmp_path: Path) -> Iterator[Session]:
    with session_on(memhp_guest_spec, memhp_artifacts, tmp_path / "bundle") as session:
        assert session.check_boot().verdict is Verdict.PASS
        yield session


def broken(result: object) -> set[str]:
    return {check.invariant for check in result.checks if check.status == "fail"}  # type: ignore[attr-defined]


def test_a_line_of_trouble_is_a_failure_and_stays_one_offline(session: Session) -> None:
    def grumble(session: Session, deadline: Deadline) -> Outcome:
        session.guest.shell.must("echo '<1>BUG: Bad page state in process sh' >/dev/kmsg", deadline=deadline)
        return Outcome()

    result = session.act("grumble", grumble)
    assert (result.verdict, broken(result)) == (Verdict.FAIL, {"LOG-1"})
    assert recheck(session.recorder.directory).verdict is Verdict.FAIL
    assert session.act("look again", lambda session, deadline: Outcome()).verdict is Verdict.PASS


def test_a_line_of_trouble_is_a_failure_in_a_step_that_could_not_be_done(session: Session) -> None:
    def grumble(session: Session, deadline: Deadline) -> Outcome:
        since = session.guest.console.mark
        session.guest.shell.must("echo '<1>BUG: Bad page state in process sh' >/dev/kmsg", deadline=deadline)
        session.guest.console.wait_line("Bad page state", deadline, since=since)
        raise UsageError("the guest has 1M free, less than fill must leave")

    result = session.act("grumble", grumble)
    assert (result.verdict, broken(result)) == (Verdict.FAIL, {"LOG-1"})
    assert "less than fill must leave" in result.note
    assert recheck(session.recorder.directory).verdict is Verdict.FAIL


def test_memory_that_came_behind_our_back_is_found(session: Session) -> None:
    def smuggle(session: Session, deadline: Deadline) -> Outcome:
        memdev.plug(session.guest.machine, DimmSpec("dimm0", 256 * MIB), deadline=deadline)
        return Outcome()

    result = session.act("smuggle", smuggle)
    assert result.verdict is Verdict.FAIL
    assert broken(result) >= {"QMP-1", "IOM-2", "BLK-1", "LIN-1", "VMM-1", "MEM-2"}


def test_text_that_memhp_has_never_met_is_told_and_changes_nothing(session: Session) -> None:
    def print_more(session: Session, deadline: Deadline) -> Outcome:
        more = "sed '/start_pfn/a\\  borrowed: 0' /proc/zoneinfo >/tmp/zones && mount --bind /tmp/zones /proc/zoneinfo"
        session.guest.shell.must(more, deadline=deadline)
        return Outcome()

    for title in ("print more", "print it again"):
        work = print_more if title == "print more" else lambda session, deadline: Outcome()
        assert session.act(title, work).verdict is Verdict.PASS
    line = "/proc/zoneinfo: 1 line that memhp does not know: 'borrowed: 0'"
    assert note_lines(session.unknown) == [line]
    assert (session.recorder.directory / "notes.txt").read_text().splitlines().count(line) == 1
    assert recheck(session.recorder.directory).unknown == session.unknown


def test_text_that_cannot_be_parsed_is_in_the_bundle(session: Session) -> None:
    def garble(session: Session, deadline: Deadline) -> Outcome:
        cover = "sed 's/^MemTotal:.*/MemTotal: plenty/' /proc/meminfo >/tmp/mem && mount --bind /tmp/mem /proc/meminfo"
        session.guest.shell.must(cover, deadline=deadline)
        return Outcome()

    why = r"/proc/meminfo:1: not 'MemTotal: <number> kB': 'MemTotal: plenty'"
    with pytest.raises(ParseError, match=why):
        session.act("garble", garble)
    with pytest.raises(ParseError, match=why):
        recheck(session.recorder.directory)
    kept = session.recorder.step_dir(1) / "meminfo.txt"
    assert isinstance(session.state.meminfo, dict)
    kept.write_text(kept.read_text().replace("plenty", f"{session.state.meminfo['MemTotal'] // 1024} kB"))
    assert recheck(session.recorder.directory).verdict is Verdict.PASS


@pytest.mark.parametrize("alarm", [False, True])
def test_a_look_outside_of_the_steps_takes_nothing_from_the_next_one(session: Session, alarm: bool) -> None:
    def say(text: str) -> None:
        session.guest.shell.must(f"echo '{text}' >/dev/kmsg", deadline=session.deadline())

    warning = "<4>WARNING: CPU: 0 PID: 1 at mm/memory_hotplug.c:1 test+0x0/0x10"
    since = session.guest.console.mark
    say(warning if alarm else "<4>one")
    if alarm:
        session.guest.console.wait_line("test", session.deadline(), since=since)
    for text in ("two", "three"):
        told = session.look()
        assert isinstance(told.dmesg, tuple) and told.dmesg == told.records.log
        say(text)
    result = session.act("nothing", lambda session, deadline: Outcome())
    assert isinstance(session.state.dmesg, tuple)
    assert [line.text for line in session.state.dmesg] == [warning[3:] if alarm else "one", "two", "three"]
    assert (result.verdict, broken(result)) == ((Verdict.FAIL, {"LOG-1"}) if alarm else (Verdict.PASS, set()))
    assert session.act("nothing more", lambda session, deadline: Outcome()).verdict is Verdict.PASS


def rename_in_memory(session: Session, old: bytes, new: bytes, deadline: Deadline) -> None:
    """Overwrite every ``old`` in the guest's boot memory with ``new``, which has the same length."""
    path = session.guest.machine.backend_fds((), deadline)["ram0"]
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory, session.guest.machine.paused(deadline):
        places = [match.start() for match in re.finditer(re.escape(old), memory)]
        for place in places:
            memory[place : place + len(new)] = new
    assert places


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        (b"\0", "': a resource without a name"),
        (b"Sys\ntem", "'temRAM (virtio_mem)': not '<start>-<end> : <name>'"),
        (b"\x02\xff\x7f", "\\x02\ufffd\\x7ftem RAM (virtio_mem)': character"),
    ],
    ids=["empty", "newline", "rubbish"],
)
def test_a_resource_whose_name_is_no_name_is_a_failure_that_quotes_the_line(
    session: Session, name: bytes, quoted: str
) -> None:
    """What iomem shows for a name that was freed too early: nothing, part of another text, or arbitrary bytes."""

    def grow(session: Session, deadline: Deadline) -> Outcome:
        return PlugVirtioMemVerb("vm0", 512 * MIB, requested=256 * MIB).run(session, deadline)

    def overwrite(session: Session, deadline: Deadline) -> Outcome:
        rename_in_memory(session, whole, name + whole[len(name) :], deadline)
        return Outcome()

    whole = b"System RAM (virtio_mem)\0"
    assert session.act("grow", grow).verdict is Verdict.PASS
    result = session.act("overwrite the name", overwrite)
    # The host reads the same name in the kernel's resource tree.
    assert (result.verdict, broken(result)) == (Verdict.FAIL, {"IOM-1", "IOM-3", "XCK-2"})
    found = [finding for check in result.checks if check.invariant == "IOM-3" for finding in check.findings]
    assert found[0].where.startswith("/proc/iomem:") and quoted in found[0].observed
    assert recheck(session.recorder.directory).verdict is Verdict.FAIL


def test_a_dimm_that_is_no_whole_memory_block_is_refused_and_changes_nothing(session: Session) -> None:
    def plug(session: Session, deadline: Deadline) -> Outcome:
        return PlugDimmVerb("small", 64 * MIB).run(session, deadline)

    result = session.act("plug 64M", plug, "refused")
    assert (result.verdict, broken(result)) == (Verdict.PASS, set())


NO_FAULT = """
name: no-fault
steps:
  - auto-online: {policy: offline}
  - plug-pmem: {id: p0, size: 256M}
  - namespace: {id: p0, mode: devdax}
  - kmem-fault: {id: p0, step: 100000}
    expect: failed
"""


def test_an_allocation_that_never_came_is_no_failed_add(
    memhp_guest_spec: GuestSpec, memhp_artifacts: Parts, tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text(NO_FAULT)
    scenario, options = read_scenario(tmp_path / "s.yaml"), RunOptions(bundle_dir=tmp_path / "bundles")
    [result] = run_scenarios([scenario], memhp_guest_spec, options, SilentReporter())
    assert result.verdict is Verdict.INFRA
    assert re.search(r"no allocation failed: the add makes [1-9][0-9]* of them", result.steps[-1].note)
    assert result.bundle is not None and recheck(result.bundle).verdict is Verdict.INFRA


def test_an_unwanted_refusal_is_no_failure_of_the_kernel(session: Session) -> None:
    def offline_everything(session: Session, deadline: Deadline) -> Outcome:
        first = session.layout.machine.arch.ram_base // session.layout.block_size
        return OfflineVerb(blocks=(first,)).run(session, deadline)

    result = session.act("offline boot memory", offline_everything)
    assert (result.verdict, broken(result)) == (Verdict.REFUSED, set())
    # EINVAL: the first block of riscv64 has a hole for the firmware.
    assert result.note.endswith(("did not go offline: EBUSY", "did not go offline: EINVAL"))


def test_a_shrink_that_kernel_memory_stops_is_no_verdict(session: Session) -> None:
    def grow(session: Session, deadline: Deadline) -> Outcome:
        AutoOnlineVerb("online_kernel").run(session, deadline)
        return PlugVirtioMemVerb("vm0", 512 * MIB, requested=256 * MIB).run(session, deadline)

    def settle_in(session: Session, deadline: Deadline) -> Outcome:
        script = "for i in $(seq 400); do sleep 1000 & done; sleep 1; echo started"
        session.guest.shell.must(f"({script}) </dev/null >/tmp/out 2>&1; cat /tmp/out", deadline=deadline)
        return Outcome(pending=True)

    def shrink(session: Session, deadline: Deadline) -> Outcome:
        return ResizeVerb("vm0", 0).run(session, deadline)

    assert session.act("grow", grow).verdict is Verdict.PASS
    session.act("let the kernel settle in", settle_in)
    result = session.act("shrink", shrink)
    assert (result.verdict, result.checks) == (Verdict.REFUSED, ())
    assert "the guest keeps" in result.note


def test_qemu_that_dies_gives_no_verdict(session: Session) -> None:
    def kill(session: Session, deadline: Deadline) -> Outcome:
        os.kill(session.guest.machine.pid, signal.SIGKILL)
        return Outcome()

    with pytest.raises(InfraError):
        session.act("kill QEMU", kill)


def test_nothing_listens_beyond_loopback(session: Session) -> None:
    sockets = {
        link.removeprefix("socket:[").removesuffix("]")
        for fd in Path(f"/proc/{session.guest.machine.pid}/fd").iterdir()
        if (link := os.readlink(fd)).startswith("socket:")
    }
    listening = [
        row.split()[1].partition(":")[0]
        for table in ("tcp", "tcp6")
        for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if row.split()[3] == "0A" and row.split()[9] in sockets
    ]
    assert listening == ["0100007F"]


def test_a_panic_in_the_middle_is_a_failure_and_leaves_a_bundle(
    memhp_guest_spec: GuestSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def panic(args: CheckVerb, session: Session, deadline: Deadline) -> Outcome:
        session.guest.shell.run("echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger", deadline=deadline)
        return Outcome()

    monkeypatch.setattr(CheckVerb, "run", panic)
    file = tmp_path / "one-dimm.yaml"
    file.write_text(DIMM)
    options = RunOptions(bundle_dir=tmp_path / "bundles", timeout=60.0)
    [result] = run_scenarios([read_scenario(file)], memhp_guest_spec, options, SilentReporter())
    assert result.verdict is Verdict.FAIL and "LOG-1" in result.reason
    assert "panicked" in result.steps[-1].note
    assert result.bundle is not None
    assert recheck(result.bundle).verdict is Verdict.FAIL
    kept = {path.name for path in result.bundle.iterdir()}
    assert {"argv.txt", "console.log", "qmp.jsonl", "run.json", "scenario.yaml", "states", "verdict.json"} <= kept
    assert "sysrq" in (result.bundle / "console.log").read_text(errors="replace")


@pytest.mark.parametrize("found", [False, True], ids=["clean", "found"])
def test_a_full_look_follows_what_a_fast_one_finds_and_ends_each_run(
    found: bool, memhp_guest_spec: GuestSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warn(args: CheckVerb, session: Session, deadline: Deadline) -> Outcome:
        if found:
            line = "WARNING: CPU: 0 PID: 1 at mm/memory_hotplug.c:1 f+0x0/0x10"
            session.guest.shell.must(f"echo '{line}' >/dev/kmsg", deadline=deadline)
        return Outcome()

    monkeypatch.setattr(CheckVerb, "run", warn)
    file = tmp_path / "one-dimm.yaml"
    file.write_text(f"{DIMM}  - check: {{}}\n")
    options = RunOptions(bundle_dir=tmp_path / "bundles", look="fast")
    [result] = run_scenarios([read_scenario(file)], memhp_guest_spec, options, SilentReporter())
    assert [step.look for step in result.steps] == ["full", "fast", *(["full"] if found else ["fast", "full"])]
    assert result.verdict is (Verdict.FAIL if found else Verdict.PASS) and "ptdump" in str(result.facts["left_out"])
    assert broken(result.steps[-1]) == ({"LOG-1"} if found else set())
    assert result.bundle is not None and disagreements(result, result.bundle) == []
    assert (result.bundle / "states" / "002" / "fast" / "meta.json").is_file() == found
    assert (result.bundle / "states" / "002" / "ptdump.txt").is_file() == found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_harness_that_is_ended_takes_qemu_along(
    number: signal.Signals,
    memhp_guest_spec: GuestSpec,
    memhp_artifacts: Parts,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    kernel = request.config.getoption("memhp_kernel")
    memhp = str(Path(sys.executable).with_name("memhp"))
    (tmp_path / "long.yaml").write_text(LONG_SCENARIO)
    command = [memhp, "run", str(tmp_path / "long.yaml"), "-a", memhp_guest_spec.arch, "--bundle-dir", str(tmp_path)]
    command += ["--kernel", kernel] if kernel else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as harness:
        assert harness.stdout is not None
        for line in harness.stdout:
            if b"plug-virtio-mem" in line:
                break
        children = Path(f"/proc/{harness.pid}/task").glob("*/children")
        qemu = [int(pid) for file in children for pid in file.read_text().split()]
        assert len(qemu) == 1
        watch = os.pidfd_open(qemu[0])
        harness.send_signal(number)
        harness.stdout.read()
        assert select.select([watch], [], [], 60.0)[0], "QEMU outlived the harness"
        os.close(watch)
    assert harness.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[number]
