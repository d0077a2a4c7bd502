# SPDX-License-Identifier: GPL-2.0-or-later
"""What a failed action must not leave behind."""

from __future__ import annotations

import dataclasses

import model_guest
import pytest

from harness.check import CATALOGUE, CheckResult, Evidence, Finding, run_check
from harness.state import GuestState, MemoryBlock, NotObserved, Section

#: every source that is compared was observed
STATE = dataclasses.replace(model_guest.boot_state(), dax=(), sections=(), vmstat={"nr_memmap": 5})


def checked(before: GuestState | None, after: GuestState, *, failed: bool = True) -> CheckResult | None:
    model = model_guest.model()
    evidence = Evidence(model.layout, model.expected(), after, failed=failed, before=before)
    return run_check(CATALOGUE["RBK-1"], evidence, "plug")


def findings(before: GuestState, after: GuestState) -> tuple[Finding, ...]:
    result = checked(before, after)
    assert result is not None and result.status == ("fail" if result.findings else "pass")
    return result.findings


def test_what_did_not_fail_may_change_things() -> None:
    assert checked(STATE, dataclasses.replace(STATE, auto_online="online"), failed=False) is None


@pytest.mark.parametrize("source", ["iomem", "blocks", "auto_online", "zones", "dax", "sections", "meminfo", "vmstat"])
def test_a_source_that_was_not_read_twice_proves_nothing(source: str) -> None:
    blind = dataclasses.replace(STATE, **{source: NotObserved("lost")})
    wanted = CheckResult("RBK-1", "not-observed", reason=f"{source}: lost")
    assert checked(STATE, blind) == checked(blind, STATE) == wanted


def test_nothing_to_compare_with_proves_nothing() -> None:
    assert checked(None, STATE) == CheckResult("RBK-1", "not-observed", reason="there is no snapshot before the step")


def test_what_failed_must_leave_nothing_behind() -> None:
    assert findings(STATE, STATE) == ()
    assert isinstance(STATE.blocks, tuple) and isinstance(STATE.iomem, tuple) and isinstance(STATE.meminfo, dict)
    more = (*STATE.blocks, MemoryBlock(99, 99, "offline", True, ("Movable",), (0,)))
    after = dataclasses.replace(
        STATE,
        blocks=more,
        iomem=STATE.iomem[1:],
        meminfo={**STATE.meminfo, "MemTotal": STATE.meminfo["MemTotal"] + 4096},
        auto_online="online",
    )
    found = {finding.where: finding for finding in findings(STATE, after)}
    assert set(found) == {"blocks", "iomem", "MemTotal", "auto_online"}
    assert "index=99" in found["blocks"].observed and found["blocks"].expected == "no more than before"
    assert found["iomem"].observed == "less than before"
    assert {finding.invariant for finding in found.values()} == {"RBK-1"}
    assert {finding.step for finding in found.values()} == {"plug"}


def test_counters_of_struct_pages_must_be_as_before() -> None:
    before = dataclasses.replace(STATE, vmstat={"nr_memmap": 5})
    [finding] = findings(before, dataclasses.replace(STATE, vmstat={"nr_memmap": 6}))
    assert (finding.where, finding.expected, finding.observed) == ("nr_memmap", "5", "6")


def test_where_a_sections_usage_was_allocated_is_no_state() -> None:
    section = Section(16, ("present",), 0xFF00, 0x1000, 3)
    before, moved, gone = (
        dataclasses.replace(STATE, sections=(dataclasses.replace(section, usage=usage),)) for usage in (0x1000, 0x20, 0)
    )
    assert findings(before, moved) == ()
    [finding] = findings(before, gone)
    assert finding.where == "sections"
