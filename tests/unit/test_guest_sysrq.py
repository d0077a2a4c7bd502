# SPDX-License-Identifier: GPL-2.0-or-later
"""Stacks of a lost guest, from a kernel that shows only warnings on its console."""

from __future__ import annotations

import socket

import pytest

from harness.deadline import Deadline
from harness.guest.console import Console
from harness.guest.sysrq import show_tasks

#: what a key has the kernel print, whatever the level; and what only at the level of information (drivers/tty/sysrq.c)
SAYS = {
    "7": (b"sysrq: Changing Loglevel\n", b"sysrq: Loglevel set to 7\n"),
    "w": (b"sysrq: Show Blocked State\n", b"task:sh state:D\n kernfs_drain+0xdc/0x138\n"),
    "l": (b"sysrq: Show backtrace of all active CPUs\n", b""),
    "m": (b"sysrq: Show Memory\n", b"Mem-Info:\n"),
    "h": (b"sysrq: HELP : loglevel(0-9)\n", b""),
}


@pytest.mark.parametrize("allowed", [True, False])
def test_stacks_of_blocked_tasks_come_whatever_the_console_shows(allowed: bool) -> None:
    here, there = socket.socketpair()
    level = 5

    def press(key: str, deadline: Deadline) -> None:
        nonlocal level
        always, more = SAYS[key]
        if key != "h" and not allowed:
            always, more = b"sysrq: This sysrq operation is disabled.\n", b""
        level = 7 if always.endswith(b"Loglevel\n") else level
        there.sendall(always + (more if level == 7 else b""))

    with here, there, Console(here, lambda line: None) as console:
        show_tasks(console, press, deadline=Deadline(10))
        shown = [line.text for line in console.lines()]
    assert (" kernfs_drain+0xdc/0x138" in shown) is allowed
    assert shown[-1] == "sysrq: HELP : loglevel(0-9)"
