# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs jobs with guests: several at a time, while the guest of the next one is prepared."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from harness import proc
from harness.scenarios.memorybudget import MemoryBudget

R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")

#: number of guests prepared in advance
AHEAD = 1


class Job(Protocol[R_co]):
    """A job with its own guest. Its methods are called once each, in this order, by one thread."""

    @property
    def cost(self) -> int:
        """Maximum host memory of its guest in bytes."""

    def prepare(self) -> None:
        """Start the guest; a failure is kept for ``work``."""

    def work(self) -> R_co:
        """Do the job, end the guest, return the result."""

    def drop(self) -> None:
        """Instead of ``work``, or after it was interrupted: end the guest and clean up; there is no result."""


@dataclass(eq=False)
class _Line(Generic[R]):
    """The schedule: a job is prepared when there is memory for its guest, and works when its turn comes."""

    jobs: Sequence[Job[R]]
    at_work: int
    room: MemoryBudget
    done: Callable[[int, R], bool]
    results: dict[int, R] = field(default_factory=dict)
    _over: bool = False
    _aborted: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _next: int = 0
    _working: int = 0
    _turn: int = 0

    def go_through(self) -> None:
        """Prepare and do jobs until there are none left; run by each thread."""
        while (number := self._take()) is not None:
            job = self.jobs[number]
            try:
                job.prepare()
                if self._await_turn(number):
                    self._work(number, job)
                else:
                    job.drop()
            except BaseException:
                self.stop()
                job.drop()
                raise
            finally:
                with self._changed:
                    self.room.leave(job.cost)
                    self._changed.notify_all()

    def stop(self, *, abort: bool = False) -> None:
        """Start no more jobs: drop the waiting ones and, with ``abort``, the running ones, too."""
        with self._changed:
            self._over = True
            self._aborted = self._aborted or abort
            self._changed.notify_all()

    def _take(self) -> int | None:
        with self._changed:
            while not self._over and self._next < len(self.jobs):
                if self.room.enter(self.jobs[self._next].cost):
                    self._next += 1
                    return self._next - 1
                self._changed.wait()
            return None

    def _await_turn(self, number: int) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._over or (self._turn == number and self._working < self.at_work))
            if self._over:
                return False
            self._turn += 1
            self._working += 1
            self._changed.notify_all()
            return True

    def _work(self, number: int, job: Job[R]) -> None:
        try:
            result = job.work()
            with self._changed:
                if not self._aborted:
                    self.results[number] = result
                    self._over = self.done(number, result) or self._over
                    return
            job.drop()
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()


def _do_one(job: Job[R], room: MemoryBudget, done: Callable[[int, R], bool]) -> R:
    room.enter(job.cost)
    try:
        job.prepare()
        result = job.work()
    except BaseException:
        job.drop()
        raise
    finally:
        room.leave(job.cost)
    done(0, result)
    return result


def do_all(
    jobs: Sequence[Job[R]],
    *,
    at_work: int,
    room: MemoryBudget,
    done: Callable[[int, R], bool] = lambda number, result: False,
) -> list[R]:
    """Do ``jobs`` in order, ``at_work`` at a time, and return the results in their order.

    One more guest is prepared meanwhile, if there is ``room``. ``done`` is called with the number and result of each
    finished job, serially; once it returns True, no further job starts. If the caller is interrupted, or a job raises,
    all processes of the jobs are killed and reaped before the exception propagates. A single job runs in the caller's
    thread, which receives signals.
    """
    if len(jobs) == 1:
        return [_do_one(jobs[0], room, done)]
    line = _Line(jobs, at_work, room, done)
    group = proc.Group()
    threads = min(at_work + AHEAD, len(jobs))

    def go_through() -> None:
        with group:
            line.go_through()

    with ThreadPoolExecutor(max(1, threads), "memhp-run") as pool:
        try:
            futures = [pool.submit(go_through) for _ in range(threads)]
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException:
            line.stop(abort=True)
            group.kill()
            raise
    return [line.results[number] for number in sorted(line.results)]
