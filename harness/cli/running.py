# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that end in a verdict: run, check, collect."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from harness.cli.options import guest_of, guests_of, read_seconds, run_options, start_of
from harness.cli.parser import Arguments
from harness.cli.reports import check_reports, finish_reports, results_stream, wanted
from harness.config.guest import GuestSpec
from harness.errors import UsageError
from harness.matrix.history import check_history, read_history
from harness.report.book import Book, book_of
from harness.report.tally import exit_status
from harness.report.terminal import TerminalReporter
from harness.scenarios.file import SNAPSHOT, Scenario, known_scenarios, load_scenario
from harness.scenarios.options import RunOptions
from harness.scenarios.result import RunResult


@contextlib.contextmanager
def open_reporter(arguments: Arguments) -> Iterator[TerminalReporter]:
    """Results on standard output, unless a report wants it for itself."""
    reporter = TerminalReporter(results_stream(arguments), sys.stderr, color=arguments.color)
    try:
        yield reporter
    finally:
        reporter.rest()


def finish(arguments: Arguments, reporter: TerminalReporter, results: Sequence[RunResult]) -> int:
    """Summary, reports, exit status."""
    reporter.summary(results)
    return finish_reports(wanted(arguments).items(), _book(arguments, results), exit_status(results))


def _book(arguments: Arguments, results: Sequence[RunResult]) -> Book:
    history = {} if getattr(arguments, "history", None) is None else read_history(Path(arguments.history))
    book = book_of("memhp", datetime.datetime.now(datetime.UTC).isoformat(), results, history)
    return dataclasses.replace(book, origin=arguments.kcidb_origin)


def chosen_scenarios(arguments: Arguments) -> list[Scenario]:
    """The scenarios that the user named, or all of them; raises UsageError, ConfigError."""
    if arguments.all and arguments.scenarios:
        raise UsageError("--all and named scenarios exclude each other", hint="name them, or leave it at --all")
    names = arguments.scenarios or list(known_scenarios())
    if not names:
        raise UsageError("there are no scenarios", hint="configs/scenarios of the checkout holds them")
    return [load_scenario(name) for name in names]


def run(arguments: Arguments) -> int:
    """memhp run."""
    if arguments.matrix is not None:
        from harness.cli.matrix import run_matrix

        return run_matrix(arguments)
    if arguments.bisect:
        from harness.cli.bisect import run_bisect

        return run_bisect(arguments, _run)
    for option in ("shard", "results"):
        if getattr(arguments, option) is not None:
            raise UsageError(f"--{option} takes --matrix", hint="memhp run --matrix configs/nightly.yaml")
    if arguments.list:
        raise UsageError("--list takes --matrix", hint="memhp list scenarios shows what can be run")
    return _run(arguments)


def _run(arguments: Arguments) -> int:
    check_reports(arguments)
    if arguments.history is not None:
        check_history(arguments.history)
    if arguments.keep:
        from harness.cli.keeping import run_and_keep

        return run_and_keep(arguments)
    scenarios, guests, options = chosen_scenarios(arguments), guests_of(arguments), run_options(arguments)
    with open_reporter(arguments) as reporter:
        return finish(arguments, reporter, run_all(scenarios, guests, options, reporter))


def run_all(
    scenarios: Sequence[Scenario], guests: Sequence[GuestSpec], options: RunOptions, reporter: TerminalReporter
) -> list[RunResult]:
    """Run every scenario on each of ``guests``, each time on a fresh one."""
    from harness.scenarios.runner import run_pairs

    pairs = [(scenario, guest) for guest in guests for scenario in scenarios]
    return run_pairs(pairs, options, reporter, reporter.progress)


def check(arguments: Arguments) -> int:
    """memhp check."""
    check_reports(arguments)
    directory = Path(arguments.directory)
    if not directory.is_dir():
        raise UsageError(f"no directory {directory}", hint="a bundle of memhp run, or what memhp collect wrote")
    from harness.scenarios.recheck import recheck

    with open_reporter(arguments) as reporter:
        result = recheck(directory)
        reporter.run_started(result.scenario, result.guest)
        for step in result.steps:
            reporter.step_finished(step)
        reporter.run_finished(result)
        return finish(arguments, reporter, [result])


def collect(arguments: Arguments) -> int:
    """memhp collect: a run without steps, whose bundle is what was asked for."""
    target = Path(arguments.output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"--output: {target} is there already", hint="name a directory that does not exist yet")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"--output: no directory {target.absolute().parent}", hint="create it first")
    guest = guest_of(arguments)
    timeout = read_seconds(arguments.timeout, "--timeout")
    with (
        open_reporter(arguments) as reporter,
        tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=".memhp-collect-") as scratch,
    ):
        options = RunOptions(Path(scratch), timeout=timeout, start=start_of(arguments))
        results = run_all([SNAPSHOT], [guest], options, reporter)
        bundle = results[0].bundle
        if bundle is None or not (bundle / "states" / "000").is_dir():
            return exit_status(results)
        if target.is_dir():
            target.rmdir()
        shutil.move(bundle, target)
        reporter.unknown(results)
        reporter.console.print(f"saved in {target}; memhp check {target} checks it again")
    return exit_status(results)


COMMANDS: Mapping[str, Callable[[Arguments], int]] = {"run": run, "check": check, "collect": collect}
