# SPDX-License-Identifier: GPL-2.0-or-later
"""From checks to verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.check import CheckResult, Evidence, Finding, Verdict, run_all
from harness.model.memory import MemoryModel
from harness.scenarios.dumps import dump_findings
from harness.scenarios.outcome import Outcome
from harness.scenarios.sameness import unchanged, with_findings
from harness.scenarios.soak import leaks
from harness.state import GuestState

_RANK = (Verdict.PASS, Verdict.SKIPPED, Verdict.REFUSED, Verdict.INFRA, Verdict.FAIL)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict that stands for several: FAIL before INFRA before REFUSED before SKIPPED before PASS."""
    return max(verdicts, key=_RANK.index, default=Verdict.PASS)


def check_step(
    model: MemoryModel, outcome: Outcome, state: GuestState, title: str, before: GuestState | None = None
) -> tuple[CheckResult, ...]:
    """Run every invariant that applies to one step; an action that failed must have left the state of ``before``."""
    checks = tuple(run_all(evidence_of(model, outcome, state), title))
    checks = with_findings(checks, leaks(outcome.slopes, title))
    checks = with_findings(checks, dump_findings(outcome.dumps, state, title))
    if outcome.ending == "failed" and before is not None:
        checks = with_findings(checks, unchanged(before, state, title))
    return checks


def evidence_of(model: MemoryModel, outcome: Outcome, state: GuestState) -> Evidence:
    """All that is known of a step after which the model is as it is now."""
    return Evidence(
        layout=model.layout,
        expected=model.expected(),
        observed=state,
        unplugs=tuple(outcome.unplugs),
        resizes=tuple(outcome.resizes),
        touches=tuple(outcome.touches),
    )


def death(outcome: Outcome, title: str) -> tuple[CheckResult, ...]:
    """LOG-1 for a kernel that died: its console is all there is to see of it."""
    findings = tuple(
        Finding("LOG-1", "console", "no alarming line", text, "serial console", title) for text in outcome.alarms
    )
    return (CheckResult("LOG-1", "fail", findings),)


def judge(
    checks: Sequence[CheckResult], expect: str, outcome: Outcome, breaks: Iterable[str] = ()
) -> tuple[Verdict, str]:
    """The verdict of a step and the note that explains it.

    ``expect`` is the ending the scenario wants. A broken invariant makes the step FAIL in any case; a refusal that
    was not wanted makes it REFUSED; an action that must be refused but was done is FAIL for the guest, INFRA for QEMU.
    ``breaks`` are the invariants that a known bug of the kernel breaks: all of them and no others may be broken then. A
    kernel that breaks none has the bug no more. A step that proves nothing is INFRA.
    """
    broken, known = {result.invariant for result in checks if result.status == "fail"}, set(breaks)
    if broken and broken != known:
        return Verdict.FAIL, outcome.note
    if outcome.useless:
        return Verdict.INFRA, outcome.useless
    verdict, note = _ended(expect, outcome)
    if verdict is Verdict.PASS and known:
        said = f"known kernel bug: breaks {', '.join(sorted(known))}" if broken else "this kernel has not the known bug"
        note = f"{note}; {said}" if note else said
    return verdict, note


def _ended(expect: str, outcome: Outcome) -> tuple[Verdict, str]:
    if outcome.ending == expect:
        return Verdict.PASS, outcome.note
    if outcome.ending == "done":
        if expect == "qemu-refused":
            return Verdict.INFRA, "QEMU accepted what it must refuse"
        return Verdict.FAIL, "the guest did what it must refuse"
    return Verdict.REFUSED, outcome.note
