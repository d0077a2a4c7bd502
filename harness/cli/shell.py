# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp shell``."""

from __future__ import annotations

import sys

from harness.cli.command_arguments import ShellArguments
from harness.cli.guest_options import bundle_dir_of, guest_of, start_of
from harness.progress import default_progress
from harness.report.terminal_report import make_console
from harness.report.text import clean, tell
from harness.scenarios.run_options import RunOptions
from harness.shell.explorer import Explorer
from harness.shell.open_guest import find_parts, open_session
from harness.shell.prompt import at_a_terminal, given_lines, typed_lines
from harness.shell.typed_session import explore


def run(arguments: ShellArguments) -> int:
    """memhp shell."""
    guest = guest_of(arguments, arguments.arch)
    options = RunOptions(
        bundle_dir_of(arguments.bundle_dir),
        timeout=arguments.timeout,
        start=start_of(arguments),
        known_bugs=arguments.known_bugs,
    )
    interactive = not arguments.lines and at_a_terminal()
    console = make_console(sys.stdout, arguments.color)
    progress = default_progress()
    parts = find_parts(guest, progress)
    tell(f"starting {guest.name}")
    with open_session(guest, parts, options, progress) as session:
        explorer = Explorer(session, guest, console, interactive=interactive)
        explorer.examine_boot()
        if interactive:
            explorer.say("help lists the commands; Ctrl-D ends the session")
            lines = typed_lines(explorer, "quit")
        else:
            lines = given_lines(arguments.lines, None if arguments.lines else sys.stdin)
        with explorer.resources:
            status, _ = explore(explorer, lines)
        bundle = session.recorder.directory
    explorer.say(f"recorded in {clean(bundle)}; memhp replay {clean(bundle)} repeats it")
    return status
