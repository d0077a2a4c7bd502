# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp run --bisect``: the exit statuses that ``git bisect run`` understands (git-bisect(1)).

0 good, 1 bad, 125 cannot be tested, above 127 stop. A kernel that is not there, is no kernel, does not build or does
not boot is none of the bug that is looked for; a misspelt option must not make every commit a bad one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from harness.cli.command_arguments import RunArguments
from harness.cli.guest_options import bundle_dir_of, demand_of, guests_of
from harness.cli.parser import WrongBisection
from harness.cli.results import chosen_scenarios
from harness.errors import MemhpError, UsageError
from harness.report.text import tell
from harness.scenarios.run_options import STARTS

GOOD, BAD, UNTESTABLE = 0, 1, 125


def run_bisect(arguments: RunArguments, run: Callable[[RunArguments], int]) -> int:
    """Run what was asked for and say how it ended in git's terms; raises WrongBisection for a wrong request."""
    kernel = arguments.kernel
    if kernel is not None and "/" in kernel and not Path(kernel).expanduser().exists():
        tell(f"no such kernel: {kernel}: this commit cannot be tested")
        return UNTESTABLE
    if arguments.keep:
        raise WrongBisection("--keep and --bisect exclude each other", hint="memhp run --keep shows one commit's guest")
    if not set(arguments.boot) & set(STARTS):
        # No kernel is met twice: there is nothing to save a guest for.
        arguments = dataclasses.replace(arguments, boot=(*arguments.boot, "cold"))
    try:
        bundle_dir_of(arguments.bundle_dir)
        demand_of(arguments)
        _check_scenarios(arguments)
    except UsageError as error:
        raise WrongBisection(error.message, hint=error.hint) from None
    try:
        status = run(arguments)
    except MemhpError as error:
        tell(error)
        status = UNTESTABLE
    if status in (GOOD, BAD):
        return status
    tell("no verdict: this commit cannot be tested")
    return UNTESTABLE


def _check_scenarios(arguments: RunArguments) -> None:
    for guest in guests_of(arguments, arguments.arches):
        for scenario in chosen_scenarios(arguments):
            scenario.apply_to(guest)
