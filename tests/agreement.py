# SPDX-License-Identifier: GPL-2.0-or-later
"""A run and ``memhp check`` of the bundle that it left come to the same verdict, step by step."""

from __future__ import annotations

from pathlib import Path

from harness.check import Verdict
from harness.errors import InfraError
from harness.scenarios.recheck import recheck
from harness.scenarios.result import RunResult

_SAME = ("number", "title", "verdict", "note", "checks", "changes", "bugs", "unseen", "look")


def disagreements(run: RunResult, bundle: Path) -> list[str]:
    """What the check of ``bundle`` sees differently from its ``run``; [] if nothing."""
    try:
        again = recheck(bundle)
    except InfraError as error:
        # Nobody can read a snapshot's text, neither then nor now.
        return [] if run.verdict is Verdict.INFRA else [f"verdict: {run.verdict.value}, then {error}"]
    found = [] if again.verdict is run.verdict else [f"verdict: {run.verdict.value}, then {again.verdict.value}"]
    if len(run.steps) != len(again.steps):
        found.append(f"steps: {len(run.steps)}, then {len(again.steps)}: {again.reason}")
    for then, now in zip(run.steps, again.steps, strict=False):
        for name in _SAME:
            # Only the run knows how its guest started.
            if getattr(then, name) != getattr(now, name) and (name, then.number) != ("note", 0):
                found.append(f"step {then.number}, {name}: {getattr(then, name)!r}, then {getattr(now, name)!r}")
    return found
