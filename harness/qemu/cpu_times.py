# SPDX-License-Identifier: GPL-2.0-or-later
"""How much CPU time the host gave to QEMU: the run time and the waiting time of its threads, measured all the time.

A guest whose CPU does not run sees its watchdogs expire, though nothing is wrong with its kernel. A thread that waits
in a run queue counts as waiting (/proc/PID/task/TID/schedstat, Documentation/scheduler/sched-stats.rst); one that
sleeps, as that of an idle vCPU or of one paused over QMP (the guest's clock stands still meanwhile), counts as neither.
QEMU stopped by a signal also shows neither, but the guest's clock goes on: the state of its threads tells.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from harness.state import HostTime, ThreadTime

#: seconds between two samples, a few small files each, and samples that are kept: more than an hour
EVERY = 5.0
_KEPT = 1000
_NS = 1e9
#: states of a thread that is stopped: by a signal, by a tracer (proc_pid_stat(5))
_STOPPED = ("T", "t")


@dataclass(frozen=True, slots=True)
class _Sample:
    """``threads``: seconds running, seconds waiting, and whether it is stopped, by name."""

    time: float
    steal: float
    threads: Mapping[str, tuple[float, float, bool]]


class CpuTimes:
    """Samples the threads of a process until ``close``. ``cpus`` are the threads of its vCPUs, in their order."""

    def __init__(self, pid: int, cpus: Sequence[int], *, every: float = EVERY) -> None:
        tasks = Path("/proc") / str(pid) / "task"
        self._threads = {"main": tasks / str(pid)} | {f"CPU {n}": tasks / str(tid) for n, tid in enumerate(cpus)}
        self._samples: deque[_Sample] = deque(maxlen=_KEPT)
        self._over = threading.Event()
        self._every = every
        self.take()
        self._thread = threading.Thread(target=self._go_on, name="memhp-cpu-times", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop measuring; the samples stay."""
        self._over.set()
        self._thread.join()

    def _go_on(self) -> None:
        while not self._over.wait(self._every):
            self.take()

    def take(self) -> None:
        """Take a sample now; none if the process is gone, or if this host measures nothing."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            threads = {name: _read(folder) for name, folder in self._threads.items()}
            self._samples.append(_Sample(time.monotonic(), _steal(), threads))

    def before(self, text: str, until: float, seconds: int) -> HostTime:
        """What was measured in the ``seconds`` before ``until`` (monotonic), when the console had the line ``text``.

        Waiting counts when it ends, so the first sample after ``until`` belongs to it, and none can be longer than the
        whole.
        """
        samples = sorted(self._samples, key=lambda sample: sample.time)
        late = next((n for n, sample in enumerate(samples) if sample.time >= until), len(samples) - 1)
        chosen = [sample for sample in samples[: late + 1] if sample.time >= until - seconds]
        if len(chosen) < 2:
            return HostTime(text, seconds)
        first, last = chosen[0], chosen[-1]
        threads = []
        for name in self._threads:
            ran, waited = (last.threads[name][n] - first.threads[name][n] for n in (0, 1))
            pairs = [pair for pair in pairwise(chosen) if all(sample.threads[name][2] for sample in pair)]
            stopped = sum((after.time - before.time for before, after in pairs), 0.0)
            threads.append(ThreadTime(name, *(round(min(part, seconds), 3) for part in (ran, waited, stopped))))
        steal = round(min(last.steal - first.steal, seconds), 3)
        return HostTime(text, seconds, round(last.time - first.time, 3), tuple(threads), steal)


def _read(thread: Path) -> tuple[float, float, bool]:
    ran, waited, *_ = (thread / "schedstat").read_text().split()
    state = (thread / "stat").read_text().rpartition(")")[2].split()[0]
    return int(ran) / _NS, int(waited) / _NS, state in _STOPPED


def _steal() -> float:
    """Seconds that a hypervisor took from each of this host's CPUs, on average (proc_stat(5))."""
    words = Path("/proc/stat").read_text().partition("\n")[0].split()
    return int(words[8]) / os.sysconf("SC_CLK_TCK") / (os.cpu_count() or 1)
