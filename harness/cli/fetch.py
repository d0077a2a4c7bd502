# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp fetch``."""

from __future__ import annotations

from harness.artifacts.fetch import PARTS, fetch
from harness.cli.command_arguments import FetchArguments
from harness.cli.guest_options import arches_of
from harness.cli.output import print_columns
from harness.progress import default_progress
from harness.qemu import probe


def run(arguments: FetchArguments) -> int:
    """memhp fetch."""
    print_columns(fetch(arguments.parts or PARTS, arches_of(arguments.arches), default_progress(), able=probe.able))
    return 0
