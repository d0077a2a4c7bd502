# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts the guest of the prompt, with its bundle."""

from __future__ import annotations

import contextlib
import datetime
import shlex
from collections.abc import Iterator

from harness.config.guest import GuestSpec
from harness.errors import UnsupportedError
from harness.progress import Progress
from harness.qemu.devices.device import KINDS
from harness.scenarios.boot import Parts, resolve
from harness.scenarios.record import Recorder, open_bundle
from harness.scenarios.replay import guest_to_json
from harness.scenarios.run_options import RunOptions
from harness.scenarios.session import Session
from harness.scenarios.start import start_guest


def find_parts(spec: GuestSpec, progress: Progress) -> Parts:
    """The parts of a guest that supports every memory device, or all that this QEMU has."""
    try:
        return resolve(spec, (), progress, kinds=tuple(KINDS))
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
    with start_guest(spec, parts, directory, options.timeout, options.start, progress) as guest:
        (directory / "argv.txt").write_text(shlex.join(guest.machine.argv) + "\n")
        yield Session(guest, options, recorder)
