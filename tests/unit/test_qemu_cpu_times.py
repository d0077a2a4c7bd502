# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host gave a process: real ones that compete for a CPU, are stopped, or sleep."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.qemu.cpu_times import CpuTimes, _Sample
from harness.state import HostTime, ThreadTime

BUSY = "while True: pass"
TEXT = "watchdog: BUG: soft lockup - CPU#0 stuck for 1s! [sh:61]"


@contextlib.contextmanager
def process(code: str, nice: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Python that runs ``code`` on the first of our CPUs alone."""
    argv = ["nice", "-n", str(nice), sys.executable, "-c", code]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        os.sched_setaffinity(child.pid, {min(os.sched_getaffinity(0))})
        try:
            yield child
        finally:
            child.kill()


def measured(pid: int, enough: Callable[[ThreadTime], bool], seconds: int = 30) -> ThreadTime:
    """The figures of the thread CPU 0 as soon as they are ``enough``; fails after ``seconds``."""
    started = time.monotonic()
    times = CpuTimes(pid, [pid], every=0.05)
    try:
        with contextlib.closing(times):
            while True:
                times.take()
                found = times.before(TEXT, time.monotonic(), seconds)
                last = found.threads[1] if found.threads else ThreadTime("CPU 0", 0.0, 0.0, 0.0)
                if enough(last):
                    return last
                assert time.monotonic() - started < seconds, last
    finally:
        times.close()


def test_a_process_that_gets_no_cpu_waits() -> None:
    with process(BUSY), process(BUSY, nice=19) as starved:
        found = measured(starved.pid, lambda thread: thread.waited >= 1.0)
    assert found.stopped == 0.0


def test_a_process_that_is_stopped_neither_runs_nor_waits() -> None:
    with process(BUSY) as child:
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        found = measured(child.pid, lambda thread: thread.stopped >= 0.5)
    assert (found.ran, found.waited) == (0.0, 0.0)


def asleep(pid: int) -> bool:
    """True if it is at its long sleep: asleep, and as much later still without having run."""
    folder = Path(f"/proc/{pid}")
    before = (folder / "schedstat").read_text()
    threading.Event().wait(0.2)
    name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
    return name == "sleep" and rest.split()[0] == "S" and (folder / "schedstat").read_text() == before


def test_a_process_that_sleeps_is_neither_starved_nor_stopped() -> None:
    with process("import os; os.execvp('sleep', ['sleep', '600'])") as child:
        while not asleep(child.pid):
            assert child.poll() is None
        with contextlib.closing(CpuTimes(child.pid, [child.pid], every=0.05)) as times:
            while (found := times.before(TEXT, time.monotonic(), 30)).observed < 0.4:
                times.take()
    assert found.threads == (ThreadTime("main", 0.0, 0.0, 0.0), ThreadTime("CPU 0", 0.0, 0.0, 0.0))


def test_a_process_that_is_gone_gives_no_figures() -> None:
    with process("") as child:
        child.wait()
        with contextlib.closing(CpuTimes(child.pid, [child.pid])) as times:
            times.take()
            assert times.before(TEXT, time.monotonic(), 60) == HostTime(TEXT, 60)


def test_the_period_begins_with_the_first_sample_in_it_and_ends_with_the_first_after_it() -> None:
    times = CpuTimes(os.getpid(), [os.getpid()])
    times.close()
    times._samples.clear()
    for now in range(0, 65, 5):
        # The thread waits for 45 s, which count when it runs again.
        row = (float(now), 0.0 if now < 55 else 45.0, 10 <= now <= 20)
        times._samples.append(_Sample(float(now), now / 5, {"main": row, "CPU 0": row}))
    found = times.before(TEXT, 52.0, 40)
    assert (found.observed, found.steal) == (40.0, 8.0)
    assert found.threads[1] == ThreadTime("CPU 0", 40.0, 40.0, 5.0)
