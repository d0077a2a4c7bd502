# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows and JSON on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from harness.report.text import clean


def print_json(value: object) -> None:
    """``value`` as indented JSON."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Rows in aligned columns; the last column is as long as it is."""
    cells = [[clean(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = [f"{cell:<{width}}" for cell, width in zip(row[:-1], widths, strict=False)]
        sys.stdout.write("  ".join([*padded, row[-1]]).rstrip() + "\n")
