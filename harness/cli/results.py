# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs scenarios on guests, and reports the results."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from harness.cli.command_arguments import ReportArguments, RunArguments
from harness.cli.report_targets import finish_reports, results_stream
from harness.config.guest import GuestSpec
from harness.errors import UsageError
from harness.matrix.history import read_history
from harness.report.book import book_of
from harness.report.tally import exit_status
from harness.report.terminal_report import TerminalReporter
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
    arguments: ReportArguments, reporter: TerminalReporter, results: Sequence[RunResult], history: str | None = None
) -> int:
    """Print the summary, write the reports, and return the exit status; ``history`` is the source of trends."""
    reporter.summary(results)
    nights = {} if history is None else read_history(Path(history))
    book = book_of("memhp", datetime.datetime.now(datetime.UTC).isoformat(), results, nights)
    book = dataclasses.replace(book, origin=arguments.kcidb_origin)
    return finish_reports(arguments.reports.items(), book, exit_status(results))


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
