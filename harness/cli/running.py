# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that end in a verdict: run, check, collect."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from harness.cli.options import guest_of, read_seconds, run_options
from harness.cli.parser import Arguments
from harness.config.guest import GuestSpec
from harness.config.scenario import SNAPSHOT, Scenario, known_scenarios, load_scenario
from harness.errors import InfraError, UsageError
from harness.report.files import STDOUT, check_target, write_report
from harness.report.json import dumps, results_to_json
from harness.report.junit import to_junit
from harness.report.tally import exit_status
from harness.report.terminal import TerminalReporter
from harness.scenarios.options import RunOptions
from harness.scenarios.result import RunResult


@contextlib.contextmanager
def open_reporter(arguments: Arguments) -> Iterator[TerminalReporter]:
    """Results on standard output, unless a report wants it for itself."""
    reports = [getattr(arguments, name, None) for name in ("json", "junit")]
    out = sys.stderr if STDOUT in reports else sys.stdout
    reporter = TerminalReporter(out, sys.stderr, color=arguments.color)
    try:
        yield reporter
    finally:
        reporter.rest()


def check_reports(arguments: Arguments) -> None:
    """Raise UsageError for reports that cannot be written where they are wanted."""
    if arguments.json == STDOUT and arguments.junit == STDOUT:
        raise UsageError("--json and --junit both want standard output", hint="give one of them a file")
    for option in ("json", "junit"):
        target = getattr(arguments, option)
        if target is not None:
            check_target(target, f"--{option}")


def _write_reports(arguments: Arguments, results: Sequence[RunResult]) -> None:
    if arguments.json is not None:
        write_report(arguments.json, dumps(results_to_json(results)))
    if arguments.junit is not None:
        write_report(arguments.junit, to_junit(results))


def finish(arguments: Arguments, reporter: TerminalReporter, results: Sequence[RunResult]) -> int:
    """Summary, reports, exit status. A report that cannot be written does not hide a broken invariant."""
    reporter.summary(results)
    status = exit_status(results)
    try:
        _write_reports(arguments, results)
    except InfraError as error:
        sys.stderr.write(f"memhp: {error}\n")
        return status or error.exit_status
    return status


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
    check_reports(arguments)
    if arguments.keep:
        from harness.cli.keeping import run_and_keep

        return run_and_keep(arguments)
    scenarios, guest, options = chosen_scenarios(arguments), guest_of(arguments), run_options(arguments)
    with open_reporter(arguments) as reporter:
        return finish(arguments, reporter, run_all(scenarios, guest, options, reporter))


def run_all(
    scenarios: Sequence[Scenario], guest: GuestSpec, options: RunOptions, reporter: TerminalReporter
) -> list[RunResult]:
    """Run every scenario on a guest of its own."""
    from harness.scenarios.runner import run_scenarios

    return run_scenarios(scenarios, guest, options, reporter, reporter.progress)


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
        results = run_all([SNAPSHOT], guest, RunOptions(Path(scratch), timeout=timeout), reporter)
        bundle = results[0].bundle
        if bundle is None or not (bundle / "states" / "000").is_dir():
            return exit_status(results)
        if target.is_dir():
            target.rmdir()
        shutil.move(bundle, target)
        reporter.console.print(f"saved in {target}; memhp check {target} checks it again")
    return exit_status(results)


COMMANDS: Mapping[str, Callable[[Arguments], int]] = {"run": run, "check": check, "collect": collect}
