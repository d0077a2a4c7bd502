# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp bench``: measures times. Exit status 0, however slow; 1 if a timed operation gave wrong results."""

from __future__ import annotations

import sys
from collections.abc import Callable

from harness.arch import ARCHES
from harness.bench import BenchOptions
from harness.bench.figures import BenchResult, to_json, to_lines
from harness.cli.command_arguments import BenchArguments
from harness.cli.guest_options import guests_of, start_of
from harness.cli.output import print_lines
from harness.config.guest import GuestSpec
from harness.errors import InfraError
from harness.progress import Progress, default_progress
from harness.report.files import STDOUT, check_target, write_report
from harness.report.json import dumps
from harness.report.text import tell

Bench = Callable[[GuestSpec, BenchOptions, Progress], BenchResult]

#: maximum length of a line, which may contain text from a guest
_MAX_LINE = 1000


def run(arguments: BenchArguments) -> int:
    """memhp bench."""
    if arguments.json is not None:
        check_target(arguments.json, "--json")
    options = BenchOptions(arguments.rounds, arguments.timeout, start_of(arguments))
    measure = find_bench(arguments.name)
    out = sys.stderr if arguments.json == STDOUT else sys.stdout
    results: list[BenchResult] = []
    for guest in guests_of(arguments, arguments.arches, ARCHES):
        results.append(measure(guest, options, default_progress()))
        print_lines(to_lines(results[-1]), out, _MAX_LINE)
    status = max(result.exit_status for result in results)
    if arguments.json is not None:
        try:
            outcomes = [to_json(result) for result in results]
            write_report(arguments.json, dumps(outcomes if len(outcomes) > 1 else outcomes[0]))
        except InfraError as error:
            if status == 0:
                raise
            tell(error)
    return status


def find_bench(name: str) -> Bench:
    """The benchmark ``name`` of BENCHES."""
    from harness.bench import speed, walk_speed

    return {"speed": speed.run, "walk": walk_speed.run}[name]
