# SPDX-License-Identifier: GPL-2.0-or-later
"""What a test on a booted guest needs of QEMU and of the kernel."""

from __future__ import annotations

import pytest

from harness.deadline import Deadline
from harness.qemu.probe import missing, probe
from harness.scenarios.boot import BootedGuest, Parts


def need(guest: BootedGuest, parts: Parts, device: str, option: str) -> None:
    """Skip the test if QEMU lacks the device or the kernel lacks the option."""
    lack = missing(probe(guest.machine.spec.qemu, guest.machine.spec.arch, Deadline(60)), [device])
    if lack is not None:
        pytest.skip(lack)
    config = guest.facts.config or parts.kernel.config
    if config is not None and option not in config:
        pytest.skip(f"this kernel has no CONFIG_{option}")
