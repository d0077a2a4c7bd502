# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp run --bisect``: the exit statuses that ``git bisect run`` understands (git-bisect(1)).

0 good, 1 bad, 125 cannot be tested, above 127 stop. A kernel that is not there, is no kernel, does not build or does
not boot is none of the bug that is looked for; a misspelt option must not make every commit a bad one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.cli.options import guests_of, run_options
from harness.cli.parser import Arguments
from harness.errors import MemhpError, UsageError
from harness.report.text import tell
from harness.scenarios.options import STARTS

GOOD, BAD, UNTESTABLE, STOP = 0, 1, 125, 128


class StopBisection(UsageError):
    """The request itself is wrong, whatever the commit."""

    exit_status = STOP


def run_bisect(arguments: Arguments, run: Callable[[Arguments], int]) -> int:
    """Run what was asked for and say how it ended in git's terms; raises StopBisection for a wrong request."""
    kernel = arguments.kernel
    if kernel is not None and "/" in kernel and not Path(kernel).expanduser().exists():
        tell(f"no such kernel: {kernel}: this commit cannot be tested")
        return UNTESTABLE
    if arguments.keep:
        raise StopBisection("--keep and --bisect exclude each other", hint="memhp run --keep shows one commit's guest")
    said = arguments.boot or []
    if not set(said) & set(STARTS):
        # No kernel is met twice: there is nothing to save a guest for.
        arguments.boot = [*said, "cold"]
    try:
        run_options(arguments)
        _check_scenarios(arguments)
    except UsageError as error:
        raise StopBisection(error.message, hint=error.hint) from None
    try:
        status = run(arguments)
    except MemhpError as error:
        tell(error)
        status = UNTESTABLE
    if status in (GOOD, BAD):
        return status
    tell("no verdict: this commit cannot be tested")
    return UNTESTABLE


def _check_scenarios(arguments: Arguments) -> None:
    from harness.cli.running import chosen_scenarios

    for guest in guests_of(arguments):
        for scenario in chosen_scenarios(arguments):
            scenario.apply_to(guest)
