# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp shell``."""

from __future__ import annotations

import contextlib
import datetime
import shlex
import sys
from collections.abc import Iterator

from harness.bounded import write_file
from harness.cli.command_arguments import ShellArguments
from harness.cli.guest_options import bundle_dir_of, guest_of, start_of
from harness.config.guest import GuestSpec
from harness.errors import UnsupportedError
from harness.progress import Progress, default_progress
from harness.qemu.devices.device import kinds_on
from harness.report.terminal_report import make_console
from harness.report.text import clean, pasted, tell
from harness.scenarios.boot import Parts, resolve
from harness.scenarios.record import Recorder, open_bundle
from harness.scenarios.replay import guest_to_json
from harness.scenarios.run_options import RunOptions
from harness.scenarios.session import Session
from harness.scenarios.start import start_guest
from harness.shell.commands import explore
from harness.shell.explorer import Explorer
from harness.shell.prompt import at_a_terminal, given_lines, typed_lines


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
        if session.guest.unconfined:
            tell(session.guest.unconfined)
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
    explorer.say(f"recorded in {clean(bundle)}; memhp replay {pasted(bundle)} repeats it")
    return status


def find_parts(spec: GuestSpec, progress: Progress) -> Parts:
    """The parts of a guest that supports every memory device, or all that this QEMU has."""
    try:
        return resolve(spec, (), progress, kinds=kinds_on(spec.arch))
    except UnsupportedError:
        return resolve(spec, (), progress)


@contextlib.contextmanager
def open_session(spec: GuestSpec, parts: Parts, options: RunOptions, progress: Progress) -> Iterator[Session]:
    """Start the guest, and end it with the block; its bundle stays.

    Raises what ``start_guest`` raises, and InfraError if the bundle cannot be written.
    """
    started = datetime.datetime.now(datetime.UTC)
    directory = open_bundle(options.bundle_dir, f"shell-{spec.arch}", started)
    recorder = Recorder(directory)
    details = {"guest": spec.name, "started": started.isoformat(), "seed": options.seed, "start": options.start}
    recorder.start("shell", "", details | guest_to_json(spec, parts))
    with contextlib.ExitStack() as stack:
        guest = stack.enter_context(start_guest(spec, parts, directory, options.timeout, options.start, progress))
        write_file(directory / "argv.txt", shlex.join(guest.machine.argv) + "\n")
        yield Session(guest, options, recorder)
