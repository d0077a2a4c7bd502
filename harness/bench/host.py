# SPDX-License-Identifier: GPL-2.0-or-later
"""The host on which figures are measured."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: load beside a measurement, as a fraction of the CPUs, up to which figures are trusted
_QUIET = 0.25


@dataclass(frozen=True, slots=True)
class Host:
    """``cpus`` is the number that this process may use; ``load`` has the averages of 1, 5 and 15 minutes before."""

    cpu: str
    cpus: int
    load: tuple[float, float, float]
    kernel: str
    python: str
    numpy: str

    @property
    def busy(self) -> bool:
        """True if the host was in use: the figures are then too high."""
        return self.load[0] > _QUIET * self.cpus


def look_at_host() -> Host:
    """The current host."""
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
    """The CPU's name in /proc/cpuinfo; None if the architecture does not print one (arm64)."""
    for line in cpuinfo.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() in ("model name", "uarch") and value.strip():
            return value.strip()
    return None
