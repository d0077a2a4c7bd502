# SPDX-License-Identifier: GPL-2.0-or-later
"""memhp bench: how long things take. Ends with 0 once measured, however slow; with 1 if what was timed is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable

from harness.arch import ARCHES
from harness.bench import BENCHES, BenchOptions
from harness.bench.figures import BenchResult, to_json, to_lines
from harness.cli.command_arguments import BenchArguments
from harness.cli.guest_options import guests_of, start_of
from harness.config.guest import GuestSpec
from harness.errors import InfraError
from harness.progress import Progress, default_progress
from harness.report.files import STDOUT, check_target, write_report
from harness.report.json import dumps
from harness.report.text import clean, tell

Bench = Callable[[GuestSpec, BenchOptions, Progress], BenchResult]

#: a line of figures is short; text of a guest's may not be
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
        for line in to_lines(results[-1]):
            out.write(f"{clean(line, limit=_MAX_LINE)}\n")
        out.flush()
    status = max(result.exit_status for result in results)
    if arguments.json is not None:
        try:
            found = [to_json(result) for result in results]
            write_report(arguments.json, dumps(found if len(found) > 1 else found[0]))
        except InfraError as error:
            if status == 0:
                raise
            tell(error)
    return status


def find_bench(name: str) -> Bench:
    """The benchmark called ``name``, one of BENCHES: ``run`` of the module of that name."""
    from importlib import import_module

    assert name in BENCHES
    found: Bench = import_module(f"harness.bench.{name}").run
    return found
