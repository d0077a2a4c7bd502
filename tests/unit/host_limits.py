# SPDX-License-Identifier: GPL-2.0-or-later
"""Limits on what a test may take from the host."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def bounded(seconds: int = 10, memory: int = 1 << 30) -> Iterator[None]:
    """The block may take so many seconds of a CPU, and so many more bytes of memory."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"not done within {seconds} s")

    before = [(number, signal.signal(number, late)) for number in (signal.SIGALRM, signal.SIGPROF)]
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + memory, hard))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    # What waits takes no time of a CPU.
    signal.alarm(12 * seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in before:
            signal.signal(number, handler)
