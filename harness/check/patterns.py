# SPDX-License-Identifier: GPL-2.0-or-later
"""The regular expressions of known bugs. A bundle brings its own, which may be written to never come to an end."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path

from harness.errors import UsageError

#: seconds of CPU time that are left for matching in the block of ``limited``; None: no limit
_left: float | None = None


@contextlib.contextmanager
def limited(seconds: float, path: Path) -> Iterator[None]:
    """In this block, to be entered in the main thread, all matching may take ``seconds`` of CPU time together.

    Raises UsageError, about the file ``path``, once it takes longer: re looks for signals while it matches.
    """
    global _left

    def late(number: int, frame: object) -> None:
        raise UsageError(
            f"{path} takes too long: its regular expressions match for more than {seconds:g} s",
            hint="such as '(a+)+b' need not end; simplify them, or remove the file to check without known bugs",
        )

    before = signal.signal(signal.SIGVTALRM, late)
    _left = seconds
    try:
        yield
    finally:
        _left = None
        signal.signal(signal.SIGVTALRM, before)


def matches(pattern: re.Pattern[str], text: str) -> bool:
    """Whether ``pattern`` matches all of ``text``."""
    global _left
    if _left is None:
        return pattern.fullmatch(text) is not None
    signal.setitimer(signal.ITIMER_VIRTUAL, _left)
    try:
        return pattern.fullmatch(text) is not None
    finally:
        _left = signal.setitimer(signal.ITIMER_VIRTUAL, 0)[0]
