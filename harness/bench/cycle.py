# SPDX-License-Identifier: GPL-2.0-or-later
"""Verified hotplug cycles, and the guest's share of their time."""

from __future__ import annotations

import time
from collections.abc import Sequence

from harness.check import Verdict
from harness.deadline import Deadline
from harness.errors import InfraError
from harness.guest.ssh import OUTPUT_LIMIT, CommandResult, GuestShell
from harness.scenarios.result import StepResult
from harness.scenarios.session import Session
from harness.scenarios.verbs.verb import Verb


class Stopwatch(GuestShell):
    """A guest's shell that records when commands ran in the guest: ``spans`` of monotonic seconds."""

    def __init__(self, shell: GuestShell) -> None:
        """Commands are run by ``shell``."""
        self._shell = shell
        self.spans: list[tuple[float, float]] = []

    def run(self, command: str, *, stdin: bytes = b"", deadline: Deadline, limit: int = OUTPUT_LIMIT) -> CommandResult:
        """Run ``command`` in ``shell``, timed."""
        start = time.monotonic()
        try:
            return self._shell.run(command, stdin=stdin, deadline=deadline, limit=limit)
        finally:
            self.spans.append((start, time.monotonic()))

    def close(self) -> None:
        """Does nothing: the owner of ``shell`` closes it."""


def union(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds covered by at least one of ``spans``."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


class Cycle:
    """Steps that restore the guest's state, run repeatedly.

    ``wall`` has the total seconds of each cycle, ``guest`` the seconds in which the guest worked for us.
    """

    def __init__(self, session: Session, watch: Stopwatch, acts: Sequence[Verb]) -> None:
        self.session = session
        self.watch = watch
        self.acts = acts
        self.wall: list[float] = []
        self.guest: list[float] = []

    def once(self, *, counts: bool = True) -> None:
        """Run and check all steps. Raises InfraError if one does not pass: its time would be meaningless."""
        start, guest = time.monotonic(), 0.0
        for args in self.acts:
            guest += self._step(args)
        if counts:
            self.wall.append(time.monotonic() - start)
            self.guest.append(guest)

    def _step(self, args: Verb) -> float:
        """Run one step and return the guest's share in seconds.

        Until the action has ended, according to QMP events or the guest's answer, all time counts as the guest's;
        afterwards, while the state is collected, only the time of commands in the guest does.
        """
        start, before = time.monotonic(), len(self.watch.spans)
        result = self.session.act(args.name, args.run)
        require_pass(result)
        ended = start + result.guest_seconds
        later = [(max(ended, begin), end) for begin, end in self.watch.spans[before:] if end > ended]
        return result.guest_seconds + union(later)


def require_pass(result: StepResult) -> None:
    """Raise InfraError unless a step passed."""
    if result.verdict is not Verdict.PASS:
        broken = [check.invariant for check in result.checks if check.status == "fail"]
        why = f"{', '.join(broken)} broken" if broken else result.note
        raise InfraError(f"a timed step failed: {result.title}: {why}", hint="see memhp run for details")
