# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel that no longer answers can still say: its blocked tasks and CPUs, by SysRq over the serial console."""

from __future__ import annotations

from collections.abc import Callable

from harness.deadline import Deadline
from harness.guest.console import Console

#: 7: stacks, which are no warnings, go to the console, too; w: tasks in uninterruptible sleep; l: what each CPU runs;
#: m: memory by node and zone; h: the help, the end of it
_KEYS = "7wlmh"


def show_tasks(console: Console, press: Callable[[str, Deadline], None], *, deadline: Deadline) -> None:
    """Have the kernel print the stacks of its blocked tasks and CPUs, and its memory, on the console; wait for them.

    ``press`` sends a SysRq key (``Machine.press_sysrq``). The console's interrupt handler serves it, if the kernel has
    CONFIG_MAGIC_SYSRQ_SERIAL (drivers/tty/sysrq.c, v6.12); one that disables the key says so. Raises InfraError if the
    kernel panicked or does not react.
    """
    for key in _KEYS:
        since = console.mark
        press(key, deadline)
        # The level has a line of its own.
        console.wait_line("sysrq: (?!Changing Loglevel)", deadline, since=since)
