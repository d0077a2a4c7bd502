# SPDX-License-Identifier: GPL-2.0-or-later
"""Parallel steps, and steps under loads: their outcomes, and when they are inconclusive."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest

from harness.check import Verdict
from harness.deadline import Deadline
from harness.errors import GuestError
from harness.scenarios.outcome import Outcome
from harness.scenarios.record import CODEC
from harness.scenarios.session import Session
from harness.scenarios.steps import Branch, side_by_side
from harness.scenarios.verdict import Ruling, judge

SESSION = cast(Session, None)


def meet(outcome: Outcome, at: threading.Barrier) -> Any:
    def work(session: Session, deadline: Deadline) -> Outcome:
        at.wait(deadline.remaining())
        return outcome

    return work


def test_all_of_them_run_at_the_same_time() -> None:
    at = threading.Barrier(2)
    branches: list[Branch] = [("one", meet(Outcome(), at)), ("two", meet(Outcome(), at))]
    outcome = side_by_side(branches)(SESSION, Deadline(60))
    assert (outcome.ending, outcome.inconclusive) == ("done", "")
    assert outcome.note.startswith("one 0.") and "; all at once for 0." in outcome.note


def test_the_first_that_was_not_done_stands_for_all() -> None:
    at = threading.Barrier(2)
    refused = Outcome(ending="refused", note="EBUSY")
    outcome = side_by_side([("one", meet(Outcome(), at)), ("two", meet(refused, at))])(SESSION, Deadline(60))
    assert (outcome.ending, outcome.note) == ("refused", "two: EBUSY")
    assert judge((), "done", outcome).verdict is Verdict.REFUSED


def test_an_error_of_one_is_raised_after_the_others_have_ended() -> None:
    ended = threading.Event()

    def fail(session: Session, deadline: Deadline) -> Outcome:
        raise GuestError("gone")

    def finish(session: Session, deadline: Deadline) -> Outcome:
        ended.set()
        return Outcome()

    with pytest.raises(GuestError, match="gone"):
        side_by_side([("one", fail), ("two", finish)])(SESSION, Deadline(60))
    assert ended.is_set()


def test_what_did_not_overlap_proves_nothing() -> None:
    first = threading.Event()

    def early(session: Session, deadline: Deadline) -> Outcome:
        return Outcome()

    class Late:
        def __call__(self, session: Session, deadline: Deadline) -> Outcome:
            return Outcome()

    first.set()
    from harness.scenarios.steps import _Done, joined

    outcome = joined([_Done("one", early(SESSION, Deadline(1)), 0.0, 1.0), _Done("two", Outcome(), 1.5, 2.0)])
    assert outcome.inconclusive == "no overlap: one had ended before another began"
    assert judge((), "done", outcome) == Ruling(Verdict.INFRA, outcome.inconclusive)
    assert CODEC.load(CODEC.dump(outcome), Outcome) == outcome
