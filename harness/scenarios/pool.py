# SPDX-License-Identifier: GPL-2.0-or-later
"""Jobs with guests: so many at work at a time, and the guest of the next one ready when its turn comes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Generic, Protocol, TypeVar

from harness import proc
from harness.scenarios.memorybudget import MemoryBudget

R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")

#: guests that are made ready beside those at work
AHEAD = 1


class Job(Protocol[R_co]):
    """Something to do with a guest of its own. Its methods are called once each, in this order, by one thread."""

    @property
    def cost(self) -> int:
        """Bytes of the host's memory that its guest may take."""

    def prepare(self) -> None:
        """Start the guest; a failure is kept for ``work``."""

    def work(self) -> R_co:
        """Do it, end the guest, return the result."""

    def drop(self) -> None:
        """Instead of ``work``, or after it was interrupted: end the guest, leave nothing, nobody wants the result."""


class _Line(Generic[R]):
    """Who is next: a job is prepared when there is room for its guest, works when its turn comes."""

    def __init__(
        self, jobs: Sequence[Job[R]], at_work: int, room: MemoryBudget, done: Callable[[int, R], bool]
    ) -> None:
        self.jobs = jobs
        self.results: dict[int, R] = {}
        self._at_work = at_work
        self._room = room
        self._done = done
        self._over = False
        self._aborted = False
        self._changed = threading.Condition()
        self._next = 0
        self._working = 0
        self._turn = 0

    def go_through(self) -> None:
        """Prepare and do jobs until there are none: what each thread does."""
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
                    self._room.leave(job.cost)
                    self._changed.notify_all()

    def stop(self, *, abort: bool = False) -> None:
        """No more jobs: those that wait for their turn are dropped; if ``abort``, those at work are, too."""
        with self._changed:
            self._over = True
            self._aborted = self._aborted or abort
            self._changed.notify_all()

    def _take(self) -> int | None:
        with self._changed:
            while not self._over and self._next < len(self.jobs):
                if self._room.enter(self.jobs[self._next].cost):
                    self._next += 1
                    return self._next - 1
                self._changed.wait()
            return None

    def _await_turn(self, number: int) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._over or (self._turn == number and self._working < self._at_work))
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
                    self._over = self._done(number, result) or self._over
                    return
            job.drop()
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()


def _do_one(job: Job[R], done: Callable[[int, R], bool]) -> R:
    try:
        job.prepare()
        result = job.work()
    except BaseException:
        job.drop()
        raise
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

    One more guest than that is made ready meanwhile, as far as there is ``room``. ``done`` is told the number of each
    job that is done, and its result, one after the other; once it answers True no further job is begun. If the caller
    is interrupted, or a job raises, every process of theirs is killed and all are waited for before that is raised.
    A job that is alone is done by the caller's own thread, where signals come.
    """
    if len(jobs) == 1:
        return [_do_one(jobs[0], done)]
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
