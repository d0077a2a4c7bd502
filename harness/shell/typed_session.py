# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a session's lines until its end: handles errors, and determines the exit status."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from harness.check import Verdict
from harness.errors import InfraError, MemhpError, UsageError
from harness.report.text import clean
from harness.shell.commands import do
from harness.shell.explorer import Explorer, Leave

_STATUS = {Verdict.PASS: 0, Verdict.KNOWN: 0, Verdict.FAIL: 1}


def explore(explorer: Explorer, lines: Iterator[str]) -> tuple[int, bool]:
    """Run the lines; returns the exit status, and whether the guest is to be kept.

    0: nothing was found but known bugs. 1: an invariant was broken. 2: a line of a script was invalid (a person can
    type another one). 3: the guest or the harness failed, which ends the session if QEMU ended or in a script.
    """
    status: int | None = None
    try:
        for line in lines:
            status = _one(explorer, line)
            if status is not None:
                break
    except Leave as leave:
        return _STATUS.get(explorer.worst, 3), leave.keep
    return (_STATUS.get(explorer.worst, 3) if status is None else status), False


def _one(explorer: Explorer, line: str) -> int | None:
    """Run one line; returns the exit status if it ends the session."""
    if not explorer.interactive and line.strip():
        explorer.say(Text(f"> {clean(line.strip())}", style="bold"))
    try:
        do(explorer, line)
    except KeyboardInterrupt:
        if not explorer.interactive:
            raise
        explorer.say(Text("interrupted; use check to see the guest's state", style="yellow"))
    except UsageError as error:
        _complain(explorer, error)
        return None if explorer.interactive else error.exit_status
    except InfraError as error:
        _complain(explorer, error)
        if not explorer.interactive or not explorer.session.guest.machine.alive:
            # A broken invariant takes precedence.
            return _STATUS.get(Verdict.FAIL, 1) if explorer.worst is Verdict.FAIL else error.exit_status
        explorer.worst = explorer.worst if explorer.worst is Verdict.FAIL else Verdict.INFRA
    return None


def _complain(explorer: Explorer, error: MemhpError) -> None:
    explorer.say(Text(clean(error.message, limit=20_000, newlines=True), style="red"))
    if error.hint:
        explorer.say(Text(f"  hint: {clean(error.hint, newlines=True)}"))
