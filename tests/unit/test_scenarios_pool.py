# SPDX-License-Identifier: GPL-2.0-or-later
"""Jobs start in order, a limited number at a time, with one prepared in advance; nothing is left after an error."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import proc
from harness.deadline import Deadline
from harness.scenarios.memorybudget import MemoryBudget
from harness.scenarios.pool import AHEAD, do_all


class Book:
    """Records what happened, in order, and how many jobs were alive and working at the same time."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.alive = self.working = self.most_alive = self.most_working = 0
        self.changed = threading.Condition()

    def note(self, line: str, alive: int = 0, working: int = 0) -> None:
        with self.changed:
            self.lines.append(line)
            self.alive += alive
            self.working += working
            self.most_alive = max(self.most_alive, self.alive)
            self.most_working = max(self.most_working, self.working)
            self.changed.notify_all()

    def wait(self, line: str) -> None:
        Deadline(60).wait(self.changed, lambda: True if line in self.lines else None, line)


class Stand:
    """A job that records its calls."""

    def __init__(self, book: Book, name: str, cost: int = 1, act: Callable[[], None] = lambda: None) -> None:
        self.book, self.name, self.cost, self.act = book, name, cost, act

    def prepare(self) -> None:
        self.book.note(f"prepare {self.name}", alive=1)

    def work(self) -> str:
        self.book.note(f"work {self.name}", working=1)
        self.act()
        self.book.note(f"end {self.name}", alive=-1, working=-1)
        return self.name

    def drop(self) -> None:
        self.book.note(f"drop {self.name}", alive=-1)


def test_one_at_a_time_with_the_next_one_ready() -> None:
    book = Book()
    first = Stand(book, "a", act=lambda: book.wait("prepare b"))
    assert do_all([first, Stand(book, "b"), Stand(book, "c")], at_work=1, room=MemoryBudget(None)) == ["a", "b", "c"]
    assert [line for line in book.lines if line.startswith("work")] == ["work a", "work b", "work c"]
    assert book.lines.index("prepare b") < book.lines.index("end a")
    assert book.most_working == 1 and book.most_alive <= 1 + AHEAD


def test_two_at_a_time() -> None:
    book = Book()
    jobs = [Stand(book, "a", act=lambda: book.wait("work b")), Stand(book, "b", act=lambda: book.wait("work a"))]
    assert do_all([*jobs, *(Stand(book, name) for name in "cdef")], at_work=2, room=MemoryBudget(None)) == list(
        "abcdef"
    )
    assert book.most_working == 2 and book.most_alive <= 2 + AHEAD


def test_no_more_guests_than_there_is_room_for() -> None:
    book = Book()
    jobs = [Stand(book, name, cost=2) for name in "abcd"]
    assert do_all(jobs, at_work=4, room=MemoryBudget(5)) == list("abcd")
    assert book.most_alive <= 2
    book = Book()
    assert do_all([Stand(book, name, cost=9) for name in "ab"], at_work=4, room=MemoryBudget(5)) == ["a", "b"]
    assert book.most_alive == 1


def test_enough_is_enough() -> None:
    book, told = Book(), []

    def done(number: int, result: str) -> bool:
        told.append((number, result))
        return result == "b"

    assert do_all([Stand(book, name) for name in "abcd"], at_work=1, room=MemoryBudget(None), done=done) == ["a", "b"]
    assert told == [(0, "a"), (1, "b")]
    assert "work c" not in book.lines and book.alive == 0


def test_one_that_is_alone_stays_in_the_thread_where_signals_come() -> None:
    book, seen = Book(), []
    alone = Stand(book, "a", act=lambda: seen.append(threading.current_thread()))
    told: list[object] = []
    assert do_all([alone], at_work=4, room=MemoryBudget(None), done=lambda *pair: bool(told.append(pair))) == ["a"]
    assert seen == [threading.main_thread()] and told == [(0, "a")]

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do_all([Stand(book, "b", act=interrupted)], at_work=1, room=MemoryBudget(None))
    assert book.lines[-1] == "drop b"


def test_nothing_to_do() -> None:
    assert do_all([], at_work=3, room=MemoryBudget(None)) == []


def test_a_job_that_raises_ends_all_with_their_processes(tmp_path: Path) -> None:
    book = Book()

    def long() -> None:
        argv = [sys.executable, "-c", "import time; time.sleep(600)"]
        with proc.spawn(argv, stdout=tmp_path / "out", stderr=tmp_path / "err") as child:
            book.note("child runs")
            child.wait(Deadline(60))

    def fail() -> None:
        book.wait("child runs")
        raise RuntimeError("boom")

    jobs = [Stand(book, "a", act=long), Stand(book, "b", act=fail), Stand(book, "c")]
    with pytest.raises(RuntimeError, match="boom"):
        do_all(jobs, at_work=2, room=MemoryBudget(None))
    assert {"drop a", "drop b"} <= set(book.lines) and "work c" not in book.lines


def test_a_group_kills_also_what_is_born_later(tmp_path: Path) -> None:
    group = proc.Group()
    argv = [sys.executable, "-c", "import time; time.sleep(600)"]
    with group, proc.spawn(argv, stdout=tmp_path / "out", stderr=tmp_path / "err") as child:
        group.kill()
        assert child.wait(Deadline(60)) == -9
        with proc.spawn(argv, stdout=tmp_path / "out", stderr=tmp_path / "err") as late:
            assert late.wait(Deadline(60)) == -9
    with proc.spawn([sys.executable, "-c", ""], stdout=tmp_path / "out", stderr=tmp_path / "err") as other:
        assert other.wait(Deadline(60)) == 0
