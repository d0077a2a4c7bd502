# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel's configuration: .config, /proc/config.gz unpacked, /boot/config-* (scripts/kconfig/confdata.c)."""

from __future__ import annotations

import re

from harness.errors import ParseError
from harness.parsers._lines import numbered

SOURCE = "kernel config"

_SET = re.compile(r"CONFIG_(\w+)=(.*)", re.ASCII)
_UNSET = re.compile(r"# CONFIG_(\w+) is not set", re.ASCII)
_PLAIN = re.compile(r"[ym]|-?[0-9]{1,20}|0[xX][0-9a-fA-F]{1,16}")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")


def parse_config(text: str) -> dict[str, str]:
    """Return the options that are set, without ``CONFIG_``: ``y``, ``m``, a number as written, or a string unquoted.

    Options that are not set are absent. Raises ParseError for a line that is neither an option nor a comment, for an
    option that comes twice, and for a text that sets nothing.
    """
    options: dict[str, str | None] = {}
    for line, row in numbered(SOURCE, text):
        if (off := _UNSET.fullmatch(row)) is not None:
            name, value = off[1], None
        elif not row or row.startswith("#"):
            continue
        elif (on := _SET.fullmatch(row)) is not None:
            name, value = on[1], _value(line, row, on[2])
        else:
            raise ParseError(SOURCE, line, row, "neither 'CONFIG_X=…' nor a comment")
        if name in options:
            raise ParseError(SOURCE, line, row, f"CONFIG_{name} twice")
        options[name] = value
    found = {name: value for name, value in options.items() if value is not None}
    if not found:
        raise ParseError(SOURCE, 1, text[:200], "sets no option at all")
    return found


def _value(line: int, row: str, raw: str) -> str | None:
    if raw == "n":
        return None
    if _PLAIN.fullmatch(raw):
        return raw
    string = _STRING.fullmatch(raw)
    if string is None:
        raise ParseError(SOURCE, line, row, "a value is y, m, n, a number or a quoted string")
    return _ESCAPE.sub(r"\1", string[1])
