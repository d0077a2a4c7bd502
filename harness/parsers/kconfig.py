# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel's configuration: .config, /proc/config.gz unpacked, /boot/config-* (scripts/kconfig/confdata.c)."""

from __future__ import annotations

import re

from harness.errors import ParseError
from harness.parsers._lines import numbered
from harness.parsers.notes import STRICT, Notes

SOURCE = "kernel config"

_SET = re.compile(r"CONFIG_(\w+)=(.*)", re.ASCII)
_UNSET = re.compile(r"# CONFIG_(\w+) is not set", re.ASCII)
_PLAIN = re.compile(r"[ym]|-?[0-9]{1,20}|0[xX][0-9a-fA-F]{1,16}")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")


def parse_config(text: str, notes: Notes = STRICT) -> dict[str, str]:
    """Return the options that are set, without ``CONFIG_``: ``y``, ``m``, a number as written, or a string unquoted.

    Options that are not set are absent. A line that is neither an option nor a comment is unknown, as are an option of
    another form and one with two values (which of them would count?): those are left out. Raises ParseError for a text
    that sets nothing.
    """
    options: dict[str, str | None] = {}
    unclear: set[str] = set()
    for _, row in numbered(SOURCE, text, notes):
        if (off := _UNSET.fullmatch(row)) is not None:
            name, value = off[1], None
        elif not row or row.startswith("#"):
            continue
        elif (on := _SET.fullmatch(row)) is not None and on[2] == "n":
            name, value = on[1], None
        elif on is not None and (read := _value(on[2])) is not None:
            name, value = on[1], read
        else:
            notes.add_unknown(SOURCE, "line", row)
            continue
        if options.setdefault(name, value) != value:
            notes.add_unknown(SOURCE, "option with two values", row)
            unclear.add(name)
    found = {name: value for name, value in options.items() if value is not None and name not in unclear}
    if not found:
        raise ParseError(SOURCE, 1, text[:200], "sets no option at all")
    return found


def _value(raw: str) -> str | None:
    if _PLAIN.fullmatch(raw):
        return raw
    string = _STRING.fullmatch(raw)
    return None if string is None else _ESCAPE.sub(r"\1", string[1])
