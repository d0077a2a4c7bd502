# SPDX-License-Identifier: GPL-2.0-or-later
"""Counting over runs: invariants, verdicts, the exit status."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from harness.check import CATALOGUE, CheckResult, Finding, Verdict
from harness.report.text import WORDS
from harness.scenarios.result import FINE, RunResult

#: verdicts, the most urgent first
_URGENCY = (Verdict.FAIL, Verdict.INFRA, Verdict.REFUSED, Verdict.KNOWN, Verdict.PASS, Verdict.SKIPPED)


@dataclass
class Tally:
    """How often one invariant passed, failed, was broken only by known bugs, and could not be observed.

    ``reasons`` say why it was not observed, ``notes`` which of several sources were used, in order of appearance.
    """

    passed: int = 0
    failed: int = 0
    known: int = 0
    not_observed: int = 0
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def count(self, check: CheckResult, verdict: Verdict) -> None:
        """Add one result of a step that ended with ``verdict``."""
        if check.status == "pass":
            self.passed += 1
        elif check.status == "fail" and verdict is Verdict.KNOWN:
            self.known += 1
        elif check.status == "fail":
            self.failed += 1
        else:
            self.not_observed += 1
            if check.reason not in self.reasons:
                self.reasons.append(check.reason)
        if check.note and check.note not in self.notes:
            self.notes.append(check.note)


def tally(runs: Iterable[RunResult]) -> dict[str, Tally]:
    """Every invariant that was checked at least once, in catalogue order."""
    counts: dict[str, Tally] = {}
    for run in runs:
        for step in run.steps:
            for check in step.checks:
                counts.setdefault(check.invariant, Tally()).count(check, step.verdict)
    order = {name: number for number, name in enumerate(CATALOGUE)}
    return dict(sorted(counts.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


def findings(run: RunResult) -> tuple[Finding, ...]:
    """Every finding of a run, step by step, except those of steps that only reproduced known bugs."""
    return tuple(
        finding
        for step in run.steps
        if step.verdict is not Verdict.KNOWN
        for check in step.checks
        for finding in check.findings
    )


def overall(runs: Sequence[RunResult], named: bool = False, missing: bool = False) -> Verdict:
    """The most urgent verdict; INFRA if nothing ran, or if a planned run is ``missing`` and no other is worse.

    Of scenarios that the user ``named``, none may be skipped.
    """
    seen = {run.verdict for run in runs}
    if missing and seen <= FINE:
        return Verdict.INFRA
    if named and Verdict.SKIPPED in seen and seen <= FINE:
        return Verdict.SKIPPED
    return next((verdict for verdict in _URGENCY if verdict in seen), Verdict.INFRA)


def verdict_counts(runs: Sequence[RunResult]) -> list[str]:
    """How many runs had each verdict: ``3 passed``, ``1 FAIL``."""
    return [
        f"{count} {WORDS[kind] if kind is not Verdict.PASS else 'passed'}"
        for kind in Verdict
        if (count := sum(run.verdict is kind for run in runs))
    ]


def exit_status(runs: Sequence[RunResult], named: bool = False, missing: bool = False) -> int:
    """The exit status of ``memhp run``.

    0: all runs passed, reproduced only known bugs, or were skipped. 1: an invariant is broken. 2: everything was
    skipped, or one of the scenarios that the user ``named``. 3: no verdict, because the harness failed, the guest
    refused what a scenario needs, or a planned run is ``missing``.
    """
    statuses = {Verdict.PASS: 0, Verdict.KNOWN: 0, Verdict.FAIL: 1, Verdict.SKIPPED: 2}
    return statuses.get(overall(runs, named, missing), 3)
