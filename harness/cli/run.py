# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp run``; with ``--keep`` it ends at the first failing guest, which is kept running.

With ``--bisect`` it has the exit statuses that ``git bisect run`` understands (git-bisect(1)): 0 good, 1 bad, 125
cannot be tested, above 127 stop. A kernel that is missing, invalid, or does not build or boot does not show the bug
that is bisected; a misspelt option must not make every commit bad.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from harness.cli.command_arguments import RunArguments
from harness.cli.guest_options import bundle_dir_of, demand_of, guests_of, run_options, start_of
from harness.cli.matrix import run_matrix
from harness.cli.parser import WrongBisection
from harness.cli.results import check_reports, chosen_scenarios, finish, open_reporter, run_all
from harness.errors import MemhpError, UsageError
from harness.matrix.history import check_history
from harness.report.text import tell
from harness.scenarios.result import RunResult
from harness.scenarios.run_options import STARTS
from harness.scenarios.session import Session

GOOD, BAD, UNTESTABLE = 0, 1, 125


def run(arguments: RunArguments) -> int:
    """memhp run."""
    if arguments.matrix is not None:
        return run_matrix(arguments, arguments.matrix)
    if arguments.bisect:
        return _bisect(arguments)
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
        return _run_and_keep(arguments)
    scenarios, guests = chosen_scenarios(arguments), guests_of(arguments, arguments.arches)
    options = run_options(arguments, start=start_of(arguments), rounds=arguments.rounds)
    with open_reporter(arguments) as reporter:
        results = run_all(scenarios, guests, options, reporter)
        return finish(arguments, reporter, results, arguments.history, bool(arguments.scenarios))


def _run_and_keep(arguments: RunArguments) -> int:
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
                status = finish(arguments, reporter, [*passed, result], arguments.history, bool(arguments.scenarios))
                assert result.bundle is not None
                reporter.console.print(keeping_note(result.bundle, seconds))
                release(status)
                serve(session, scenario.apply_to(guest), seconds)

            passed: list[RunResult] = []
            for scenario, guest in pairs:
                passed += run_pairs([(scenario, guest)], options, reporter, reporter.progress, keep)
                if release.status is not None:
                    return release.status
            return finish(arguments, reporter, passed, arguments.history, bool(arguments.scenarios))

    return split_off(work)


def _bisect(arguments: RunArguments) -> int:
    """Run, and return git's exit status; raises WrongBisection for an invalid request."""
    kernel = arguments.kernel
    if kernel is not None and "/" in kernel and not Path(os.path.expanduser(kernel)).exists():
        tell(f"no such kernel: {kernel}: this commit cannot be tested")
        return UNTESTABLE
    if arguments.keep:
        raise WrongBisection("--keep and --bisect exclude each other", hint="memhp run --keep shows one commit's guest")
    if not set(arguments.boot) & set(STARTS):
        # Every kernel is tested once: a saved boot snapshot would not be used again.
        arguments = dataclasses.replace(arguments, boot=(*arguments.boot, "cold"))
    try:
        bundle_dir_of(arguments.bundle_dir)
        demand_of(arguments)
        for guest in guests_of(arguments, arguments.arches):
            for scenario in chosen_scenarios(arguments):
                scenario.apply_to(guest)
    except UsageError as error:
        raise WrongBisection(error.message, hint=error.hint) from None
    try:
        status = _run(arguments)
    except MemhpError as error:
        tell(error)
        status = UNTESTABLE
    if status in (GOOD, BAD):
        return status
    tell("no verdict: this commit cannot be tested")
    return UNTESTABLE
