# SPDX-License-Identifier: GPL-2.0-or-later
"""What /proc/PID/status tells about page tables (fs/proc/array.c, fs/proc/task_mmu.c)."""

from __future__ import annotations

import re

from harness.errors import ParseError
from harness.parsers._lines import decimal, numbered
from harness.parsers.notes import STRICT, Notes
from harness.units import KIB

SOURCE = "/proc/PID/status"

_LINE = re.compile(r"(\w+):[\t ]?(.*)", re.ASCII)
_AMOUNT = re.compile(r"[\t ]*([0-9]+) kB")


def parse_user_page_tables(text: str, notes: Notes = STRICT) -> int:
    """Return the bytes of page tables of all user processes; ``text`` is their status files, one after another.

    Kernel threads have no VmPTE line and count nothing. A line that is no ``Name: value`` is unknown. Raises ParseError
    for a VmPTE that cannot be counted (no amount, a second one of a process, one before the first ``Name:``), and when
    no process at all has page tables: whoever read the files has some.
    """
    total = 0
    counted: bool | None = None
    processes = 0
    for line, row in numbered(SOURCE, text, notes):
        match = _LINE.fullmatch(row)
        if match is None:
            notes.add_unknown(SOURCE, "line", row)
        elif match[1] == "Name":
            counted = False
        elif match[1] == "VmPTE":
            if counted is None:
                raise ParseError(SOURCE, line, row, "before the first 'Name:'")
            amount = _AMOUNT.fullmatch(match[2])
            if amount is None:
                raise ParseError(SOURCE, line, row, "VmPTE is not an amount in kB")
            if counted:
                raise ParseError(SOURCE, line, row, "VmPTE twice in one process")
            counted = True
            processes += 1
            total += decimal(SOURCE, line, row, amount[1]) * KIB
    if not processes:
        raise ParseError(SOURCE, 1, text[:200], "no process with a VmPTE line")
    return total
