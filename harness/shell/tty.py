# SPDX-License-Identifier: GPL-2.0-or-later
"""The terminal that a person sits at, handed over to a shell in the guest for a while."""

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
#: how often a change of the terminal's size is looked for, in milliseconds; keys and output come at once
_LOOK_MS = 500


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Every key as it is typed, as long as the block lasts."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def converse(shell: GuestShell, deadline: Deadline) -> None:
    """A shell in the guest on our own terminal, until it ends. ``deadline`` is for its start alone.

    What the guest prints goes to the terminal as it is: that is what a terminal is for. Raises GuestError.
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
    # What LINES and COLUMNS say may be of another terminal, and stays what it was.
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
    """Show the console's lines as they come, until Ctrl-C or its end."""
    mark = console.mark
    with contextlib.suppress(KeyboardInterrupt):
        while console.trouble() is None:
            with contextlib.suppress(DeadlineExpired):
                console.wait_line("", Deadline(_LOOK_MS / 1000), since=mark)
            for line in console.lines(mark):
                show(line.text)
                mark = line.number
