# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines, rows and JSON for people and scripts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from harness.report.json import dumps
from harness.report.text import aligned, clean


def print_json(value: object) -> None:
    """Print ``value`` as indented JSON."""
    sys.stdout.write(dumps(value))


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print ``rows`` in aligned columns."""
    sys.stdout.writelines(aligned([[clean(cell) for cell in row] for row in rows]))


def print_lines(lines: Iterable[str], out: TextIO, limit: int) -> None:
    """Print ``lines``, cleaned and at most ``limit`` characters long, at once."""
    out.writelines(f"{clean(line, limit=limit)}\n" for line in lines)
    out.flush()
