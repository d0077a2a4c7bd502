# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands for people at a prompt, and for what they left: shell, attach, replay."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from harness.cli.options import bundle_dir_of, guest_of, read_seconds, start_of
from harness.cli.parser import Arguments
from harness.cli.reports import check_reports
from harness.cli.running import finish, open_reporter, run_all
from harness.report.terminal import make_console
from harness.report.text import clean, tell
from harness.scenarios.options import RunOptions


def shell(arguments: Arguments) -> int:
    """memhp shell."""
    guest = guest_of(arguments)
    timeout = read_seconds(arguments.timeout, "--timeout")
    options = RunOptions(
        bundle_dir_of(arguments), timeout=timeout, start=start_of(arguments), known_bugs=arguments.known_bugs
    )
    from harness.progress import default_progress
    from harness.shell.explorer import Explorer
    from harness.shell.prompt import at_a_terminal, given_lines, typed_lines
    from harness.shell.run import explore
    from harness.shell.start import find_parts, open_session

    interactive = not arguments.lines and at_a_terminal()
    console = make_console(sys.stdout, arguments.color)
    progress = default_progress()
    parts = find_parts(guest, progress)
    tell(f"starting {guest.name}")
    with open_session(guest, parts, options, progress) as session:
        explorer = Explorer(session, guest, console, interactive=interactive)
        explorer.examine_boot()
        if interactive:
            explorer.say("help shows what can be said here; Ctrl-D ends it")
            lines = typed_lines(explorer, "quit")
        else:
            lines = given_lines(arguments.lines or (), None if arguments.lines else sys.stdin)
        with explorer.resources:
            status, _ = explore(explorer, lines)
        bundle = session.recorder.directory
    explorer.say(f"recorded in {clean(bundle)}; memhp replay {clean(bundle)} does it again")
    return status


def attach(arguments: Arguments) -> int:
    """memhp attach."""
    from harness.shell.keep import attach_to, find_kept

    return attach_to(find_kept(arguments.bundle), arguments.lines or (), arguments.color)


def replay(arguments: Arguments) -> int:
    """memhp replay."""
    check_reports(arguments)
    timeout, bundles = read_seconds(arguments.timeout, "--timeout"), bundle_dir_of(arguments)
    from harness.scenarios.replay import read_replay, require_kernel

    recorded = read_replay(Path(arguments.bundle))
    known = arguments.known_bugs
    options = RunOptions(
        bundles, recorded.seed, timeout, rounds=recorded.rounds, start=recorded.start, known_bugs=known
    )
    with open_reporter(arguments) as reporter:
        require_kernel(recorded, reporter.progress)
        return finish(arguments, reporter, run_all([recorded.scenario], [recorded.guest], options, reporter))


COMMANDS: Mapping[str, Callable[[Arguments], int]] = {"shell": shell, "attach": attach, "replay": replay}
