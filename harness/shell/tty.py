# SPDX-License-Identifier: GPL-2.0-or-later
"""Connects the user's terminal to a shell or the console of the guest."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator

import paramiko

from harness.deadline import Deadline
from harness.errors import DeadlineExpired
from harness.guest.console import Console
from harness.guest.ssh import GuestShell

_CHUNK = 1 << 14
#: interval of checks for a new terminal size, in milliseconds; keys and output are not delayed
_LOOK_MS = 500


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Raw mode of the terminal ``fd`` while the block lasts."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def converse(shell: GuestShell, deadline: Deadline) -> None:
    """Run a shell in the guest on our own terminal until it ends. ``deadline`` is for its start only.

    The guest's output goes to the terminal unchanged, as a terminal session needs it. Raises GuestError.
    """
    stdin, stdout = sys.stdin.fileno(), sys.stdout.fileno()
    size = os.get_terminal_size(stdout)
    with (
        contextlib.closing(
            shell.open_terminal(os.environ.get("TERM", "vt100"), size.columns, size.lines, deadline)
        ) as channel,
        raw(stdin),
    ):
        _pump(channel, stdin, stdout)


def _pump(channel: paramiko.Channel, stdin: int, stdout: int) -> None:
    poll = select.poll()
    poll.register(stdin, select.POLLIN)
    poll.register(channel.fileno(), select.POLLIN)
    # Not shutil.get_terminal_size: LINES and COLUMNS may belong to another terminal, and do not change.
    seen = os.get_terminal_size(stdout)
    while not (channel.closed or (channel.eof_received and not channel.recv_ready())):
        ready = dict(poll.poll(_LOOK_MS))
        size = os.get_terminal_size(stdout)
        if size != seen:
            seen = size
            channel.resize_pty(size.columns, size.lines)
        if channel.recv_ready():
            data = channel.recv(_CHUNK)
            while data:
                data = data[os.write(stdout, data) :]
        if stdin in ready:
            typed = os.read(stdin, _CHUNK)
            if not typed:
                return
            channel.sendall(typed)


def follow(console: Console, show: Callable[[str], None]) -> None:
    """Show new lines of the console until Ctrl-C or its end."""
    mark = console.mark
    with contextlib.suppress(KeyboardInterrupt):
        while console.trouble() is None:
            with contextlib.suppress(DeadlineExpired):
                console.wait_line("", Deadline(_LOOK_MS / 1000), since=mark)
            for line in console.lines(mark):
                show(line.text)
                mark = line.number
