# SPDX-License-Identifier: GPL-2.0-or-later
"""Slopes over the rounds of a soak."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction

import model_guest
import pytest

from harness.check import CATALOGUE, CheckResult, Slope, Verdict, run_check
from harness.scenarios.outcome import Outcome
from harness.scenarios.record import CODEC
from harness.scenarios.soak import Counter, Round, counters, slopes, spell, unread
from harness.scenarios.steps import Repeat, Step, count_steps
from harness.scenarios.verbs.reboot import CheckVerb
from harness.scenarios.verdict import evidence_of, judge
from harness.state import NotObserved, SlabCache

STATE = model_guest.boot_state()


def checked(outcome: Outcome, title: str = "") -> CheckResult | None:
    return run_check(CATALOGUE["MEM-3"], evidence_of(model_guest.model(), outcome, STATE), title)


def rounds(*values: int) -> list[Round]:
    return [{"x": Counter(value, "bytes")} for value in values]


@pytest.mark.parametrize(
    ("values", "each"),
    [
        ((0, 5, 5, 5, 5), Fraction(0)),
        ((9, 0, 64, 128, 192), Fraction(64)),
        ((9, 0, 0, 0, 4096), Fraction(12288, 10)),
        ((9, 30, 20, 10), Fraction(-10)),
    ],
)
def test_slopes_leave_the_first_round_out(values: tuple[int, ...], each: Fraction) -> None:
    [found] = slopes(rounds(*values))
    assert (found.each, found.leaks) == (each, each != 0)


def test_one_object_a_round_is_a_leak() -> None:
    # Each round leaves a sysfs directory entry (128 bytes) behind, in the minimum number of rounds of a soak.
    [found] = slopes(rounds(0, 128, 256, 384))
    assert (found.each, found.leaks) == (128, True)


def test_a_counter_that_some_rounds_could_not_read_is_told() -> None:
    lost: Round = {"x": NotObserved("cat: EIO")}
    seen = [*rounds(0, 4096), lost, *rounds(12288)]
    assert slopes(seen) == ()
    assert unread(seen) == ([], ["x was not read after round 3: cat: EIO"])
    assert unread([*rounds(0, 4096), {}, *rounds(0)]) == (
        [],
        ["x was not read after round 3: the kernel did not report it"],
    )
    assert unread([lost] * 4) == (["x: cat: EIO"], [])
    # The first round only warms up, so a value that only it lacks is not lost.
    assert unread([lost, *rounds(1, 1, 1)]) == ([], []) and slopes([lost, *rounds(1, 1, 1)])[0].each == 0


def test_a_leak_names_counter_and_bytes_a_round() -> None:
    result = checked(Outcome(slopes=slopes(rounds(0, 0, 4096, 8192))), "slope over 4 rounds")
    assert result is not None and result.status == "fail"
    [finding] = result.findings
    assert (finding.invariant, finding.where, finding.observed) == ("MEM-3", "x", "4096 bytes a round")
    assert (finding.expected, finding.step) == ("slope 0", "slope over 4 rounds")
    assert spell(slopes(rounds(0, 1, 1, 2))[0]) == "x 0.50 bytes a round"


def test_too_few_rounds_and_counters_that_come_late_have_no_slope() -> None:
    assert slopes(rounds(1, 2)) == ()
    assert slopes([{}, {"x": Counter(1, "bytes")}, {}, {"x": Counter(2, "bytes")}]) == ()


def test_what_is_counted() -> None:
    slab = SlabCache("kernfs_node_cache", 100, 120, 128)
    state = dataclasses.replace(STATE, backends={"a": 1, "b": 2}, vmstat={"nr_memmap": 3})
    assert isinstance(STATE.meminfo, dict)
    assert counters(state, slab, 4096) == {
        "nr_memmap": Counter(3 * 4096, "bytes"),
        "MemTotal": Counter(STATE.meminfo["MemTotal"], "bytes"),
        "memory backends of QEMU": Counter(2, "backends"),
        "slab kernfs_node_cache": Counter(12800, "bytes"),
    }
    nothing = NotObserved("gone")
    blind = dataclasses.replace(state, backends=nothing, meminfo=nothing, vmstat=nothing)
    assert set(counters(blind, nothing, 4096).values()) == {nothing}


def test_slopes_of_older_bundles_have_a_limit() -> None:
    value = CODEC.dump(Outcome()) | {"slopes": [["x", "5/2", "3", "bytes"], ["y", "4", "3", "bytes"]]}
    assert CODEC.load(value, Outcome).slopes == (Slope("x", Fraction(0), "bytes"), Slope("y", Fraction(4), "bytes"))


def test_slopes_survive_json_and_count_as_broken_invariants() -> None:
    outcome = Outcome(slopes=slopes(rounds(0, 0, 1, 3)))
    assert CODEC.load(json.loads(json.dumps(CODEC.dump(outcome))), Outcome) == outcome
    result = checked(outcome)
    assert result is not None and (result.status, len(result.findings)) == ("fail", 1)
    assert checked(Outcome(slopes=slopes(rounds(7, 1, 1, 1)))) == CheckResult("MEM-3", "pass")
    assert checked(Outcome()) is None, "not the last step of a soak"


def test_a_counter_that_no_round_read_is_not_level() -> None:
    outcome = Outcome(slopes=slopes(rounds(0, 0, 0, 0)), unread=("slab x: no slabinfo",))
    assert checked(outcome) == CheckResult("MEM-3", "not-observed", reason="slab x: no slabinfo")
    leak = checked(dataclasses.replace(outcome, slopes=slopes(rounds(0, 0, 1, 2))))
    assert leak is not None and leak.status == "fail", "growth of another counter is a leak nevertheless"
    assert CODEC.load(json.loads(json.dumps(CODEC.dump(outcome))), Outcome) == outcome


def test_an_action_that_must_fail_may_not_be_done() -> None:
    assert judge((), "failed", Outcome(ending="done")).verdict is Verdict.FAIL
    assert judge((), "failed", Outcome(ending="failed")).verdict is Verdict.PASS


def test_rounds_of_a_soak_can_be_chosen_others_cannot() -> None:
    look = Step(CheckVerb())
    soak, twice = Repeat(50, (look, look), soak=True), Repeat(2, (look,))
    assert (soak.rounds(None), soak.rounds(500), soak.rounds(1), twice.rounds(500)) == (50, 500, 4, 2)
    assert count_steps((soak, twice, look)) == 50 * 2 + 1 + 2 + 1
    assert count_steps((soak, twice, look), 500) == 500 * 2 + 1 + 2 + 1
