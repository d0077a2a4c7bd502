# SPDX-License-Identifier: GPL-2.0-or-later
"""Results for people, during a run and at its end: results on one stream, the current activity on another.

Colour and the status line need a terminal. All text from a guest goes through ``clean``: no control characters, no
markup.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TextIO

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from harness.check import CATALOGUE, CheckResult, Verdict
from harness.parsers.notes import note_lines, summed
from harness.progress import Progress, Task, default_progress
from harness.report.tally import Tally, findings, overall, tally, verdict_counts
from harness.report.text import WORDS, clean, invariants_line, plural, seconds
from harness.scenarios.reporter import Reporter
from harness.scenarios.result import FINE, RunResult, StepResult

#: lines of changes, and findings of one invariant, shown for a step; reports and bundle are complete
MAX_CHANGES = 12
MAX_FINDINGS = 10

_STYLE = {
    Verdict.PASS: "green",
    Verdict.KNOWN: "bold yellow",
    Verdict.FAIL: "bold red",
    Verdict.REFUSED: "yellow",
    Verdict.SKIPPED: "cyan",
    Verdict.INFRA: "bold magenta",
}
_SPELLED = {Verdict.PASS: "PASSED", Verdict.KNOWN: "PASSED", Verdict.FAIL: "FAILED", Verdict.SKIPPED: "SKIPPED"}


def make_console(stream: TextIO, color: str = "auto") -> Console:
    """A console that never reads markup; ``color`` is auto (a terminal and no NO_COLOR), always or never."""
    on = color == "always" or (color == "auto" and stream.isatty() and not os.environ.get("NO_COLOR"))
    return Console(
        file=stream,
        force_terminal=True if color == "always" else None,
        no_color=not on,
        color_system="auto" if on else None,
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=True,
        # A file or a pipe has no width. Tables must not be folded: a guest's text would begin a line.
        width=None if stream.isatty() else 1 << 16,
    )


class TerminalReporter(Reporter):
    """Shows a run while it goes on; ``out`` gets the results, ``err`` the status line and progress."""

    def __init__(self, out: TextIO, err: TextIO, *, color: str = "auto") -> None:
        self.console = make_console(out, color)
        self._errors = make_console(err, color)
        self._status: Status | None = None
        self._where = ""

    @property
    def progress(self) -> Progress:
        """Progress bars; the status line is hidden while one is shown."""
        return _QuietingProgress(self, default_progress())

    def run_started(self, scenario: str, guest: str) -> None:
        """Print the head line of a run."""
        self._where = clean(scenario)
        self.console.print(Text.assemble((clean(scenario), "bold"), f" on {clean(guest)}"))

    def phase(self, text: str) -> None:
        """Show the activity before the first step."""
        self._show(f"{self._where}: {clean(text)}" if self._where else clean(text))

    def step_started(self, number: int, total: int, title: str) -> None:
        """Show the current step."""
        self._show(f"{self._where}: step {number} of {total}: {clean(title)}")

    def step_finished(self, result: StepResult) -> None:
        """Print a line for the step, its changes, and the invariants that it broke."""
        self.rest()
        for line in step_lines(result):
            self.console.print(line)

    def run_finished(self, result: RunResult) -> None:
        """Print the run's verdict and the place of its bundle."""
        self.rest()
        for line in verdict_lines(result):
            self.console.print(line)
        self.console.print(Text(""))

    def under_way(self, runs: tuple[str, ...]) -> None:
        """Show the runs in progress."""
        if runs:
            self._show(" · ".join(clean(run) for run in runs))
        else:
            self.rest()

    def summary(self, runs: Sequence[RunResult], named: bool = False) -> None:
        """Print a table of invariants, a table of runs, and the overall verdict; ``named``: see ``overall``."""
        self.rest()
        counts = tally(runs)
        if counts:
            self.console.print(invariants_table(counts))
        if len(runs) > 1:
            self.console.print(runs_table(runs))
        if len({(run.family, run.guest) for run in runs if run.family}) > 1:
            self.console.print(families_table(runs))
        self.unknown(runs)
        self.console.print(overall_line(runs, named))

    def unknown(self, runs: Sequence[RunResult]) -> None:
        """Print what memhp did not know in the kernels' text, a line for each file; no invariant needed it."""
        for line in note_lines(summed(note for run in runs for note in run.unknown)):
            self.console.print(Text(clean(line), style="dim"))

    def rest(self) -> None:
        """Remove the status line; may be called at any time."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _show(self, text: str) -> None:
        if not self._errors.is_terminal:
            return
        line = Text(text, style="dim")
        if self._status is None:
            self._status = Status(line, console=self._errors)
            self._status.start()
        else:
            self._status.update(line)


class _QuietingProgress:
    def __init__(self, reporter: TerminalReporter, inner: Progress) -> None:
        self._reporter = reporter
        self._inner = inner

    def say(self, text: str) -> None:
        self._reporter.rest()
        self._inner.say(text)

    @contextlib.contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Task]:
        self._reporter.rest()
        with self._inner.task(description, total) as task:
            yield task


def verdict_word(verdict: Verdict) -> tuple[str, str]:
    """The verdict's word, padded, and its style."""
    return f"{WORDS[verdict]:<10}", _STYLE[verdict]


def step_lines(step: StepResult) -> Iterator[Text]:
    """A step: verdict, number, title, time and invariants, then its note, changes and findings."""
    yield Text.assemble(
        "  ",
        verdict_word(step.verdict),
        f" {step.number:>3}  {clean(step.title):<38} {seconds(step.seconds):>9}   {invariants_line(step.checks)}",
    )
    if step.note:
        yield Text(f"        {clean(step.note)}", style="dim" if step.verdict is Verdict.PASS else "")
    for change in step.changes[:MAX_CHANGES]:
        yield Text(f"        {clean(change)}", style="dim")
    if len(step.changes) > MAX_CHANGES:
        yield Text(f"        … and {plural(len(step.changes) - MAX_CHANGES, 'more change')}", style="dim")
    broken = [check for check in step.checks if check.status == "fail"]
    if step.verdict is Verdict.KNOWN and broken:
        # Reports and bundle have these findings in full.
        yield Text(f"        {', '.join(f'{one.invariant} {len(one.findings)}' for one in broken)}: all known")
        return
    for check in broken:
        yield from finding_lines(check)


def finding_lines(check: CheckResult) -> Iterator[Text]:
    """A broken invariant: its statement, and expected and observed values of its findings."""
    known = CATALOGUE.get(check.invariant)
    statement = f"  {known.statement}" if known else ""
    yield Text.assemble("        ", (f"{clean(check.invariant)} broken", _STYLE[Verdict.FAIL]), clean(statement))
    for finding in check.findings[:MAX_FINDINGS]:
        yield Text(f"          at {clean(finding.where)}, seen in {clean(finding.source)}")
        yield Text.assemble("            expected  ", (clean(finding.expected), "green"))
        yield Text.assemble("            observed  ", (clean(finding.observed), "red"))
    if len(check.findings) > MAX_FINDINGS:
        yield Text(f"          … and {plural(len(check.findings) - MAX_FINDINGS, 'more finding')}")


def verdict_lines(run: RunResult) -> Iterator[Text]:
    """The end of a run: verdict, steps and time, reason, known bugs, hint and bundle."""
    size = f"{plural(len(run.steps), 'step')} in {seconds(run.seconds)}"
    if run.boot_seconds:
        size += f", {seconds(run.boot_seconds)} of it booting"
    line = Text.assemble((WORDS[run.verdict], _STYLE[run.verdict]), f" {clean(run.scenario)} on {clean(run.guest)}")
    yield line if not run.steps else Text.assemble(line, f": {size}")
    if run.reason:
        yield Text(f"  {clean(run.reason, newlines=True)}".replace("\n", "\n  "))
    for id, title in run.bugs.items():
        label = "known bug" if id in run.met else "not reproduced, though this kernel should have it: known bug"
        yield Text(f"  {label} {clean(id)}: {clean(title)}", style=_STYLE[Verdict.KNOWN])
    if run.hint:
        yield Text(f"  hint: {clean(run.hint, newlines=True)}")
    if run.bundle is not None:
        yield Text(f"  bundle: {clean(run.bundle)}")


def findings_text(run: RunResult) -> str:
    """A run's verdict and all its findings as plain text, for a failing test."""
    lines = list(verdict_lines(run))
    for step in run.steps:
        if step.verdict is not Verdict.PASS:
            lines += step_lines(step)
    return "\n".join(line.plain for line in lines)


def invariants_table(counts: dict[str, Tally]) -> Table:
    """A row per invariant: passed, failed, broken by known bugs, not observed and why, and notes on the sources."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("invariant", no_wrap=True)
    known = any(count.known for count in counts.values())
    for name in ("pass", "FAIL", *(["known bug"] if known else []), "not observed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why not observed; sources used", overflow="fold")
    for name, count in counts.items():
        table.add_row(
            Text(clean(name)),
            Text(str(count.passed or "-"), style="green" if count.passed else "dim"),
            Text(str(count.failed or "-"), style=_STYLE[Verdict.FAIL] if count.failed else "dim"),
            *([Text(str(count.known or "-"), style=_STYLE[Verdict.KNOWN] if count.known else "dim")] if known else []),
            Text(str(count.not_observed or "-"), style="" if count.not_observed else "dim"),
            Text(clean("; ".join([*count.reasons, *count.notes]))),
        )
    return table


def runs_table(runs: Sequence[RunResult]) -> Table:
    """A row per run: verdict, scenario, guest, steps, time, and the first line of the reason if there is one."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("verdict", "scenario", "guest"):
        table.add_column(name, no_wrap=True)
    for name in ("steps", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for run in runs:
        table.add_row(
            Text(WORDS[run.verdict], style=_STYLE[run.verdict]),
            Text(clean(run.scenario)),
            Text(clean(run.guest)),
            Text(str(len(run.steps))),
            Text(seconds(run.seconds)),
            Text(clean(run.reason.partition("\n")[0].rstrip(":"))),
        )
    return table


def overall_line(runs: Sequence[RunResult], named: bool = False, missing: bool = False) -> Text:
    """One line for all runs: the verdict (see ``overall``), the number of runs by verdict, the broken invariants."""
    verdict = overall(runs, named, missing)
    counts = tally(runs)
    checks = f"{sum(count.passed for count in counts.values())} checks passed"
    unseen = sum(count.not_observed for count in counts.values())
    broken = sorted({finding.invariant for run in runs for finding in findings(run)})
    parts = [f"{plural(len(runs), 'scenario')}: {', '.join(verdict_counts(runs)) or 'none ran'}", checks]
    parts += [f"{unseen} not observed"] if unseen else []
    parts += [f"broken: {', '.join(broken)}"] if broken else []
    met = sorted({id for run in runs for id in run.met})
    missed = sorted({f"{id} ({run.guest})" if id in met else id for run in runs for id in run.unseen})
    parts += [f"known bugs: {clean(', '.join(met))}"] if met else []
    parts += [f"known bugs not reproduced: {clean(', '.join(missed))}"] if missed else []
    spelled = _SPELLED.get(verdict, "NO VERDICT")
    return Text.assemble((spelled, _STYLE[verdict]), f"  {'; '.join(parts)}")


def family_cell(runs: Sequence[RunResult]) -> str:
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
        cells = [family_cell([run for run in runs if (run.family, run.guest) == (family, guest)]) for guest in guests]
        table.add_row(clean(family), *(Text(clean(text)) for text in cells))
    return table
