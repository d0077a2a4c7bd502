# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp cmdline``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.cli.command_arguments import CmdlineArguments
from harness.cli.guest_options import guest_of
from harness.progress import default_progress
from harness.qemu.cmdline import Channels, command_line
from harness.scenarios.boot import machine_spec, resolve


def lines_of(argv: Sequence[str]) -> str:
    """``argv`` quoted for a shell, one option with its value per line, joined by backslashes."""
    lines: list[list[str]] = [[]]
    for word in argv:
        if word.startswith("-") and lines[-1]:
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return " \\\n  ".join(" ".join(line) for line in lines)


def run(arguments: CmdlineArguments) -> int:
    """memhp cmdline."""
    guest = guest_of(arguments, arguments.arch)
    parts = resolve(guest, (), default_progress())
    variables = None if parts.firmware is None else parts.firmware.vars
    # A run passes QEMU two connected sockets; their numbers vary.
    channels = Channels(qmp=3, console=4, console_log=Path("console.log"), variables=variables)
    argv = command_line(machine_spec(guest, parts, parts.root.initrd), channels)
    sys.stdout.write(lines_of(argv) + "\n")
    return 0
