# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's memory for guests, and how many of them may run at a time."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path

from harness.config.guest import GuestSpec
from harness.scenarios.steps import AnyStep, flat
from harness.scenarios.verbs.memory import FillVerb, TouchVerb
from harness.units import GIB, MIB

#: host memory of a guest besides its own: QEMU, translated code, firmware, the harness
OVERHEAD = 512 * MIB
#: the fraction of available memory that guests may take
SHARE = 0.8

_CGROUP = Path("/sys/fs/cgroup")


def parse_bytes(name: str, text: str) -> int | None:
    """The line ``name`` of /proc/meminfo or /proc/PID/status, in bytes; None if there is none."""
    match = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return None if match is None else int(match[1]) << 10


def peak_memory(pid: int | str) -> int | None:
    """A process's (``self``: this one's) peak memory in bytes, including shared memory; None if it is gone."""
    try:
        return parse_bytes("VmHWM", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return None


def available_memory(cgroup: Path = _CGROUP) -> int | None:
    """Bytes available on this machine, or in this container if less; None if unknown."""
    found = []
    try:
        found.append(parse_bytes("MemAvailable", Path("/proc/meminfo").read_text()))
        limit = (cgroup / "memory.max").read_text().strip()
        if limit != "max":
            found.append(max(0, int(limit) - int((cgroup / "memory.current").read_text())))
    except (OSError, ValueError):
        pass
    return min((bytes for bytes in found if bytes is not None), default=None)


def cost(guest: GuestSpec, steps: Sequence[AnyStep] = ()) -> int:
    """Maximum host memory of a guest in bytes: its own, the memory that ``steps`` write, and QEMU's."""
    done = [*guest.devices, *(step.args for step in flat(steps))]
    touched = sum(args.size for args in done if isinstance(args, TouchVerb))
    if any(isinstance(args, FillVerb) for args in done):
        touched += sum(args.capacity for args in done)
    return guest.memory + OVERHEAD + touched


class MemoryBudget:
    """Counts the memory reserved for running guests; thread-safe. ``total`` bytes None: no limit."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        self._taken: list[int] = []
        self._lock = threading.Lock()

    @classmethod
    def of_host(cls) -> MemoryBudget:
        """A fraction of the memory available now."""
        available = available_memory()
        return cls(None if available is None else int(available * SHARE))

    def lack(self, costs: Sequence[int], at_once: int) -> str | None:
        """Say how many of ``at_once`` guests with these ``costs`` fit; None if all do."""
        most = max(costs, default=0)
        if self.total is None or not most or most * min(at_once, len(costs)) <= self.total:
            return None
        fit = max(1, self.total // most)
        return (
            f"memory for {fit} guest{'' if fit == 1 else 's'} at a time, not for {at_once}: "
            f"{_gib(self.total)} available, a guest may take {_gib(most)}"
        )

    def enter(self, size: int) -> bool:
        """Reserve ``size`` bytes; False if they are not available. A single guest always gets them."""
        with self._lock:
            if self._taken and self.total is not None and sum(self._taken) + size > self.total:
                return False
            self._taken.append(size)
            return True

    def leave(self, size: int) -> None:
        """Give ``size`` bytes back."""
        with self._lock:
            self._taken.remove(size)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}G"
