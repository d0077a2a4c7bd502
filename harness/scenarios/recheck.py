# SPDX-License-Identifier: GPL-2.0-or-later
"""Check a saved run again, with no VM."""

from __future__ import annotations

from pathlib import Path

from harness.check import Verdict
from harness.model.actions import Reboot
from harness.model.booted import booted_model, plugged_devices
from harness.parsers.notes import summed
from harness.scenarios.changes import describe_changes
from harness.scenarios.outcome import Outcome
from harness.scenarios.record import RecordedRun, load_run
from harness.scenarios.result import RunResult, StepResult
from harness.scenarios.verdict import Known, check_step, death, judge, step_result, titles, worst
from harness.state import Unknown


def recheck(directory: Path) -> RunResult:
    """Replay a bundle's actions through the model and check every saved snapshot afresh.

    Raises UsageError if ``directory`` is no bundle, ParseError if a source in it cannot be understood.
    """
    run = load_run(directory)
    model = booted_model(run.shape, run.facts, run.boot, run.shape.cold)
    boot_checks, evidence = check_step(model, Outcome(), run.boot, "boot")
    ruling = judge(boot_checks, "done", Outcome(), Known(run.watch), evidence, "boot")
    steps = [step_result(0, "boot", ruling, 0.0, 0.0, boot_checks)]
    before = run.boot
    for step in run.steps:
        for action in step.actions:
            if isinstance(action, Reboot):
                assert step.again is not None
                model = booted_model(run.shape, *step.again, plugged_devices(model))
            else:
                model.apply(action)
        known = Known(run.watch, step.bugs)
        if step.outcome.alarms:
            checks = death(step.outcome, step.title)
            ruling = judge(checks, step.expect, step.outcome, known, title=step.title)
            steps.append(step_result(step.number, step.title, ruling, 0.0, 0.0, checks))
            continue
        if step.state is None:
            steps.append(StepResult(step.number, step.title, Verdict.PASS, 0.0, 0.0, (), step.outcome.note))
            continue
        checks, evidence = check_step(model, step.outcome, step.state, step.title, before)
        ruling = judge(checks, step.expect, step.outcome, known, evidence, step.title)
        changes = describe_changes(before, step.state)
        steps.append(step_result(step.number, step.title, ruling, 0.0, 0.0, checks, changes))
        before = step.state
    return RunResult(
        scenario=str(run.details.get("scenario", directory.name)),
        guest=str(run.details.get("guest", "")),
        arch=run.shape.arch.name,
        verdict=worst(step.verdict for step in steps) if steps else Verdict.INFRA,
        reason="re-checked from a bundle",
        hint=None,
        seconds=0.0,
        boot_seconds=0.0,
        steps=tuple(steps),
        facts={"kernel": run.facts.release, "page_size": run.facts.page_size},
        bundle=directory,
        started=str(run.details.get("started", "")),
        seed=int(run.details.get("seed", 0)),
        unknown=_unknown(run),
        bugs=titles(run.watch, steps),
    )


def _unknown(run: RecordedRun) -> tuple[Unknown, ...]:
    """What of all the saved text memhp does not know."""
    found = [run.facts.unknown, run.boot.unknown]
    for step in run.steps:
        found += [part.unknown for part in step.again or ()]
        found += [] if step.state is None else [step.state.unknown]
    return summed(note for notes in found for note in notes)
