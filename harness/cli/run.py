# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp run``."""

from __future__ import annotations

from harness.cli.bisect import run_bisect
from harness.cli.command_arguments import RunArguments
from harness.cli.guest_options import guests_of, run_options, start_of
from harness.cli.keep import run_and_keep
from harness.cli.matrix import run_matrix
from harness.cli.report_targets import check_reports
from harness.cli.results import chosen_scenarios, finish, open_reporter, run_all
from harness.errors import UsageError
from harness.matrix.history import check_history


def run(arguments: RunArguments) -> int:
    """memhp run."""
    if arguments.matrix is not None:
        return run_matrix(arguments, arguments.matrix)
    if arguments.bisect:
        return run_bisect(arguments, _run)
    for option in ("shard", "results"):
        if getattr(arguments, option) is not None:
            raise UsageError(f"--{option} needs --matrix", hint="memhp run --matrix configs/nightly.yaml")
    if arguments.list:
        raise UsageError("--list needs --matrix", hint="memhp list scenarios lists the scenarios")
    return _run(arguments)


def _run(arguments: RunArguments) -> int:
    check_reports(arguments)
    if arguments.history is not None:
        check_history(arguments.history)
    if arguments.keep:
        return run_and_keep(arguments)
    scenarios, guests = chosen_scenarios(arguments), guests_of(arguments, arguments.arches)
    options = run_options(arguments, start=start_of(arguments), rounds=arguments.rounds)
    with open_reporter(arguments) as reporter:
        results = run_all(scenarios, guests, options, reporter)
        return finish(arguments, reporter, results, arguments.history)
