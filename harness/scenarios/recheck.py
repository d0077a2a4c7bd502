# SPDX-License-Identifier: GPL-2.0-or-later
"""Check a saved run again, without a VM."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.check import Verdict
from harness.check.bugs import NAME as BUGS
from harness.check.patterns import limited
from harness.errors import UsageError
from harness.model.actions import Reboot
from harness.model.booted import booted_model, plugged_devices
from harness.parsers.notes import summed
from harness.scenarios.changes import describe_changes, describe_death, describe_lost
from harness.scenarios.outcome import Outcome
from harness.scenarios.record import RecordedRun, RunEnding, load_details, load_ending, load_run, was_seen
from harness.scenarios.result import FINE, RunResult, StepResult
from harness.scenarios.verdict import (
    ExpectedBugs,
    evaluate,
    look_of,
    never_observed,
    step_result,
    titles,
    unfinished,
    worst,
)
from harness.state import Unknown

#: seconds of CPU time for the regular expressions of a bundle; those of a large one take much less than one
MATCH_SECONDS = 5.0
#: endings of a run that its steps cannot show
_UNPROVEN = (Verdict.INFRA, Verdict.SKIPPED)


def recheck(directory: Path) -> RunResult:
    """Replay a bundle's actions through the model and check every saved snapshot again.

    Raises UsageError if ``directory`` is not a bundle, or if the known bugs in it never come to an end; ParseError if a
    source in it cannot be parsed. To be called in the main thread.
    """
    details, ending = load_details(directory), load_ending(directory)
    if not was_seen(directory) and ending is not None and ending.verdict in _UNPROVEN:
        # The guest never came up.
        return _result(directory, details, *_unproven(ending))
    with limited(MATCH_SECONDS, directory / BUGS):
        return _recheck(directory, details)


def _recheck(directory: Path, details: Mapping[str, Any]) -> RunResult:
    run = load_run(directory)
    with _damaged(directory, 0):
        model = booted_model(run.shape, run.facts, run.boot, run.shape.cold)
    known, started = ExpectedBugs(run.watch), Outcome(host=run.host)
    ruling, checks = evaluate(model, "boot", "done", started, run.boot, run.boot, known, run.demand)
    steps = [step_result(0, "boot", ruling, 0.0, 0.0, checks, look=look_of(run.boot))]
    before = run.boot
    for step in run.steps:
        with _damaged(directory, step.number):
            for action in step.actions:
                if isinstance(action, Reboot):
                    if step.again is None:
                        raise ValueError("nothing was saved of the rebooted guest")
                    model, before = booted_model(run.shape, *step.again, plugged_devices(model)), step.again[1]
                else:
                    model.apply(action)
        known = ExpectedBugs(run.watch, step.bugs)
        ruling, checks = evaluate(
            model, step.title, step.expect, step.outcome, step.state, before, known, run.demand, step.first
        )
        changes: tuple[str, ...] = ()
        if step.state is not None:
            changes = describe_changes(before, step.state, model.layout.kernel)
        else:
            changes = describe_death(step.outcome.trace)
            if step.lost is not None:
                changes += describe_lost(before, step.lost, model.layout.kernel)
        look = look_of(step.state)
        steps.append(step_result(step.number, step.title, ruling, 0.0, 0.0, checks, changes, look=look))
        before = step.state or before
    verdict, reason = _whole(run, steps)
    return dataclasses.replace(
        _result(directory, details, verdict, reason),
        arch=run.shape.arch.name,
        steps=tuple(steps),
        facts={"kernel": run.facts.release, "page_size": run.facts.page_size},
        seed=run.seed,
        unknown=_unknown(run),
        bugs=titles(run.watch, steps),
    )


@contextlib.contextmanager
def _damaged(directory: Path, step: int) -> Iterator[None]:
    """Around what the model is told of a step: anything can be written in a bundle."""
    try:
        yield
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UsageError(f"{directory} is damaged: step {step} cannot have followed ({what[:200]})") from None


def _result(directory: Path, details: Mapping[str, Any], verdict: Verdict, reason: str) -> RunResult:
    """The result of a run without steps."""
    return RunResult(
        scenario=str(details.get("scenario", directory.name)),
        guest=str(details.get("guest", "")),
        arch="",
        verdict=verdict,
        reason=reason,
        hint=None,
        seconds=0.0,
        boot_seconds=0.0,
        steps=(),
        facts={},
        bundle=directory,
        started=str(details.get("started", "")),
        seed=0,
    )


def _unproven(ending: RunEnding) -> tuple[Verdict, str]:
    """What a run without a verdict of its own says about itself."""
    skipped = ending.verdict is Verdict.SKIPPED
    return ending.verdict, ending.reason if skipped else f"the run itself had no verdict: {ending.reason}"


def _whole(run: RecordedRun, steps: Sequence[StepResult]) -> tuple[Verdict, str]:
    """The verdict of all steps; an incomplete bundle or a run without a verdict is never a pass."""
    verdict, last = worst(step.verdict for step in steps), steps[-1].number
    ending, planned = run.ending, run.planned
    ran = last if ending is None or ending.steps is None else ending.steps
    numbers = {step.number for step in steps}
    missing = next((number for number in range(max(ran, last) + 1) if number not in numbers), None)
    if missing is not None:
        cut = Verdict.INFRA, f"the bundle lacks step {missing}"
    elif ending is None and last < planned:
        cut = Verdict.INFRA, f"the run was cut off after step {last} of {planned}"
    elif ending is not None and ending.verdict in _UNPROVEN:
        cut = _unproven(ending)
    elif unseen := run.demand.never(step.checks for step in steps):
        cut = Verdict.INFRA, never_observed(unseen)
    elif left := unfinished(steps):
        cut = Verdict.INFRA, left
    elif ending is not None and worst((verdict, ending.verdict)) is not verdict:
        shown = f"the run itself ended as {ending.verdict.value}, which its bundle does not show: {ending.reason}"
        cut = Verdict.INFRA, shown
    else:
        cut = Verdict.PASS, ""
    skipped = cut[0] is Verdict.SKIPPED and verdict in FINE
    if skipped or worst((verdict, cut[0])) is not verdict:
        return cut
    return verdict, "re-checked from a bundle"


def _unknown(run: RecordedRun) -> tuple[Unknown, ...]:
    """All unknown text in the bundle."""
    groups = [run.facts.unknown, run.boot.unknown]
    for step in run.steps:
        groups += [part.unknown for part in step.again or ()]
        groups += [] if step.state is None else [step.state.unknown]
    return summed(note for notes in groups for note in notes)
