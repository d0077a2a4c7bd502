# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest whose watchdogs expire because the host did not let QEMU run gets no verdict, nor does its bundle."""

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
from harness.scenarios.file import read_scenario
from harness.scenarios.outcome import Outcome
from harness.scenarios.recheck import recheck
from harness.scenarios.reporter import SilentReporter
from harness.scenarios.run_options import RunOptions
from harness.scenarios.runner import run_scenarios
from harness.scenarios.session import Session
from harness.scenarios.verbs.reboot import CheckVerb

pytestmark = [pytest.mark.memhp_guest, pytest.mark.either_arch, pytest.mark.long]

#: seconds: a CPU is reported that did not run its watchdog for twice as long (kernel/watchdog.c)
THRESHOLD = 10
STOPPED = 45.0


def test_a_soft_lockup_of_a_stopped_qemu_is_the_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(verb: CheckVerb, session: Session, deadline: Deadline) -> Outcome:
        pid, console = session.guest.machine.pid, session.guest.console
        since = console.mark
        os.kill(pid, signal.SIGSTOP)
        # Nothing is to happen meanwhile.
        threading.Event().wait(STOPPED)
        os.kill(pid, signal.SIGCONT)
        console.wait_line("soft lockup - CPU#", deadline, since=since)
        return Outcome()

    monkeypatch.setattr(CheckVerb, "run", stopped)
    (tmp_path / "starved.yaml").write_text("name: starved\nsteps:\n  - check: {}\n")
    # Debian's kernel has the watchdog, the purpose-built one has not.
    spec = dataclasses.replace(GuestSpec.default("arm64"), kernel="debian", cmdline=f"watchdog_thresh={THRESHOLD}")
    options = RunOptions(bundle_dir=tmp_path / "bundles", timeout=240.0)
    [result] = run_scenarios([read_scenario(tmp_path / "starved.yaml")], spec, options, SilentReporter())
    assert result.verdict is Verdict.INFRA, result.reason
    assert "QEMU was stopped for" in result.reason and "soft lockup" in result.reason
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
