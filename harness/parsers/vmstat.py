# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/vmstat (mm/vmstat.c, vmstat_show)."""

from __future__ import annotations

import re

from harness.errors import ParseError
from harness.parsers._lines import decimal, numbered

SOURCE = "/proc/vmstat"

_LINE = re.compile(r"(\w+) ([0-9]+)", re.ASCII)


def parse_vmstat(text: str) -> dict[str, int]:
    """Return the counters by name (pages, events or kB, as the name has it).

    Raises ParseError for any other line, for a name that comes twice, and when nr_free_pages is missing.
    """
    counters: dict[str, int] = {}
    for line, row in numbered(SOURCE, text):
        match = _LINE.fullmatch(row)
        if match is None:
            raise ParseError(SOURCE, line, row, "not '<name> <number>'")
        if match[1] in counters:
            raise ParseError(SOURCE, line, row, f"{match[1]!r} twice")
        counters[match[1]] = decimal(SOURCE, line, row, match[2])
    if "nr_free_pages" not in counters:
        raise ParseError(SOURCE, 1, text[:200], "no nr_free_pages")
    return counters
