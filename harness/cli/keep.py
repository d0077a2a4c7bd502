# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp run --keep``: the run ends at the first failing guest, which is kept running."""

from __future__ import annotations

from harness.cli.command_arguments import RunArguments
from harness.cli.guest_options import guests_of, run_options, start_of
from harness.cli.results import chosen_scenarios, finish, open_reporter
from harness.errors import UsageError
from harness.scenarios.result import RunResult
from harness.scenarios.session import Session


def run_and_keep(arguments: RunArguments) -> int:
    """Run the scenarios as ``memhp run`` does; ``harness.shell.keeper`` then owns the kept guest."""
    options = run_options(arguments, start=start_of(arguments), rounds=arguments.rounds)
    if options.jobs > 1:
        raise UsageError("--keep needs one guest at a time", hint="remove --jobs")
    guests = guests_of(arguments, arguments.arches)
    pairs = [(scenario, guest) for guest in guests for scenario in chosen_scenarios(arguments)]
    seconds = arguments.keep_for
    from harness.scenarios.runner import run_pairs

    # Before any thread exists: a fork copies only the calling thread.
    from harness.shell.keeper import ParentRelease, keeping_note, serve, split_off

    def work(release: ParentRelease) -> int:
        with open_reporter(arguments) as reporter:

            def keep(session: Session, result: RunResult) -> None:
                reporter.run_finished(result)
                status = finish(arguments, reporter, [*passed, result], arguments.history)
                assert result.bundle is not None
                reporter.console.print(keeping_note(result.bundle, seconds))
                release(status)
                serve(session, scenario.apply_to(guest), seconds)

            passed: list[RunResult] = []
            for scenario, guest in pairs:
                passed += run_pairs([(scenario, guest)], options, reporter, reporter.progress, keep)
                if release.status is not None:
                    return release.status
            return finish(arguments, reporter, passed, arguments.history)

    return split_off(work)
