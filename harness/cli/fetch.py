# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp fetch``, and the QEMU that it and doctor require."""

from __future__ import annotations

from collections.abc import Callable

from harness.arch import ArchSpec
from harness.artifacts.fetch import PARTS, fetch
from harness.cli.command_arguments import FetchArguments
from harness.cli.guest_options import arches_of
from harness.cli.output import print_columns
from harness.config.guest_parts import QemuBinary
from harness.progress import default_progress
from harness.qemu import probe
from harness.scenarios.requirements import REQUIREMENTS, device_kinds


def run(arguments: FetchArguments) -> int:
    """memhp fetch."""
    print_columns(fetch(arguments.parts or PARTS, arches_of(arguments.arches), default_progress(), able=able))
    return 0


def able(arch: ArchSpec) -> Callable[[QemuBinary], str | None]:
    """A check that a QEMU can plug every kind of memory device that scenarios use."""
    return probe.able(arch, device_kinds(REQUIREMENTS))
