# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs for the tests of reports: one of each verdict, with text that a hostile guest could print."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from harness.check import CheckResult, Finding, Verdict
from harness.scenarios.result import RunResult, StepResult
from harness.state import Unknown

#: a terminal escape, rich markup, XML, a control character that is illegal in XML, one of C1 (CSI) that is legal there,
#: a right-to-left override
HOSTILE = "\x1b[31m[bold]<x>&\x07\x00\x9b\u202e"
#: what the reader of a CI job's log would obey: GitHub Actions, Azure Pipelines, TeamCity, GitLab
COMMANDS = (
    "::error::forged",
    "  ::set-env name=PATH::/tmp",
    "ok\n::warning file=a.c::forged",
    "x ##[error]forged",
    "###[group]forged",
    "##vso[task.complete result=Succeeded;]DONE",
    "##teamcity[buildStatus status='SUCCESS']",
    "\x1b[0Ksection_start:0:forged[collapsed=true]\r\x1b[0Kforged",
)

PASSED = CheckResult("IOM-1", "pass")
UNSEEN = CheckResult("LIN-1", "not-observed", reason="the kernel has no CONFIG_PTDUMP_DEBUGFS")
BROKEN = CheckResult(
    "BLK-1", "fail", (Finding("BLK-1", f"memory16 {HOSTILE}", "offline", "online", "sysfs", "plug-dimm d 1G"),)
)


def step(number: int, verdict: Verdict = Verdict.PASS, *checks: CheckResult, note: str = "") -> StepResult:
    """A step of one second."""
    changes = ("iomem + 80000000-bfffffff : System RAM", f"changed {HOSTILE}")
    return StepResult(number, f"step {number}", verdict, 1.0, 0.5, checks or (PASSED, UNSEEN), note, changes)


def run(
    verdict: Verdict = Verdict.PASS,
    *steps: StepResult,
    reason: str = "",
    hint: str | None = None,
    bundle: Path | None = None,
) -> RunResult:
    """A run of a minute and a half."""
    return RunResult(
        scenario="dimm-cycle",
        guest="arm64",
        arch="arm64",
        verdict=verdict,
        reason=reason,
        hint=hint,
        seconds=100.0,
        boot_seconds=4.4,
        steps=steps,
        facts={"kernel": "6.12.1", "page_size": 4096, "argv": ("qemu", HOSTILE), "where": Path("/x")},
        bundle=bundle,
        started="2026-11-21T00:00:00+00:00",
        seed=7,
    )


GOOD = run(Verdict.PASS, step(0), step(1))
BAD = run(
    Verdict.FAIL,
    step(0),
    step(1, Verdict.FAIL, PASSED, BROKEN, UNSEEN, note=HOSTILE),
    reason="step 1 (step 1): BLK-1 broken",
    bundle=Path("memhp-runs/1"),
)
UNKNOWN = (
    Unknown("/proc/zoneinfo", "line", "  borrowed: 0", 2),
    Unknown("/proc/zoneinfo", "line", f"  {HOSTILE}", 1),
    Unknown("/proc/slabinfo", "column", "<align>", 1),
)
BAD = dataclasses.replace(BAD, unknown=UNKNOWN)
KNOWN = dataclasses.replace(
    run(Verdict.KNOWN, step(0), dataclasses.replace(step(1, Verdict.KNOWN, PASSED, BROKEN), bugs=("some-bug",))),
    reason="step 1 (step 1): known bug some-bug; steps not done after it: 3",
    bugs={"some-bug": f"a title {HOSTILE}"},
    left=3,
)
MISSED = dataclasses.replace(
    run(Verdict.PASS, step(0), dataclasses.replace(step(1), unseen=("other-bug",))), bugs={"other-bug": "another title"}
)
REFUSED = run(Verdict.REFUSED, step(0), step(1, Verdict.REFUSED, note="the guest keeps d"), reason="step 1: refused")
SKIPPED = run(Verdict.SKIPPED, reason="debian has no CONFIG_X", hint="build the kernel with it")
INFRA = run(Verdict.INFRA, step(0), reason="QEMU died", hint="see qemu.stderr", bundle=Path("memhp-runs/2"))
