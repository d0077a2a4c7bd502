# SPDX-License-Identifier: GPL-2.0-or-later
"""memhp selftest: the oracle's own test. Ends with 0 only if every corruption was named by the right invariant."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from harness.arch import ARCHES
from harness.cli.options import guests_of, read_seconds, start_of
from harness.cli.parser import Arguments
from harness.cli.showing import print_columns
from harness.progress import default_progress
from harness.report.files import STDOUT, check_target, write_report
from harness.report.json import dumps
from harness.report.text import clean
from harness.selftest.catalogue import chosen
from harness.selftest.corruption import Corruption
from harness.selftest.result import SelftestResult, describe, exit_status, to_json, to_lines
from harness.selftest.run import run_selftest

#: a line names all corruptions that were not tried for one reason
_MAX_LINE = 4000


def selftest(arguments: Arguments) -> int:
    """memhp selftest."""
    if arguments.json is not None:
        check_target(arguments.json, "--json")
    corruptions = chosen(arguments.only)
    if arguments.list:
        return _list(corruptions, arguments.json)
    timeout = read_seconds(arguments.timeout, "--timeout")
    guests = guests_of(arguments, ARCHES)
    out = sys.stderr if arguments.json == STDOUT else sys.stdout
    results: list[SelftestResult] = []
    for guest in guests:
        results.append(run_selftest(guest, corruptions, timeout, default_progress(), start_of(arguments)))
        for line in to_lines(results[-1]):
            out.write(f"{clean(line, limit=_MAX_LINE)}\n")
        out.flush()
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


COMMANDS: Mapping[str, Callable[[Arguments], int]] = {"selftest": selftest}
