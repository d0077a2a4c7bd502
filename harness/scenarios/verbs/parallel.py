# SPDX-License-Identifier: GPL-2.0-or-later
"""Parallel actions with one common outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from harness.deadline import Deadline
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session

#: one action: its title and what does it
Branch = tuple[str, Callable[[Session, Deadline], Outcome]]


@dataclass(frozen=True, slots=True)
class _Done:
    title: str
    outcome: Outcome
    started: float
    ended: float


def side_by_side(branches: Sequence[Branch]) -> Callable[[Session, Deadline], Outcome]:
    """One piece of work that does all ``branches`` at the same time and ends with the last of them.

    An error of one is raised once all have ended.
    """

    def work(session: Session, deadline: Deadline) -> Outcome:
        def one(branch: Branch) -> _Done:
            started = time.monotonic()
            outcome = branch[1](session, deadline)
            return _Done(branch[0], outcome, started, time.monotonic())

        with ThreadPoolExecutor(len(branches), thread_name_prefix="memhp-step") as pool:
            futures = [pool.submit(one, branch) for branch in branches]
        return joined([future.result() for future in futures])

    return work


def joined(parts: Sequence[_Done]) -> Outcome:
    """The outcome that stands for all: done if every one is, else the first that is not."""
    outcome = Outcome(pending=any(part.outcome.pending for part in parts))
    for part in parts:
        outcome.unplugs += part.outcome.unplugs
        outcome.resizes += part.outcome.resizes
        outcome.touches += part.outcome.touches
        if part.outcome.ending != "done":
            outcome.refuse(f"{part.title}: {part.outcome.note}", part.outcome.ending)
    both = min(part.ended for part in parts) - max(part.started for part in parts)
    if both <= 0:
        outcome.inconclusive = "no overlap: one had ended before another began"
    if outcome.ending == "done":
        told = [f"{part.title} {part.ended - part.started:.2f} s" for part in parts]
        outcome.note = f"{', '.join(told)}; all at once for {max(both, 0.0):.2f} s"
    return outcome
