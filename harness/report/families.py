# SPDX-License-Identifier: GPL-2.0-or-later
"""Families by guests: what passed, and why the rest did not run."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from harness.check import Verdict
from harness.report.text import WORDS, clean
from harness.scenarios.result import FINE, RunResult


def cell(runs: Sequence[RunResult]) -> str:
    """One family on one guest, never empty: ``pass``, ``FAIL (numa)``, ``pass, numa-offline lacks X``, ``lacks X``,
    ``known bug ID (numa)``.
    """
    if not runs:
        return "not run"
    known = list(dict.fromkeys(f"known bug {id} ({run.scenario})" for run in runs for id in run.met))
    bad = [f"{WORDS[run.verdict]} ({run.scenario})" for run in runs if run.verdict not in FINE]
    passed = any(run.verdict is Verdict.PASS for run in runs)
    lacking = [f"{run.scenario} lacks {run.lacks or run.reason}" for run in runs if run.verdict is Verdict.SKIPPED]
    if not bad and not passed and not known:
        return ", ".join(dict.fromkeys(f"lacks {run.lacks or run.reason}" for run in runs))
    return ", ".join([*bad, *(["pass"] if passed and not bad else []), *known, *lacking])


def families_table(runs: Sequence[RunResult]) -> Table:
    """A row for each family, a column for each guest."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("family", no_wrap=True)
    guests = list(dict.fromkeys(run.guest for run in runs))
    for guest in guests:
        table.add_column(clean(guest), overflow="fold")
    for family in sorted({run.family for run in runs if run.family}):
        cells = [cell([run for run in runs if (run.family, run.guest) == (family, guest)]) for guest in guests]
        table.add_row(clean(family), *(Text(clean(text)) for text in cells))
    return table
