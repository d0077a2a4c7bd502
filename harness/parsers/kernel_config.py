# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel's configuration: .config, /proc/config.gz unpacked, /boot/config-* (scripts/kconfig/confdata.c)."""

from __future__ import annotations

from harness.dotconfig import option_of
from harness.errors import ParseError
from harness.parsers._lines import numbered
from harness.parsers.notes import STRICT, Notes

SOURCE = "kernel config"


def parse_config(text: str, notes: Notes = STRICT) -> dict[str, str]:
    """Return the options that are set, without ``CONFIG_``: ``y``, ``m``, a number as written, or a string unquoted.

    Options that are not set are absent. A line that is neither an option nor a comment is unknown, as are a malformed
    option and one with two values (which would count?): those are omitted. Raises ParseError for a text without any
    option.
    """
    options: dict[str, str | None] = {}
    unclear: set[str] = set()
    for _, row in numbered(SOURCE, text, notes):
        found = option_of(row)
        if found is None:
            if row and not row.startswith("#"):
                notes.add_unknown(SOURCE, "line", row)
            continue
        name, value = found
        if options.setdefault(name, value) != value:
            notes.add_unknown(SOURCE, "option with two values", row)
            unclear.add(name)
    known = {name: value for name, value in options.items() if value is not None and name not in unclear}
    if not known:
        raise ParseError(SOURCE, 1, text[:200], "sets no option")
    return known
