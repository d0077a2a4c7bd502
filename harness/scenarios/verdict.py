# SPDX-License-Identifier: GPL-2.0-or-later
"""From checks to verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from harness.check import CATALOGUE, CheckResult, Evidence, Verdict, run_all
from harness.check.bugs import KnownBug
from harness.check.known import Explained, Watch, died_of, ended_by, explain, hung_in, log_lines
from harness.check.patterns import matches
from harness.check.required import Demand
from harness.check.starvation import starving
from harness.model.memory_model import MemoryModel
from harness.scenarios.memorymap import MemoryMap
from harness.scenarios.outcome import Outcome
from harness.scenarios.refused import explained, other_refusal
from harness.scenarios.result import StepResult
from harness.state import GuestState, NotObserved

T = TypeVar("T")

_RANK = (Verdict.PASS, Verdict.SKIPPED, Verdict.KNOWN, Verdict.REFUSED, Verdict.INFRA, Verdict.FAIL)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of several verdicts, in the order FAIL, INFRA, REFUSED, KNOWN, SKIPPED, PASS."""
    return max(verdicts, key=_RANK.index, default=Verdict.PASS)


def evidence_of(model: MemoryModel, outcome: Outcome, state: GuestState, before: GuestState | None = None) -> Evidence:
    """The evidence of a step that led to the model's current state; ``before`` is the previous snapshot."""
    return Evidence(
        layout=model.layout,
        expected=model.expected(),
        observed=state,
        unplugs=tuple(outcome.unplugs),
        resizes=tuple(outcome.resizes),
        touches=tuple(outcome.touches),
        offlines=tuple(outcome.offlines),
        dumps=outcome.dumps,
        slopes=outcome.slopes,
        unread=outcome.unread,
        alarms=outcome.alarms,
        host=outcome.host,
        failed=outcome.ending == "failed",
        before=None if before is state else before,
    )


def evaluate(
    model: MemoryModel,
    title: str,
    expect: str,
    outcome: Outcome,
    state: GuestState | None,
    before: GuestState,
    known: ExpectedBugs | None = None,
    demand: Demand | None = None,
    first: GuestState | None = None,
) -> tuple[Ruling, tuple[CheckResult, ...]]:
    """Judge one step, in a live run and when a bundle is checked again: its verdict, and the result of each invariant.

    ``state`` is the snapshot after it, ``before`` the one before it; ``state`` is None if the step left the guest
    working or the kernel died (``outcome.alarms``). ``expect`` is the expected ending. A step that lacks what had to be
    observed (``demand``) proves nothing (INFRA), unless it is FAIL anyway. ``first`` is the fast look for whose sake
    ``state``, a full one, was taken just after it: what it found stays found.
    """
    if state is None and not outcome.alarms:
        ruling = _hung(title, outcome, known) or judge((), expect, outcome)
        if ruling.verdict is Verdict.PASS and not outcome.pending:
            ruling = replace(ruling, verdict=Verdict.INFRA, note=_joined(ruling.note, "nobody looked after it"))
        return ruling, ()
    seen = before if state is None else state if first is None else _with_log_of(first, state)
    evidence = evidence_of(model, outcome, seen, before)
    if known is not None and _lost_in(known.watch.possible, title, outcome) is not None:
        # A known bug explains it, whatever the host did.
        evidence = replace(evidence, host=())
    checks, gone = tuple(run_all(evidence, title)), ""
    if first is not None and state is not None:
        checks, gone = _with_findings_of(tuple(run_all(replace(evidence, observed=first), title)), checks)
    ruling = judge(checks, expect, outcome, known, evidence, title)
    ruling = replace(ruling, note=_joined(ruling.note, gone))
    unmet = (demand or Demand()).unmet(checks, model.layout, evidence.observed)
    if unmet and ruling.verdict is not Verdict.FAIL:
        note = _joined(ruling.note, f"not observed, though it could have been: {', '.join(unmet)}")
        ruling = replace(ruling, verdict=Verdict.INFRA, note=note)
    return ruling, checks


def _with_log_of(first: GuestState, state: GuestState) -> GuestState:
    """``state`` with the lines of the log and the alarms that were new in the look just before it, ``first``."""

    def both(early: tuple[T, ...] | NotObserved, late: tuple[T, ...] | NotObserved) -> tuple[T, ...] | NotObserved:
        if isinstance(early, NotObserved) or isinstance(late, NotObserved):
            return early if isinstance(early, NotObserved) else late
        return (*early, *late)

    return replace(
        state,
        dmesg=both(first.dmesg, state.dmesg),
        console=both(first.console, state.console),
        dmesg_lost=first.dmesg_lost or state.dmesg_lost,
        records=replace(
            state.records,
            log=both(first.records.log, state.records.log),
            log_lost=first.records.log_lost or state.records.log_lost,
        ),
    )


def _with_findings_of(early: Sequence[CheckResult], late: Sequence[CheckResult]) -> tuple[tuple[CheckResult, ...], str]:
    """The results of a full look, with what only the fast one before it found broken; and a note of that."""
    found = {check.invariant: check for check in late}
    failed = {check.invariant for check in late if check.status == "fail"}
    gone = {check.invariant: check for check in early if check.status == "fail" and check.invariant not in failed}
    found |= gone
    note = f"the full look just after it did not show it any more: {', '.join(gone)}" if gone else ""
    return tuple(found[id] for id in CATALOGUE if id in found), note


def look_of(state: GuestState | None) -> str:
    """How the look ``state`` was taken, as in StepResult."""
    return "" if state is None else "fast" if state.left_out else "full"


def unfinished(steps: Sequence[StepResult]) -> str:
    """Why a run proves nothing that does not end with a full look at a guest that has finished; else ""."""
    last = steps[-1] if steps else None
    if last is None:
        return ""
    if last.verdict is Verdict.PASS and not last.checks:
        return f"step {last.number} ({last.title}) left the guest working, and nobody looked after it"
    return f"the look after step {last.number}, the last one, was fast" if last.look == "fast" else ""


def _hung(title: str, outcome: Outcome, known: ExpectedBugs | None) -> Ruling | None:
    """KNOWN for a guest that stopped answering in a known bug, and reported nothing else."""
    if known is None or (bug := hung_in(known.watch.possible, title, outcome.stacks)) is None:
        return None
    return Ruling(Verdict.KNOWN, _joined(outcome.note, _named([bug.id])), (bug.id,), stops=True)


def never_observed(ids: Sequence[str]) -> str:
    """Why a run proves nothing that never observed invariants which it was asked to."""
    return f"required, and observed in no step: {', '.join(ids)}"


@dataclass(frozen=True, slots=True)
class Ruling:
    """The verdict of a step and the note that explains it.

    ``bugs`` are the known bugs that showed, ``unseen`` those named by the step that this kernel has but that did not
    show. ``stops``: no step can follow on this guest.
    """

    verdict: Verdict
    note: str
    bugs: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    stops: bool = False


@dataclass(frozen=True, slots=True)
class ExpectedBugs:
    """Known bugs: the ``watch`` for this kernel, and the bugs that the step ``names``."""

    watch: Watch = field(default_factory=Watch)
    names: tuple[str, ...] = ()


def titles(watch: Watch, steps: Iterable[StepResult]) -> dict[str, str]:
    """The title of each known bug that showed, or was named and did not show, in ``steps``, by id."""
    ids = dict.fromkeys(id for step in steps for id in (*step.bugs, *step.unseen))
    return {id: watch.standings[id].bug.title for id in ids}


def step_result(
    number: int,
    title: str,
    ruling: Ruling,
    seconds: float,
    guest_seconds: float,
    checks: tuple[CheckResult, ...],
    changes: tuple[str, ...] = (),
    memory: MemoryMap | None = None,
    look: str = "",
) -> StepResult:
    """The result of a step."""
    return StepResult(
        number=number,
        title=title,
        verdict=ruling.verdict,
        seconds=seconds,
        guest_seconds=guest_seconds,
        checks=checks,
        note=ruling.note,
        changes=changes,
        memory=memory,
        bugs=ruling.bugs,
        unseen=ruling.unseen,
        stops=ruling.stops,
        look=look,
    )


def judge(
    checks: Sequence[CheckResult],
    expect: str,
    outcome: Outcome,
    known: ExpectedBugs | None = None,
    evidence: Evidence | None = None,
    title: str = "",
) -> Ruling:
    """The verdict of a step called ``title``.

    ``expect`` is the expected ending. A broken invariant makes the step FAIL, unless all findings are exactly those of
    ``known`` bugs of this kernel (``evidence`` is the checks' input): then it is KNOWN. An unexpected refusal makes it
    REFUSED; compliance where a refusal was expected, or another refusal than the one meant, is FAIL for the guest,
    INFRA for QEMU; each is KNOWN if a known bug ends a step that way. An inconclusive step is INFRA, and so is one in
    which watchdogs of the guest expired because the host did not let it run.
    """
    known = known or ExpectedBugs()
    met: tuple[str, ...] = ()
    failed = [result for result in checks if result.status == "fail"]
    starved = "" if evidence is None else starving(evidence.host)
    if failed:
        explained = _explained(known.watch.possible, checks, outcome, evidence, title)
        met = explained.met
        if explained.rest or not all(result.findings for result in failed):
            like = _explained(known.watch.impossible, checks, outcome, evidence, title)
            return Ruling(Verdict.FAIL, _joined(outcome.note, _beyond(explained, like, known.watch)), met)
        if outcome.alarms:
            return Ruling(Verdict.KNOWN, _joined(outcome.note, _named(met)), met, stops=True)
    if outcome.inconclusive or starved:
        return Ruling(Verdict.INFRA, _joined(outcome.inconclusive or outcome.note, starved), met)
    verdict, note = _ended(expect, outcome, evidence)
    cause = None
    if verdict is not Verdict.PASS and evidence is not None:
        cause = ended_by(known.watch.possible, outcome.ending, title, log_lines(evidence), met)
        if cause is not None and not _ends_all(cause, outcome, log_lines(evidence)):
            cause = None
        # A kernel with a bug may not even notice that it should fail.
        unnoticed = met and outcome.ending == expect and any(not refusal.said for refusal in outcome.refusals)
        if cause is None and not unnoticed:
            return Ruling(verdict, note, met)
        met = tuple(dict.fromkeys((*met, *(() if cause is None else (cause.id,)))))
    if met:
        stops = cause is not None or any(known.watch.standings[id].bug.stops for id in met)
        return Ruling(Verdict.KNOWN, _joined(outcome.note, _named(met)), met, _unseen(known, met), stops)
    missed = _unseen(known, met)
    missing = f"known bug {', '.join(missed)} did not show here" if missed else ""
    return Ruling(verdict, _joined(note, missing), (), missed)


def _ends_all(bug: KnownBug, outcome: Outcome, log: Sequence[str]) -> bool:
    """Whether ``bug``, of which ``log`` has a line, explains every refusal of the step."""
    line = None if bug.ends is None else bug.ends.says
    return line is None or explained(outcome, [text for text in log if matches(line, text)])


def _explained(
    bugs: Sequence[KnownBug], checks: Sequence[CheckResult], outcome: Outcome, evidence: Evidence | None, title: str
) -> Explained:
    if evidence is not None and not outcome.alarms:
        return explain(bugs, checks, evidence)
    bug = _lost_in(bugs, title, outcome)
    findings = tuple(finding for check in checks for finding in check.findings)
    return Explained((), findings) if bug is None else Explained((bug.id,), ())


def _lost_in(bugs: Sequence[KnownBug], title: str, outcome: Outcome) -> KnownBug | None:
    """The bug in which the kernel died or hung, if it did."""
    if not outcome.alarms:
        return None
    return died_of(bugs, outcome.alarms, outcome.trace) or hung_in(bugs, title, outcome.stacks, outcome.alarms)


def _beyond(explained: Explained, like: Explained, watch: Watch) -> str:
    """The note about findings that no bug of this kernel explains; ``like``: as those of other kernels would."""
    if explained.met:
        broken = sorted({finding.invariant for finding in explained.rest})
        return f"beyond the known bug {', '.join(explained.met)}: {', '.join(broken)}"
    if like.rest or not like.met:
        return ""
    whys = "; ".join(f"{id}, which this kernel should not have: {watch.standings[id].why}" for id in like.met)
    return f"exactly the known bug {whys}"


def _unseen(known: ExpectedBugs, met: Sequence[str]) -> tuple[str, ...]:
    standings = known.watch.standings
    return tuple(id for id in known.names if id in standings and standings[id].has and id not in met)


def _named(ids: Sequence[str]) -> str:
    return f"known bug {', '.join(ids)}"


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _ended(expect: str, outcome: Outcome, evidence: Evidence | None) -> tuple[Verdict, str]:
    if outcome.ending == expect:
        return _as_meant(outcome, evidence)
    if outcome.ending == "done":
        if expect == "qemu-refused":
            return Verdict.INFRA, "expected a refusal, but QEMU complied"
        return Verdict.FAIL, "expected a refusal, but the guest complied"
    if outcome.ending == "refused" and outcome.due:
        return Verdict.PASS, f"{outcome.note}: {outcome.due}"
    return Verdict.REFUSED, outcome.note


def _as_meant(outcome: Outcome, evidence: Evidence | None) -> tuple[Verdict, str]:
    """PASS if every refusal is one that ``outcome.says`` means (``refused.other_refusal``).

    Another one by QEMU (out of memory, a misspelt property) proves nothing about the kernel; another one by the guest
    is wrong.
    """
    by_qemu = outcome.ending == "qemu-refused"
    log = () if evidence is None or by_qemu else evidence.observed.dmesg
    other = other_refusal(outcome, () if isinstance(log, NotObserved) else log)
    if other is None:
        return Verdict.PASS, outcome.note
    unread = "" if other or evidence is None else _unread(evidence.observed)
    who = {"qemu-refused": "QEMU refused", "failed": "the guest failed"}.get(outcome.ending, "the guest refused")
    note = f"{who}, but not as meant ({' or '.join(outcome.says)}): {other or unread or 'its log has nothing of it'}"
    return Verdict.INFRA if by_qemu or unread else Verdict.FAIL, note


def _unread(state: GuestState) -> str:
    """Why the log may have had what was not found in it; "" if it may not."""
    return state.dmesg.reason if isinstance(state.dmesg, NotObserved) else state.dmesg_lost
