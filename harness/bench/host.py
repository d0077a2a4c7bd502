# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine that measures: without it a figure means nothing."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: what may run beside a measurement, as a fraction of the CPUs, without the figures being doubtful
_QUIET = 0.25


@dataclass(frozen=True, slots=True)
class Host:
    """``cpus`` are those this process may use; ``load`` the averages over 1, 5 and 15 minutes before measuring."""

    cpu: str
    cpus: int
    load: tuple[float, float, float]
    kernel: str
    python: str
    numpy: str

    @property
    def busy(self) -> bool:
        """True if others used the machine: the figures are too high then."""
        return self.load[0] > _QUIET * self.cpus


def look_at_host() -> Host:
    """The machine as it is now."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    return Host(
        cpu=cpu_model(text) or platform.machine(),
        cpus=len(os.sched_getaffinity(0)),
        load=os.getloadavg(),
        kernel=platform.release(),
        python=platform.python_version(),
        numpy=np.__version__,
    )


def cpu_model(cpuinfo: str) -> str | None:
    """The CPU's name in /proc/cpuinfo; None where the architecture does not print one (arm64)."""
    for line in cpuinfo.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() in ("model name", "uarch") and value.strip():
            return value.strip()
    return None
