# SPDX-License-Identifier: GPL-2.0-or-later
"""Cleaning text from a guest for output: it must control neither a terminal nor a CI system, and break no format."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Sequence

from harness.check import CheckResult, Verdict

#: longer text is cut
MAX_TEXT = 2000

# What a CI system obeys in the log of a job: GitHub's ``::`` after blanks at the start of a line, and ``##[`` anywhere
# (actions/runner, ActionCommand.cs); ``##vso[`` of Azure Pipelines and ``##teamcity[``, anywhere. GitLab's sections
# need an escape character and a carriage return.
_COMMAND = re.compile(r"^( *):(?=:)|#(?=#\w*\[)", re.MULTILINE)

#: verdicts as people read them
WORDS: dict[Verdict, str] = {
    Verdict.PASS: "pass",
    Verdict.KNOWN: "known bug",
    Verdict.FAIL: "FAIL",
    Verdict.REFUSED: "refused",
    Verdict.SKIPPED: "skipped",
    Verdict.INFRA: "no verdict",
}


def clean(text: object, *, limit: int = MAX_TEXT, newlines: bool = False) -> str:
    """``text`` with every unprintable character escaped (``\\x1b``, ``\\u202e``) and at most ``limit`` characters.

    Of what a CI system takes for a command in a log, the first character is escaped as well: ``\\x3a:error::``.
    """
    raw = str(text)
    cut = raw if len(raw) <= limit else raw[:limit] + "…"
    shown = "".join(
        char if char.isprintable() or (newlines and char == "\n") else char.encode("unicode_escape").decode()
        for char in cut
    )
    return _COMMAND.sub(lambda found: f"{found[1]}\\x3a" if found[1] is not None else "\\x23", shown)


def pasted(word: object) -> str:
    """``word`` in a command that is shown for pasting: cleaned, and quoted for a shell."""
    return shlex.quote(clean(word))


def tell(text: object) -> None:
    """Print ``text`` on standard error, separate from the results."""
    sys.stderr.write(f"memhp: {clean(text, limit=20_000, newlines=True)}\n")


def seconds(value: float) -> str:
    """``4.4 s`` or ``2 min 05 s``."""
    if value < 99.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


def plural(count: int, noun: str) -> str:
    """``1 step``, ``3 steps``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines with aligned columns; the last column is not padded."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = [f"{cell:<{width}}" for cell, width in zip(row[:-1], widths, strict=False)]
        yield "  ".join([*padded, row[-1]]).rstrip() + "\n"


def invariants_line(checks: tuple[CheckResult, ...]) -> str:
    """``23/23 invariants``, followed by the number not observed; ``not checked`` without checks."""
    if not checks:
        return "not checked"
    passed = sum(check.status == "pass" for check in checks)
    failed = sum(check.status == "fail" for check in checks)
    unseen = len(checks) - passed - failed
    line = f"{passed}/{passed + failed} invariants"
    return f"{line}, {unseen} not observed" if unseen else line
