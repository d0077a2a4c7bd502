# SPDX-License-Identifier: GPL-2.0-or-later
"""The lines of a kernel's configuration: .config, /proc/config.gz unpacked, /boot/config-*.

scripts/kconfig/confdata.c of the kernel writes them.
"""

from __future__ import annotations

import re

_SET = re.compile(r"CONFIG_(\w+)=(.*)", re.ASCII)
_UNSET = re.compile(r"# CONFIG_(\w+) is not set", re.ASCII)
_PLAIN = re.compile(r"[ym]|-?[0-9]{1,20}|0[xX][0-9a-fA-F]{1,16}")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")


def option_of(line: str) -> tuple[str, str | None] | None:
    """The option of a line, without ``CONFIG_``: ``y``, ``m``, a number as written, a string unquoted; None: not set.

    None for a line that is neither.
    """
    if (off := _UNSET.fullmatch(line)) is not None:
        return off[1], None
    if (on := _SET.fullmatch(line)) is None:
        return None
    if on[2] == "n" or _PLAIN.fullmatch(on[2]):
        return on[1], None if on[2] == "n" else on[2]
    string = _STRING.fullmatch(on[2])
    return None if string is None else (on[1], _ESCAPE.sub(r"\1", string[1]))


def read_config(text: str) -> dict[str, str]:
    """The options that a configuration sets; unrecognised lines are skipped."""
    found = (option_of(line.strip()) for line in text.splitlines())
    return {name: value for name, value in filter(None, found) if value is not None}
