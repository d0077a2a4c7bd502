# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp collect``."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from harness.cli.command_arguments import CollectArguments
from harness.cli.guest_options import guest_of, start_of
from harness.cli.results import reporter_on, run_all
from harness.errors import UsageError
from harness.report.tally import exit_status
from harness.report.text import pasted
from harness.scenarios.file import SNAPSHOT
from harness.scenarios.run_options import RunOptions


def run(arguments: CollectArguments) -> int:
    """memhp collect: a run without steps, whose bundle is the snapshot."""
    target = arguments.output
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"--output: {target} already exists", hint="name a directory that does not exist yet")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"--output: no directory {target.absolute().parent}", hint="create it first")
    guest = guest_of(arguments, arguments.arch)
    with (
        reporter_on(sys.stdout, arguments.color) as reporter,
        tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=".memhp-collect-") as scratch,
    ):
        options = RunOptions(Path(scratch), timeout=arguments.timeout, start=start_of(arguments))
        results = run_all([SNAPSHOT], [guest], options, reporter)
        bundle = results[0].bundle
        if bundle is None or not (bundle / "states" / "000").is_dir():
            return exit_status(results)
        if target.is_dir():
            target.rmdir()
        shutil.move(bundle, target)
        reporter.unknown(results)
        reporter.console.print(f"saved in {target}; memhp check {pasted(target)} checks it again")
    return exit_status(results)
