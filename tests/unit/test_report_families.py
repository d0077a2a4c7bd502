# SPDX-License-Identifier: GPL-2.0-or-later
"""Families of scenarios by guests: no cell is empty."""

from __future__ import annotations

import dataclasses

from rich.console import Console

from harness.check import Verdict
from harness.report.terminal_report import families_table, family_cell
from harness.scenarios.result import RunResult, StepResult


def run(family: str, guest: str, verdict: Verdict, scenario: str = "", lacks: str = "") -> RunResult:
    name = scenario or family
    return RunResult(name, guest, guest, verdict, "why", None, 1.0, 0.5, (), {}, None, "", 0, family, lacks)


def test_cells() -> None:
    passed = run("numa", "arm64", Verdict.PASS)
    skipped = run("numa", "arm64", Verdict.SKIPPED, "numa-offline", "node-without-cpu")
    failed = run("numa", "arm64", Verdict.FAIL, "numa-offline")
    assert family_cell([passed]) == "pass"
    assert family_cell([passed, skipped]) == "pass, numa-offline lacks node-without-cpu"
    assert family_cell([skipped]) == "lacks node-without-cpu"
    assert family_cell([passed, failed]) == "FAIL (numa-offline)"
    assert family_cell([]) == "not run"
    met = StepResult(1, "x", Verdict.KNOWN, 1.0, 1.0, (), bugs=("some-bug",))
    known = dataclasses.replace(run("numa", "arm64", Verdict.KNOWN, "numa-x"), steps=(met,))
    assert family_cell([known]) == "known bug some-bug (numa-x)"
    assert (
        family_cell([passed, known, skipped])
        == "pass, known bug some-bug (numa-x), numa-offline lacks node-without-cpu"
    )
    assert family_cell([failed, known]) == "FAIL (numa-offline), known bug some-bug (numa-x)"
    assert family_cell([run("x", "y", Verdict.SKIPPED)]) == "lacks why"


def test_a_row_for_each_family_and_a_column_for_each_guest() -> None:
    console = Console(width=100)
    runs = [
        run("soak", "arm64", Verdict.PASS),
        run("numa", "arm64", Verdict.PASS),
        run("numa", "riscv64", Verdict.PASS),
    ]
    with console.capture() as captured:
        console.print(families_table(runs))
    rows = [line.split() for line in captured.get().splitlines()]
    assert rows == [["family", "arm64", "riscv64"], ["numa", "pass", "pass"], ["soak", "pass", "not", "run"]]
