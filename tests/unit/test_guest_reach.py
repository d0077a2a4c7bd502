# SPDX-License-Identifier: GPL-2.0-or-later
"""Work that signals cannot interrupt."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from harness.guest.reach import out_of_reach


class Hit(BaseException):
    pass


@pytest.fixture
def hit() -> Iterator[None]:
    def handler(number: int, frame: object) -> None:
        raise Hit

    before = signal.signal(signal.SIGUSR1, handler)
    yield
    signal.signal(signal.SIGUSR1, before)


def nothing() -> None:
    raise AssertionError("not to be called")


def test_results_and_errors_come_through() -> None:
    assert out_of_reach(lambda: 7, nothing) == 7

    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        out_of_reach(fail, nothing)


def test_only_the_main_thread_needs_another() -> None:
    seen: list[tuple[threading.Thread, threading.Thread]] = []

    def work() -> threading.Thread:
        return threading.current_thread()

    def other() -> None:
        seen.append((threading.current_thread(), out_of_reach(work, nothing)))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [(thread, thread)]
    assert out_of_reach(work, nothing) is not threading.main_thread()


def test_a_signal_ends_the_wait_and_not_the_work(hit: None) -> None:
    abandoned, ended = threading.Event(), threading.Event()

    def work() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert abandoned.wait(60)
        ended.set()

    with pytest.raises(Hit):
        out_of_reach(work, abandoned.set)
    assert abandoned.is_set() and ended.wait(60)
