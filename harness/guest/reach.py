# SPDX-License-Identifier: GPL-2.0-or-later
"""Work that the exception of a signal cannot interrupt."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def out_of_reach(work: Callable[[], T], abandon: Callable[[], None]) -> T:
    """Run ``work`` in a thread that the exception of a signal (Ctrl-C, SIGTERM) cannot reach; return its result.

    Python raises that exception in the main thread, between any two instructions. paramiko takes its locks without
    ``with`` (BufferedPipe, Transport): an exception there leaves a lock held for ever, and the next hang-up waits for
    it. So the main thread only waits while another one works; if it is interrupted, ``abandon`` makes the other one
    end soon. Raises what ``work`` raises.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    try:
        threading.Thread(target=run, name="guest-work", daemon=True).start()
        return future.result()
    except BaseException:
        if not future.done():
            abandon()
        raise
