# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp selftest``: tests the oracle. Exit status 0 only if the right invariant named every corruption."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from harness.arch import ARCHES
from harness.cli.command_arguments import SelftestArguments
from harness.cli.guest_options import guests_of, start_of
from harness.cli.output import print_columns, print_lines
from harness.errors import UsageError
from harness.progress import default_progress
from harness.report.files import STDOUT, check_target, write_report
from harness.report.json import dumps
from harness.scenarios.run_options import RunOptions
from harness.selftest.catalogue import chosen
from harness.selftest.corruption import Corruption
from harness.selftest.kernel_trials import KernelTrial, run_kernels
from harness.selftest.kernelresult import describe_bug, kernels_to_json, line_of, score
from harness.selftest.kernelresult import exit_status as kernels_exit_status
from harness.selftest.oracle import run_selftest
from harness.selftest.putback import KernelBug, chosen_bugs, known_bugs
from harness.selftest.score import SelftestResult, describe, exit_status, to_json, to_lines

#: maximum length of a line, which may name many corruptions
_MAX_LINE = 4000


def run(arguments: SelftestArguments) -> int:
    """memhp selftest."""
    if arguments.json is not None:
        check_target(arguments.json, "--json")
    if arguments.kernels:
        return _kernels(arguments)
    corruptions = chosen(arguments.only)
    if arguments.list:
        return _list(corruptions, arguments.json)
    guests = guests_of(arguments, arguments.arches, ARCHES)
    out = sys.stderr if arguments.json == STDOUT else sys.stdout
    results: list[SelftestResult] = []
    for guest in guests:
        results.append(run_selftest(guest, corruptions, arguments.timeout, default_progress(), start_of(arguments)))
        print_lines(to_lines(results[-1]), out, _MAX_LINE)
    if arguments.json is not None:
        write_report(arguments.json, dumps(to_json(results)))
    return exit_status(results)


def _list(corruptions: Sequence[Corruption], target: str | None) -> int:
    if target is not None:
        write_report(target, dumps([describe(item) for item in corruptions]))
        return 0
    rows = [(item.name, item.target, " ".join(sorted(item.broken)), item.summary) for item in corruptions]
    print_columns([("name", "corrupts", "named by", "what is wrong"), *rows])
    return 0


def _kernels(arguments: SelftestArguments) -> int:
    """memhp selftest --kernels: real bugs reintroduced, one kernel each."""
    if arguments.kernel is not None:
        raise UsageError("--kernel and --kernels exclude each other", hint="--kernels builds its own: see --list")
    bugs = chosen_bugs(known_bugs(), arguments.only)
    if arguments.list:
        return _list_bugs(bugs, arguments.json)
    options = RunOptions(timeout=arguments.timeout, start=start_of(arguments))
    out = sys.stderr if arguments.json == STDOUT else sys.stdout
    trials: list[KernelTrial] = []

    for guest in guests_of(arguments, arguments.arches, ARCHES):
        for trial in run_kernels(guest, bugs, options, default_progress()):
            trials.append(trial)
            print_lines([line_of(trial)], out, _MAX_LINE)
    print_lines(score(trials), out, _MAX_LINE)
    if arguments.json is not None:
        write_report(arguments.json, dumps(kernels_to_json(trials)))
    return kernels_exit_status(trials)


def _list_bugs(bugs: Sequence[KernelBug], target: str | None) -> int:
    if target is not None:
        write_report(target, dumps([describe_bug(bug) for bug in bugs]))
        return 0
    rows = [(bug.name, " ".join(bug.arches), " ".join(bug.named_by), bug.takes_back) for bug in bugs]
    print_columns([("name", "architecture", "named by", "takes back"), *rows])
    return 0
