# SPDX-License-Identifier: GPL-2.0-or-later
"""The QEMU that doctor and fetch require."""

from __future__ import annotations

from collections.abc import Callable

from harness.arch import ArchSpec
from harness.config.guest_parts import QemuBinary
from harness.qemu import probe
from harness.scenarios.requirements import REQUIREMENTS, device_kinds


def able(arch: ArchSpec) -> Callable[[QemuBinary], str | None]:
    """A check that a QEMU can plug every kind of memory device that scenarios use."""
    return probe.able(arch, device_kinds(REQUIREMENTS))
