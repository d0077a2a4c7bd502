# SPDX-License-Identifier: GPL-2.0-or-later
"""What doctor and fetch want of a QEMU."""

from __future__ import annotations

from collections.abc import Callable

from harness.arch import ArchSpec
from harness.config.guest_parts import QemuBinary
from harness.qemu import probe
from harness.scenarios.requirements import REQUIREMENTS, device_kinds


def able(arch: ArchSpec) -> Callable[[QemuBinary], str | None]:
    """A QEMU will do if it can plug every kind of memory device that scenarios use."""
    return probe.able(arch, device_kinds(REQUIREMENTS))
