# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that is lost in the middle of a step: the bundle holds the state in which its kernel stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from agreement import disagreements

from harness.check import Verdict
from harness.cli import main
from harness.collect.snapshot_folder import load_state
from harness.config.guest import GuestSpec
from harness.deadline import Deadline
from harness.scenarios.file import read_scenario
from harness.scenarios.outcome import Outcome
from harness.scenarios.record import load_run
from harness.scenarios.reporter import SilentReporter
from harness.scenarios.result import RunResult
from harness.scenarios.run_options import RunOptions
from harness.scenarios.runner import run_scenarios
from harness.scenarios.session import Session
from harness.scenarios.verbs.dimm import PlugDimmVerb
from harness.scenarios.verbs.reboot import CheckVerb
from harness.state import GuestState, NotObserved
from harness.units import MIB

pytestmark = pytest.mark.memhp_guest

SCENARIO = """
name: lost
steps:
  - auto-online: {policy: offline}
  - check: {}
"""
#: seconds for an answer that never comes
NEVER = 3.0


def panics(session: Session, deadline: Deadline) -> None:
    session.guest.shell.run("echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger", deadline=deadline)


def stops_answering(session: Session, deadline: Deadline) -> None:
    session.guest.shell.run("killall -STOP agent dropbear", deadline=Deadline(NEVER))


def server_dies(session: Session, deadline: Deadline) -> None:
    session.guest.shell.run("killall -SEGV dropbear", deadline=deadline)


def dies_in_silence(session: Session, deadline: Deadline) -> None:
    # No console prints a warning, and nobody can ask for the log any more.
    said = "dmesg -n 1; echo '<4>WARNING: CPU: 0 PID: 1 at mm/memory_hotplug.c:1 f+0x0/0x10' >/dev/kmsg"
    session.guest.shell.run(f"{said}; killall -STOP agent dropbear", deadline=Deadline(NEVER))


def stands_still(session: Session, deadline: Deadline) -> None:
    session.guest.machine.qmp.execute("stop", deadline=deadline)
    wait_in_vain(session)


def is_reset(session: Session, deadline: Deadline) -> None:
    session.guest.machine.qmp.execute("system_reset", deadline=deadline)
    wait_in_vain(session)


def wait_in_vain(session: Session) -> None:
    qmp = session.guest.machine.qmp
    qmp.wait_event(lambda event: False, since=qmp.seq, deadline=Deadline(NEVER), awaited="nothing")


def run_with(
    fault: Callable[[Session, Deadline], None], spec: GuestSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[RunResult, Path]:
    """The run whose second step plugs a DIMM and then loses the guest; and its bundle."""

    def lose(args: CheckVerb, session: Session, deadline: Deadline) -> Outcome:
        PlugDimmVerb("dimm0", 256 * MIB).run(session, deadline)
        fault(session, deadline)
        return Outcome()

    monkeypatch.setattr(CheckVerb, "run", lose)
    file = tmp_path / "lost.yaml"
    file.write_text(SCENARIO)
    options = RunOptions(bundle_dir=tmp_path / "bundles")
    [result] = run_scenarios([read_scenario(file)], spec, options, SilentReporter())
    assert result.bundle is not None
    return result, result.bundle


def lost_state(bundle: Path) -> tuple[GuestState, GuestState]:
    """The look before the step, and the last one."""
    run = load_run(bundle)
    return load_state(bundle / "states" / "001", run.facts), load_state(bundle / "states" / "002" / "lost", run.facts)


@pytest.mark.parametrize("fault", [panics, stops_answering, stands_still], ids=lambda fault: fault.__name__)
def test_the_bundle_holds_what_the_kernel_had_when_it_was_lost(
    fault: Callable[[Session, Deadline], None],
    memhp_guest_spec: GuestSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result, bundle = run_with(fault, memhp_guest_spec, tmp_path, monkeypatch)
    before, lost = lost_state(bundle)
    [dimm] = [] if isinstance(lost.devices, NotObserved) else lost.devices
    block = load_run(bundle).facts.memory_block_size
    indices = range(dimm.range.start // block, dimm.range.end // block)

    tree, blocks, zones = lost.records.iomem, lost.records.blocks, lost.records.zones
    assert not isinstance(tree, NotObserved) and not isinstance(blocks, NotObserved)
    assert [entry.name for entry in tree if entry.range == dimm.range] == ["System RAM"]
    assert {one.state for one in blocks if one.index in indices} == {"offline"}
    assert zones == before.memory_zones or (not isinstance(zones, NotObserved) and any(zone.managed for zone in zones))
    assert not any(isinstance(part, NotObserved) for part in (lost.host_tables, lost.sections, lost.records.vmstat))
    text = (bundle / "states" / "002" / "lost" / "host_log.txt").read_text()
    assert ("---[ end Kernel panic - not syncing: sysrq triggered crash ]---" in text) == (fault is panics)

    first, *rest = indices
    changes = (
        f"iomem + {dimm.range} : System RAM",
        f"memory{first}-{rest[-1]} absent → offline" if rest else f"memory{first} absent → offline",
    )
    online = sum(one.state == "online" for one in blocks)
    summary = f"read from its memory afterwards: memory blocks {len(indices)} offline, {online} online"
    notes = (bundle / "notes.txt").read_text()
    assert f"step 2: {summary}\n" in notes and all(f"\n{change}\n" in notes for change in changes)
    if fault is panics:
        assert (result.verdict, "LOG-1" in result.reason) == (Verdict.FAIL, True)
        assert result.steps[-1].changes[0] == summary and set(changes) < set(result.steps[-1].changes)
    else:
        assert result.verdict is Verdict.INFRA
        assert f"; {summary} (states/002/lost)" in result.reason
    # What did not run is not resumed.
    status = "paused" if fault is stands_still else "running"
    assert f"VM status: {status}" in (bundle / "monitor.txt").read_text()
    assert disagreements(result, bundle) == []
    assert main(["ptdump", str(bundle / "states" / "002" / "lost")]) == 0
    assert "Linear" in capsys.readouterr().out


@pytest.mark.either_arch
def test_a_reset_leaves_no_state_of_the_kernel(
    memhp_guest_spec: GuestSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, bundle = run_with(is_reset, memhp_guest_spec, tmp_path, monkeypatch)
    assert result.verdict is Verdict.INFRA and "(the machine was reset" in result.reason
    _, lost = lost_state(bundle)
    assert isinstance(lost.records.iomem, NotObserved) and "was reset" in lost.records.iomem.reason
    assert disagreements(result, bundle) == []


def test_a_server_that_dies_of_a_signal_is_told(
    memhp_guest_spec: GuestSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, bundle = run_with(server_dies, memhp_guest_spec, tmp_path, monkeypatch)
    assert result.verdict is Verdict.INFRA
    assert "dropbear: potentially unexpected fatal signal 11." in result.reason
    assert disagreements(result, bundle) == []


@pytest.mark.either_arch
def test_what_only_the_log_of_a_lost_kernel_says_is_found(
    memhp_guest_spec: GuestSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, bundle = run_with(dies_in_silence, memhp_guest_spec, tmp_path, monkeypatch)
    assert "WARNING:" not in (bundle / "console.log").read_text(errors="replace")
    assert (result.verdict, result.reason) == (Verdict.FAIL, "step 2 (check): LOG-1 broken")
    [broken] = [check for check in result.steps[-1].checks if check.status == "fail"]
    [finding] = broken.findings
    assert "at mm/memory_hotplug.c:1" in finding.observed and result.steps[-1].note.startswith("gave up after")
    assert result.steps[-1].note.endswith("; the console lacks what is in the kernel's log")
    assert disagreements(result, bundle) == []
