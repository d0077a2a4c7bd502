# SPDX-License-Identifier: GPL-2.0-or-later
"""Waits that the guest does: each by itself, or in one message with the commands that follow it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.deadline import Deadline
from harness.guest.ssh import Command, CommandResult, Shell


@dataclass(frozen=True, slots=True)
class GuestWait:
    """``command`` returns once something holds in the guest, or late: then ``judge`` raises DeadlineExpired."""

    command: Command
    judge: Callable[[CommandResult], None]

    def alone(self, shell: Shell, deadline: Deadline) -> None:
        """Wait by itself."""
        command, stdin = self.command
        self.judge(shell.run(command, stdin=stdin, deadline=deadline))
