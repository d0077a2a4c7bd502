# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults in the harness's environment, on a real guest: the right verdict and exit status in time, a bundle, and no
other leftovers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from agreement import disagreements
from leftovers import World

from harness.report.json import load_results

pytestmark = [pytest.mark.memhp_guest, pytest.mark.either_arch]

FAULTY = [sys.executable, str(Path(__file__).with_name("faulty.py"))]
#: timeout in seconds for the boot and each step in these tests; a step with an injected fault gets 8 or 20 (faulty.py)
LIMIT = 240

SCENARIO = """
name: faulty
steps:
  - check: {}
  - check: {}
"""


@dataclass(frozen=True)
class Expected:
    """How a run with a fault ends; its output contains ``says``."""

    status: int
    verdict: str
    says: str


EXPECTED = {
    "none": Expected(0, "pass", ""),
    "qemu-killed": Expected(3, "infra", "QEMU was killed by SIGKILL"),
    "qemu-frozen": Expected(3, "infra", "gave up after"),
    "qmp-closed": Expected(3, "infra", "lost QEMU"),
    "qmp-stalled": Expected(3, "infra", "gave up after"),
    "panic": Expected(1, "fail", "LOG-1"),
    "hang": Expected(3, "infra", "gave up after"),
    "oom-kill": Expected(0, "pass", ""),
    "oom-deadlock": Expected(3, "infra", ""),
    "dropbear-killed": Expected(3, "infra", "lost the guest"),
    "reboot": Expected(3, "infra", "rebooted"),
    "network-stalled": Expected(3, "infra", "gave up after"),
    "clock-jump": Expected(0, "pass", ""),
    "console-flood": Expected(0, "pass", ""),
    "garbage": Expected(3, "infra", "printed more than"),
    "agent-killed": Expected(0, "pass", ""),
    "agent-ended": Expected(3, "infra", "the guest agent exited while it ran"),
    "agent-stalled": Expected(3, "infra", "gave up after"),
}


#: other faults cover the same code paths in less time
LONG = {"qmp-stalled", "network-stalled", "oom-deadlock", "oom-kill"}
assert set(EXPECTED) > LONG


@dataclass(frozen=True)
class Ended:
    """A finished run of memhp."""

    status: int
    seconds: float
    out: str
    run: dict[str, object]
    bundle: Path | None


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def run_with(fault: str, world: World, guest: list[str], *words: str, limit: int = LIMIT) -> Ended:
    (world.root / "faulty.yaml").write_text(SCENARIO)
    argv = [*FAULTY, fault, "run", "faulty.yaml", *guest, "--timeout", str(limit)]
    argv += ["--json", "out.json", "--bundle-dir", "bundles", *words]
    environment = world.environment
    started = time.monotonic()
    done = subprocess.run(argv, env=environment, cwd=world.root, capture_output=True, text=True, timeout=1800)
    seconds, report = time.monotonic() - started, world.root / "out.json"
    out = done.stdout + done.stderr
    run = json.loads(report.read_text())["runs"][0] if report.exists() else {}
    bundles = sorted((world.root / "bundles").glob("*")) if (world.root / "bundles").is_dir() else []
    return Ended(done.returncode, seconds, out, run, bundles[-1] if bundles else None)


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=[pytest.mark.long] if fault in LONG else []) for fault in EXPECTED]
)
def test_a_fault_ends_in_its_verdict_and_leaves_nothing(
    fault: str, world: World, guest: list[str], record_fault: Callable[..., None]
) -> None:
    expected = EXPECTED[fault]
    ended = run_with(fault, world, guest)
    record_fault(fault, guest[1], ended.status, ended.run.get("verdict"), f"{ended.seconds:.1f}")
    assert (ended.status, ended.run["verdict"]) == (expected.status, expected.verdict), ended.out
    assert expected.says in ended.out
    assert "internal error" not in ended.out and "Traceback" not in ended.out
    # No wait exceeds the deadline of one step, however busy the machine is.
    assert ended.seconds - cast(float, ended.run["boot_seconds"]) < LIMIT
    assert ended.bundle is not None
    kept = {path.name for path in ended.bundle.iterdir()}
    assert {"argv.txt", "console.log", "qmp.jsonl", "run.json", "scenario.yaml", "states"} <= kept
    if fault.startswith("oom"):
        assert "invoked oom-killer" in (ended.bundle / "console.log").read_text(errors="replace")
    if fault in ("hang", "network-stalled"):
        report = (ended.bundle / "monitor.txt").read_text()
        assert f"VM status: {'paused' if fault == 'hang' else 'running'}" in report and "(no answer: " not in report
        assert "shadow_avail_idx" in report and "TCP[ESTABLISHED]" in report
        # A paused guest says nothing more.
        console = (ended.bundle / "console.log").read_text(errors="replace")
        assert ("sysrq: Show Blocked State" in console) == (fault == "network-stalled")
    assert sum(path.stat().st_size for path in ended.bundle.rglob("*") if path.is_file()) < 400 << 20
    [run] = load_results(world.root / "out.json")
    assert disagreements(run, ended.bundle) == []
    world.assert_clean()
