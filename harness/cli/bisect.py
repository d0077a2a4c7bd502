# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp run --bisect``: the exit statuses that ``git bisect run`` understands (git-bisect(1)).

0 good, 1 bad, 125 cannot be tested, above 127 stop. A kernel that is missing, invalid, or does not build or boot does
not show the bug that is bisected; a misspelt option must not make every commit bad.
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
    """Call ``run`` and return git's exit status; raises WrongBisection for an invalid request."""
    kernel = arguments.kernel
    if kernel is not None and "/" in kernel and not Path(kernel).expanduser().exists():
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
