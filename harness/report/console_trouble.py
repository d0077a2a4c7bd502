# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest's serial console says from its first alarming line on, for a log that outlives the bundle."""

from __future__ import annotations

from collections import deque
from itertools import islice
from pathlib import Path

from harness.bounded import open_regular
from harness.parsers.dmesg import alarming
from harness.parsers.notes import printable

#: lines that are shown: those before the first alarm, and from it on
BEFORE, SHOWN = 3, 80
#: the longest line that is read as one
_MAX_LINE = 4_096
#: lines that are read; a console is capped long before it
_MAX_LINES = 1_000_000


def console_trouble(bundle: Path) -> str:
    """The lines of ``bundle``'s console around its first alarm; "" if it has none, or cannot be read.

    Each starts with ``| ``, so that no line of a guest can be a command to whatever shows it.
    """
    before: deque[str] = deque(maxlen=BEFORE)
    try:
        with open_regular(bundle / "console.log") as file:
            for raw in islice(iter(lambda: file.readline(_MAX_LINE), b""), _MAX_LINES):
                before.append(_shown(raw))
                if alarming(raw.decode(errors="replace").strip()) is not None:
                    rest = islice(iter(lambda: file.readline(_MAX_LINE), b""), SHOWN - 1)
                    return "\n".join((*before, *map(_shown, rest)))
    except OSError:
        pass
    return ""


def _shown(raw: bytes) -> str:
    return f"| {printable(raw.decode(errors='replace').rstrip())}"
