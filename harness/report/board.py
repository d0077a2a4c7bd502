# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress of a matrix: a line for each finished cell, and on a terminal a live table of the running ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from harness.report.tally import findings
from harness.report.terminal_report import make_console, verdict_word
from harness.report.text import clean, plural, seconds
from harness.scenarios.result import FINE, RunResult

#: characters shown of a reason or of a cell's last line
MAX_LINE = 100


class CellBoard:
    """Prints a line per cell to ``out``, and a live table to ``err`` if that is a terminal."""

    def __init__(self, out: TextIO, err: TextIO, total: int, *, color: str = "auto") -> None:
        self._console = make_console(out, color)
        self._live = Live(console=make_console(err, color), refresh_per_second=2, transient=True)
        self._total = total
        self._over = 0
        self._bad = 0

    def __enter__(self) -> CellBoard:
        return self

    def __exit__(self, *ending: object) -> None:
        self.rest()

    def rest(self) -> None:
        """Remove the live table; may be called again."""
        if self._live.is_started:
            self._live.stop()

    def ended(self, id: str, run: RunResult, *, kept: bool = False) -> None:
        """Print a finished cell; ``kept``: its result is from an earlier start."""
        self.rest()
        self._over += 1
        self._bad += run.verdict not in FINE
        broken = sorted({finding.invariant for finding in findings(run)})
        why = f"{', '.join(broken)} broken" if broken else run.reason
        note = "  kept from an earlier start" if kept else ""
        note += f"  {clean(why, limit=MAX_LINE)}" if why else ""
        width = len(str(self._total))
        line = Text(f"[{self._over:>{width}}/{self._total}] ")
        line.append_text(Text.assemble(verdict_word(run.verdict), f" {clean(id)}  {seconds(run.seconds)}{note}"))
        self._console.print(line)

    def moving(self, rows: Sequence[tuple[str, float, str]], waiting: int, left: float) -> None:
        """Show the running cells as (cell, seconds, last line), the number waiting, and the expected seconds left."""
        if not self._live.console.is_terminal:
            return
        table = Table(box=None, pad_edge=False, show_header=False)
        for id, since, last in rows:
            table.add_row(Text(clean(id)), Text(seconds(since)), Text(clean(last, limit=MAX_LINE), style="dim"))
        bad = f", {self._bad} not passed" if self._bad else ""
        head = f"{self._over} of {self._total} done{bad}; {waiting} waiting; about {seconds(left)} to go"
        if not self._live.is_started:
            self._live.start()
        self._live.update(Group(table, Text(head, style="bold")))


def plan_table(rows: Sequence[tuple[str, int, float, bool]]) -> Table:
    """(cell, steps, expected seconds, measured) as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("cell", "steps", "expected", ""):
        table.add_column(name, no_wrap=True, justify="left" if name in ("cell", "") else "right")
    for id, steps, expected, measured in rows:
        known = "measured" if measured else "guess"
        table.add_row(Text(clean(id)), Text(str(steps)), Text(seconds(expected)), Text(known))
    return table


def plan_line(count: int, total: float, wall: float, jobs: int) -> str:
    """The totals of a plan."""
    return f"{plural(count, 'cell')}, {seconds(total)} of guests; about {seconds(wall)} with {plural(jobs, 'job')}"
