# SPDX-License-Identifier: GPL-2.0-or-later
"""One monotonic deadline, carried through every wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Condition
from typing import TypeVar

from harness.errors import DeadlineExpired

T = TypeVar("T")


class Deadline:
    """A point in monotonic time by which all work that shares this object must be done."""

    def __init__(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"a deadline cannot be in the past: {seconds}")
        self.seconds = float(seconds)
        self._end = time.monotonic() + seconds

    def __repr__(self) -> str:
        return f"Deadline({self.seconds:g} s, {self.remaining():.1f} s left)"

    def remaining(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self._end - time.monotonic())

    @property
    def expired(self) -> bool:
        return self.remaining() == 0.0

    def at_most(self, seconds: float) -> Deadline:
        """A deadline for one part of the work: ``seconds`` from now, or this one if it comes first."""
        return Deadline(min(seconds, self.remaining()))

    def check(self, awaited: str, last_seen: str | None = None) -> None:
        """Raise DeadlineExpired, naming ``awaited``, if the time is up."""
        if self.expired:
            raise DeadlineExpired(awaited, self.seconds, last_seen=last_seen)

    def wait(
        self,
        condition: Condition,
        probe: Callable[[], T | None],
        awaited: str,
        last_seen: Callable[[], str | None] = lambda: None,
    ) -> T:
        """Wait on ``condition`` (taken here) until ``probe`` returns something other than None, and return it.

        Code that changes the state read by ``probe`` must notify the condition. Raises DeadlineExpired.
        """
        with condition:
            while (found := probe()) is None:
                if self.expired:
                    raise DeadlineExpired(awaited, self.seconds, last_seen=last_seen())
                condition.wait(self.remaining())
            return found
