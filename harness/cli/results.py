# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs scenarios on guests, and writes the reports of their results."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from harness.check import Verdict
from harness.cli.command_arguments import ReportArguments, RunArguments
from harness.config.guest import GuestSpec
from harness.errors import InfraError, UsageError
from harness.matrix.history import read_history
from harness.report.book import Book, book_of
from harness.report.files import STDOUT, check_target, write_report
from harness.report.html import to_html
from harness.report.json import dumps, results_to_json
from harness.report.junit import to_junit
from harness.report.kcidb import to_kcidb
from harness.report.ktap import to_ktap
from harness.report.tally import exit_status
from harness.report.terminal_report import TerminalReporter
from harness.report.text import tell
from harness.scenarios.file import Scenario, known_scenarios, load_scenario
from harness.scenarios.result import RunResult
from harness.scenarios.run_options import RunOptions


@contextlib.contextmanager
def reporter_on(stream: TextIO, color: str) -> Iterator[TerminalReporter]:
    """A reporter that shows results on ``stream``."""
    reporter = TerminalReporter(stream, sys.stderr, color=color)
    try:
        yield reporter
    finally:
        reporter.rest()


def open_reporter(arguments: ReportArguments) -> contextlib.AbstractContextManager[TerminalReporter]:
    """A reporter that shows results on standard output, unless a report is written there."""
    return reporter_on(results_stream(arguments), arguments.color)


def finish(
    arguments: ReportArguments,
    reporter: TerminalReporter,
    results: Sequence[RunResult],
    history: str | None = None,
    named: bool = False,
) -> int:
    """Print the summary, write the reports, and return the exit status; ``history`` is the source of trends.

    ``named``: the user asked for these scenarios by name, so that one that is skipped is an error.
    """
    reporter.summary(results, named)
    nights = {} if history is None else read_history(Path(history))
    book = book_of("memhp", datetime.datetime.now(datetime.UTC).isoformat(), results, nights)
    book = dataclasses.replace(book, origin=arguments.kcidb_origin, named=named)
    status = finish_reports(arguments.reports.items(), book, exit_status(results, named))
    for run in results:
        if named and run.verdict is Verdict.SKIPPED:
            lack = f"{run.scenario} on {run.guest} was named, but skipped: {run.reason}"
            tell(UsageError(lack, hint=run.hint or "do not name it, or give it a kernel and a QEMU that meet this"))
    return status


def chosen_scenarios(arguments: RunArguments) -> list[Scenario]:
    """The named scenarios, or all of them; raises UsageError, ConfigError."""
    if arguments.all and arguments.scenarios:
        raise UsageError("--all and named scenarios exclude each other", hint="name scenarios, or use --all")
    names = arguments.scenarios or known_scenarios()
    if not names:
        raise UsageError("no scenarios found", hint="they are in configs/scenarios of the checkout")
    return [load_scenario(name) for name in names]


def run_all(
    scenarios: Sequence[Scenario], guests: Sequence[GuestSpec], options: RunOptions, reporter: TerminalReporter
) -> list[RunResult]:
    """Run every scenario on each of ``guests``, freshly started."""
    from harness.scenarios.runner import run_pairs

    pairs = [(scenario, guest) for guest in guests for scenario in scenarios]
    return run_pairs(pairs, options, reporter, reporter.progress)


#: option of a report -> its writer, and its file in a results directory
REPORTS: Mapping[str, tuple[Callable[[Book], str], str]] = {
    "json": (lambda book: dumps(results_to_json(book.runs, book.named, bool(book.missing))), "results.json"),
    "junit": (lambda book: to_junit(book.runs, [id for id, _ in book.missing]), "junit.xml"),
    "ktap": (to_ktap, "results.ktap"),
    "kcidb": (to_kcidb, "kcidb.json"),
    "html": (to_html, "report.html"),
}


def check_reports(arguments: ReportArguments) -> None:
    """Raise UsageError for reports that cannot be written to their targets."""
    targets = arguments.reports
    printed = [f"--{name}" for name, target in targets.items() if target == STDOUT]
    if len(printed) > 1:
        raise UsageError(f"{' and '.join(printed)} both write to standard output", hint="give one of them a file")
    for name, target in targets.items():
        check_target(target, f"--{name}")
    if not re.fullmatch(r"[a-z0-9_]+", arguments.kcidb_origin):
        hint = "use lower-case letters, digits and '_'"
        raise UsageError(f"--kcidb-origin: invalid origin {arguments.kcidb_origin[:80]!r}", hint=hint)


def results_stream(arguments: ReportArguments) -> TextIO:
    """Where results are shown: standard output, unless a report is written there."""
    return sys.stderr if STDOUT in arguments.reports.values() else sys.stdout


def finish_reports(targets: Iterable[tuple[str, str]], book: Book, status: int) -> int:
    """Write each report; returns ``status``, or 3 if that is 0 and a report cannot be written."""
    try:
        for name, target in targets:
            write_report(target, REPORTS[name][0](book))
    except InfraError as error:
        tell(error)
        return status or error.exit_status
    return status


def all_reports(folder: Path) -> list[tuple[str, str]]:
    """All reports, with targets in ``folder``."""
    return [(name, str(folder / file)) for name, (_, file) in REPORTS.items()]
