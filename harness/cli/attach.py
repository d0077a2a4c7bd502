# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp attach``."""

from __future__ import annotations

from harness.cli.command_arguments import AttachArguments
from harness.shell.keeper import attach_to, find_kept


def run(arguments: AttachArguments) -> int:
    """memhp attach."""
    return attach_to(find_kept(arguments.bundle), arguments.lines, arguments.color)
