# SPDX-License-Identifier: GPL-2.0-or-later
"""Parallel steps, and steps under loads: their outcomes, and when they are inconclusive."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.check import OfflineReport, Verdict
from harness.deadline import Deadline
from harness.errors import GuestError
from harness.guest.loads import LoadCount
from harness.scenarios import session as session_module
from harness.scenarios.outcome import Outcome
from harness.scenarios.record import CODEC
from harness.scenarios.session import Session
from harness.scenarios.steps import Branch, side_by_side
from harness.scenarios.verdict import Ruling, judge
from harness.units import AddrRange

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


def test_what_a_part_proves_or_does_not_prove_is_the_whole_steps() -> None:
    at, parts = threading.Barrier(2), [Outcome(inconclusive="no allocation failed"), Outcome()]
    parts[1].refuse("memory8: EBUSY", place=AddrRange(0, 4096))
    parts[1].offlines.append(OfflineReport(8, "EBUSY"))
    outcome = side_by_side([(name, meet(part, at)) for name, part in zip("ab", parts, strict=True)])(
        SESSION, Deadline(60)
    )
    assert (outcome.inconclusive, outcome.offlines) == ("no allocation failed", parts[1].offlines)
    assert (outcome.refusals, outcome.note) == (parts[1].refusals, "b: memory8: EBUSY")


@pytest.mark.parametrize("rounds", [1, 0])
def test_a_load_makes_no_step_conclusive(rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"load": LoadCount(rounds, 0, True)}
    monkeypatch.setattr(session_module, "pause_loads", lambda shell, deadline: counts)
    session = SimpleNamespace(loads={"load": LoadCount(0, 0, True)}, guest=SimpleNamespace(shell=None))
    outcome = Outcome(inconclusive="no allocation failed")
    Session._rest(cast(Session, session), outcome, Deadline(60))
    idle = "" if rounds else "; no overlap: the load load did no round meanwhile"
    assert outcome.inconclusive == f"no allocation failed{idle}"


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
