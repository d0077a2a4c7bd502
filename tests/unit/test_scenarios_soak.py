# SPDX-License-Identifier: GPL-2.0-or-later
"""Slopes over the rounds of a soak, and what an action that failed may not leave behind."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction

import model_guest
import pytest

from harness.check import CheckResult, Verdict
from harness.config.scenario import Step
from harness.scenarios.outcome import Outcome
from harness.scenarios.record import outcome_from_json, outcome_to_json
from harness.scenarios.runner import count_steps, times_of
from harness.scenarios.sameness import unchanged, with_findings
from harness.scenarios.soak import Counter, counters, leaks, slopes, spell
from harness.scenarios.verdict import judge
from harness.state import MemoryBlock, NotObserved, Section, SlabCache

STATE = model_guest.boot_state()


def rounds(*values: int, slack: int = 0) -> list[dict[str, Counter]]:
    return [{"x": Counter(value, "bytes", slack)} for value in values]


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


def test_slack_explains_what_lies_in_its_band_and_no_more() -> None:
    # All of the second half at the upper edge is as steep as a band can be.
    [found] = slopes(rounds(0, 0, 0, 100, 100, slack=100))
    assert (found.each, found.limit, found.leaks) == (Fraction(40), Fraction(40), False)
    [found] = slopes(rounds(0, 0, 60, 120, 180, slack=100))
    assert found.leaks
    assert "up to 40 may be caches of the CPUs" in spell(found)


def test_a_leak_names_counter_and_bytes_a_round() -> None:
    [finding] = leaks(slopes(rounds(0, 0, 4096, 8192)), "slope over 4 rounds")
    assert (finding.invariant, finding.where, finding.observed) == ("MEM-2", "x", "4096 bytes a round")
    assert (finding.expected, finding.step) == ("slope 0", "slope over 4 rounds")
    assert spell(slopes(rounds(0, 1, 1, 2))[0]) == "x 0.50 bytes a round"


def test_too_few_rounds_and_counters_that_come_late_have_no_slope() -> None:
    assert slopes(rounds(1, 2)) == ()
    assert slopes([{}, {"x": Counter(1, "bytes")}, {}, {"x": Counter(2, "bytes")}]) == ()


def test_what_is_counted() -> None:
    slab = SlabCache("kernfs_node_cache", 100, 120, 128)
    state = dataclasses.replace(STATE, slabs=(slab, SlabCache("other", 1, 1, 8)), backends={"a": 1, "b": 2})
    found = counters(state, 4096, 2)
    assert found["memory backends of QEMU"] == Counter(2, "backends")
    assert found["slab kernfs_node_cache"].value == 12800
    # two CPUs, each with a slab at work and partial ones for 2 * 120 objects
    assert found["slab kernfs_node_cache"].slack == 2 * (2 * 256 + 2 * 120) * 128
    assert "slab other" not in found
    assert found["MemTotal"].value == STATE.meminfo["MemTotal"]  # type: ignore[index]
    nothing = NotObserved("gone")
    blind = dataclasses.replace(state, slabs=nothing, backends=nothing, meminfo=nothing, vmstat=nothing)
    assert counters(blind, 4096, 2) == {}


def test_slopes_survive_json_and_count_as_broken_invariants() -> None:
    outcome = Outcome(slopes=slopes(rounds(0, 0, 1, 3)))
    assert outcome_from_json(json.loads(json.dumps(outcome_to_json(outcome)))) == outcome
    fine = CheckResult("MEM-2", "pass")
    [joined] = with_findings([fine], leaks(outcome.slopes, ""))
    assert (joined.status, len(joined.findings)) == ("fail", 1)
    assert with_findings([fine], ()) == (fine,)
    [added] = with_findings([], leaks(outcome.slopes, ""))
    assert (added.invariant, added.status) == ("MEM-2", "fail")


def test_what_failed_must_leave_nothing_behind() -> None:
    assert unchanged(STATE, STATE, "") == ()
    assert isinstance(STATE.blocks, tuple) and isinstance(STATE.iomem, tuple) and isinstance(STATE.meminfo, dict)
    more = (*STATE.blocks, MemoryBlock(99, 99, "offline", True, ("Movable",), (0,)))
    after = dataclasses.replace(
        STATE,
        blocks=more,
        iomem=STATE.iomem[1:],
        meminfo={**STATE.meminfo, "MemTotal": STATE.meminfo["MemTotal"] + 4096},
        auto_online="online",
    )
    found = {finding.invariant: finding for finding in unchanged(STATE, after, "plug")}
    assert set(found) == {"BLK-1", "IOM-2", "MEM-1", "BLK-2"}
    assert "index=99" in found["BLK-1"].observed and found["BLK-1"].expected == "no more than before"
    assert found["IOM-2"].observed == "less than before"
    assert {finding.step for finding in found.values()} == {"plug"}


def test_counters_of_struct_pages_must_be_as_before() -> None:
    before = dataclasses.replace(STATE, vmstat={"nr_memmap": 5})
    [finding] = unchanged(before, dataclasses.replace(STATE, vmstat={"nr_memmap": 6}), "")
    assert (finding.invariant, finding.where, finding.expected, finding.observed) == ("MEM-2", "nr_memmap", "5", "6")
    assert unchanged(before, dataclasses.replace(STATE, vmstat=NotObserved("lost")), "") == ()


def test_an_action_that_must_fail_may_not_be_done() -> None:
    assert judge((), "failed", Outcome(ending="done")).verdict is Verdict.FAIL
    assert judge((), "failed", Outcome(ending="failed")).verdict is Verdict.PASS


def test_rounds_of_a_soak_can_be_chosen_others_cannot() -> None:
    look = Step("check", {}, 1)
    soak = Step("repeat", {"times": 50, "steps": (look, look), "soak": True}, 1)
    twice = Step("repeat", {"times": 2, "steps": (look,), "soak": False}, 1)
    assert (times_of(soak, None), times_of(soak, 500), times_of(soak, 1), times_of(twice, 500)) == (50, 500, 4, 2)
    assert count_steps((soak, twice, look)) == 50 * 2 + 1 + 2 + 1
    assert count_steps((soak, twice, look), 500) == 500 * 2 + 1 + 2 + 1


def test_where_a_sections_usage_was_allocated_is_no_state() -> None:
    section = Section(16, ("present",), 0xFF00, 0x1000, 3)
    before, moved, gone = (
        dataclasses.replace(STATE, sections=(dataclasses.replace(section, usage=usage),)) for usage in (0x1000, 0x20, 0)
    )
    assert unchanged(before, moved, "") == ()
    [finding] = unchanged(before, gone, "")
    assert finding.invariant == "SEC-1"
