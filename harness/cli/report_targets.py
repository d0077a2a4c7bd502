# SPDX-License-Identifier: GPL-2.0-or-later
"""The writers and targets of reports."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TextIO

from harness.cli.command_arguments import ReportArguments
from harness.errors import InfraError, UsageError
from harness.report.book import Book
from harness.report.files import STDOUT, check_target, write_report
from harness.report.html import to_html
from harness.report.json import dumps, results_to_json
from harness.report.junit import to_junit
from harness.report.kcidb import to_kcidb
from harness.report.ktap import to_ktap
from harness.report.text import tell

#: option of a report -> its writer, and its file in a results directory
REPORTS: Mapping[str, tuple[Callable[[Book], str], str]] = {
    "json": (lambda book: dumps(results_to_json(book.runs)), "results.json"),
    "junit": (lambda book: to_junit(book.runs, [id for id, _ in book.missing]), "junit.xml"),
    "ktap": (to_ktap, "results.ktap"),
    "kcidb": (to_kcidb, "kcidb.json"),
    "html": (to_html, "report.html"),
}


def check_reports(arguments: ReportArguments) -> None:
    """Raise UsageError for reports that cannot be written to their targets."""
    targets = arguments.reports
    printed = [f"--{name}" for name, target in targets.items() if target == STDOUT]
    if len(printed) > 1:
        raise UsageError(f"{' and '.join(printed)} both write to standard output", hint="give one of them a file")
    for name, target in targets.items():
        check_target(target, f"--{name}")
    if not re.fullmatch(r"[a-z0-9_]+", arguments.kcidb_origin):
        hint = "use lower-case letters, digits and '_'"
        raise UsageError(f"--kcidb-origin: invalid origin {arguments.kcidb_origin[:80]!r}", hint=hint)


def results_stream(arguments: ReportArguments) -> TextIO:
    """Where results are shown: standard output, unless a report is written there."""
    return sys.stderr if STDOUT in arguments.reports.values() else sys.stdout


def finish_reports(targets: Iterable[tuple[str, str]], book: Book, status: int) -> int:
    """Write each report; returns ``status``, or 3 if that is 0 and a report cannot be written."""
    try:
        for name, target in targets:
            write_report(target, REPORTS[name][0](book))
    except InfraError as error:
        tell(error)
        return status or error.exit_status
    return status


def all_reports(folder: Path) -> list[tuple[str, str]]:
    """All reports, with targets in ``folder``."""
    return [(name, str(folder / file)) for name, (_, file) in REPORTS.items()]
