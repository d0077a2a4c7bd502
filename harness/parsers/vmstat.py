# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/vmstat (mm/vmstat.c, vmstat_show)."""

from __future__ import annotations

import re

from harness.errors import ParseError
from harness.parsers._lines import decimal, numbered
from harness.parsers.notes import STRICT, Notes

SOURCE = "/proc/vmstat"

_LINE = re.compile(r"(\S+) ([0-9]+)", re.ASCII)


def parse_vmstat(text: str, notes: Notes = STRICT) -> dict[str, int]:
    """Return the counters by name (pages, events or kB, as the name has it).

    A counter may have any name. A malformed line and a repeated name (which would count?) are unknown and omitted.
    Raises ParseError without nr_free_pages, the first counter of every kernel.
    """
    counters: dict[str, int] = {}
    twice: set[str] = set()
    for line, row in numbered(SOURCE, text, notes):
        match = _LINE.fullmatch(row)
        if match is None:
            notes.add_unknown(SOURCE, "line", row)
            continue
        if match[1] in counters:
            notes.add_unknown(SOURCE, "name with two values", row)
            twice.add(match[1])
        counters[match[1]] = decimal(SOURCE, line, row, match[2])
    if "nr_free_pages" not in counters.keys() - twice:
        raise ParseError(SOURCE, 1, text[:200], "no nr_free_pages")
    return {name: value for name, value in counters.items() if name not in twice}
