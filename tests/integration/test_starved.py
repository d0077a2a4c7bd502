# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest whose watchdog expires because the host did not let QEMU run gets no verdict, nor does its bundle."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
from pathlib import Path

import pytest

from harness.check import Verdict
from harness.config.guest import GuestSpec
from harness.deadline import Deadline
from harness.scenarios.boot import Parts
from harness.scenarios.file import read_scenario
from harness.scenarios.outcome import Outcome
from harness.scenarios.recheck import recheck
from harness.scenarios.reporter import SilentReporter
from harness.scenarios.run_options import RunOptions
from harness.scenarios.runner import run_scenarios
from harness.scenarios.session import Session
from harness.scenarios.verbs.reboot import CheckVerb

pytestmark = [pytest.mark.memhp_guest, pytest.mark.either_arch, pytest.mark.long]

#: seconds: a grace period of RCU that takes longer is a stall (rcupdate.rcu_cpu_stall_timeout); the guest is stopped;
#: QEMU's threads are looked at every five
STALL, STOPPED = 16, 20.0
#: processes that end leave work for the next grace period, so that one is always in progress
BUSY = "for n in 1 2 3 4; do (while :; do /bin/true; done) </dev/null >/dev/null 2>&1 & echo $!; done"


def test_an_rcu_stall_of_a_stopped_qemu_is_the_hosts(
    tmp_path: Path, memhp_guest_spec: GuestSpec, memhp_artifacts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(verb: CheckVerb, session: Session, deadline: Deadline) -> Outcome:
        guest = session.guest
        loops = guest.shell.run(BUSY, deadline=deadline).text.split()
        since = guest.console.mark
        os.kill(guest.machine.pid, signal.SIGSTOP)
        # Nothing is to happen meanwhile.
        threading.Event().wait(STOPPED)
        os.kill(guest.machine.pid, signal.SIGCONT)
        guest.console.wait_line("INFO: rcu_.* stall", deadline, since=since)
        guest.shell.run(f"kill {' '.join(loops)}; wait", deadline=deadline)
        return Outcome()

    monkeypatch.setattr(CheckVerb, "run", stopped)
    (tmp_path / "starved.yaml").write_text("name: starved\nsteps:\n  - check: {}\n")
    spec = dataclasses.replace(memhp_guest_spec, cmdline=f"rcupdate.rcu_cpu_stall_timeout={STALL}")
    options = RunOptions(bundle_dir=tmp_path / "bundles", timeout=120.0, start="cold")
    [result] = run_scenarios([read_scenario(tmp_path / "starved.yaml")], spec, options, SilentReporter())
    assert result.verdict is Verdict.INFRA, result.reason
    assert "QEMU was stopped for" in result.reason and "rcu" in result.reason
    assert result.bundle is not None
    again = recheck(result.bundle)
    assert (again.verdict, again.steps[-1].note) == (Verdict.INFRA, result.steps[-1].note)
    # Without the figures, it is the kernel's.
    step = result.bundle / "states" / "001" / "step.json"
    value = json.loads(step.read_text())
    value["outcome"]["host"] = []
    step.write_text(json.dumps(value))
    red = recheck(result.bundle)
    assert [check.invariant for check in red.steps[-1].checks if check.status == "fail"] == ["LOG-1"]
