# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp replay``."""

from __future__ import annotations

from harness.cli.command_arguments import ReplayArguments
from harness.cli.guest_options import bundle_dir_of
from harness.cli.results import check_reports, finish, open_reporter, run_all
from harness.scenarios.replay import read_replay, require_kernel
from harness.scenarios.run_options import RunOptions


def run(arguments: ReplayArguments) -> int:
    """memhp replay."""
    check_reports(arguments)
    bundles = bundle_dir_of(arguments.bundle_dir)
    recorded = read_replay(arguments.bundle)
    options = RunOptions(
        bundles,
        recorded.seed,
        arguments.timeout,
        rounds=recorded.rounds,
        start=recorded.start,
        known_bugs=arguments.known_bugs,
        demand=recorded.demand,
    )
    with open_reporter(arguments) as reporter:
        require_kernel(recorded, reporter.progress)
        return finish(arguments, reporter, run_all([recorded.scenario], [recorded.guest], options, reporter))
