# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp check``."""

from __future__ import annotations

from harness.cli.command_arguments import CheckArguments
from harness.cli.results import check_reports, finish, open_reporter
from harness.errors import UsageError


def run(arguments: CheckArguments) -> int:
    """memhp check."""
    check_reports(arguments)
    directory = arguments.directory
    if not directory.is_dir():
        raise UsageError(f"no directory {directory}", hint="name a bundle of memhp run, or a snapshot of memhp collect")
    from harness.scenarios.recheck import recheck

    with open_reporter(arguments) as reporter:
        result = recheck(directory)
        reporter.run_started(result.scenario, result.guest)
        for step in result.steps:
            reporter.step_finished(step)
        reporter.run_finished(result)
        return finish(arguments, reporter, [result])
