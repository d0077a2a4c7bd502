# SPDX-License-Identifier: GPL-2.0-or-later
"""The results for kernels with real bugs put back, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence

from harness import __version__
from harness.selftest.kernel_trials import ALARM, GREEN, MISNAMED, MISSED, NAMED, NO_VERDICT, SOURCE, KernelTrial
from harness.selftest.putback import KernelBug

FORMAT = "memhp-selftest-kernels"
VERSION = 1


def exit_status(trials: Sequence[KernelTrial]) -> int:
    """0: all bugs named, the clean kernel green. 1: a bug was missed or misnamed, or the clean kernel was red.

    3: nothing was tried, or a trial got no verdict.
    """
    statuses = {trial.status for trial in trials}
    if statuses & {MISSED, MISNAMED, ALARM}:
        return 1
    return 0 if NAMED in statuses and NO_VERDICT not in statuses else 3


def line_of(trial: KernelTrial) -> str:
    """One trial as text."""
    took = f"built in {trial.built:.1f} s, ran {trial.ran:.1f} s"
    start = f"{trial.arch} {trial.kernel}"
    if trial.bug is None:
        said = "passes" if trial.status == GREEN else trial.status.upper() + " in"
        why = "" if trial.status == GREEN else f": {trial.reason}"
        return f"{start}: the clean kernel {said} {trial.scenario}{why}; {took}"
    if trial.status == NAMED:
        return f"{start}: {trial.bug.name} named by {_where(trial)}; {took}"
    if trial.status == MISNAMED:
        wanted = ", ".join(trial.bug.named_by)
        return f"{start}: {trial.bug.name} MISNAMED: expected {wanted}, found {_where(trial)}; {took}"
    names = ", ".join(scenario.name for scenario in trial.bug.scenarios)
    if trial.status == MISSED:
        return f"{start}: {trial.bug.name} MISSED: {names} passed; {took}; {trial.image}"
    return f"{start}: {trial.bug.name} NO VERDICT in {trial.scenario}: {trial.reason}; {took}"


def _where(trial: KernelTrial) -> str:
    return f"{', '.join(trial.broken)} in {trial.scenario}, step {trial.number} ({trial.step})"


def score(trials: Sequence[KernelTrial]) -> list[str]:
    """Per architecture, how many bugs were named, and whether the clean kernel was green."""
    lines = []
    for arch in dict.fromkeys(trial.arch for trial in trials):
        own = [trial for trial in trials if trial.arch == arch]
        bugs = [trial for trial in own if trial.bug is not None]
        clean = [trial for trial in own if trial.bug is None]
        named, green = (sum(trial.status == status for trial in own) for status in (NAMED, GREEN))
        seconds = sum(trial.built + trial.ran for trial in own)
        lines.append(
            f"{arch}: {named}/{len(bugs)} real bugs named, the clean kernel green in {green}/{len(clean)} scenarios; "
            f"{seconds:.0f} s"
        )
    return lines


def describe_bug(bug: KernelBug) -> dict[str, object]:
    """A bug as JSON."""
    return {
        "name": bug.name,
        "takes_back": bug.takes_back,
        "part": bug.part,
        "breaks": bug.breaks,
        "arches": list(bug.arches),
        "cpu": bug.cpu,
        "scenarios": [scenario.name for scenario in bug.scenarios],
        "named_by": list(bug.named_by),
        "file": str(bug.source),
    }


def kernels_to_json(trials: Sequence[KernelTrial]) -> dict[str, object]:
    """All trials; ``bug`` is null for those of the clean kernel."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "memhp": __version__,
        "source": SOURCE,
        "trials": [
            {
                "arch": trial.arch,
                "kernel": trial.kernel,
                "bug": None if trial.bug is None else describe_bug(trial.bug),
                "status": trial.status,
                "scenario": trial.scenario,
                "step": trial.number,
                "title": trial.step,
                "broken": list(trial.broken),
                "reason": trial.reason,
                "image": trial.image,
                "built_seconds": round(trial.built, 3),
                "run_seconds": round(trial.ran, 3),
            }
            for trial in trials
        ],
    }
