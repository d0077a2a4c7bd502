# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress of everything that takes longer than a moment: a bar on a terminal, sparse lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TextIO

#: seconds between two lines of the same task where there is no terminal
LINE_SECONDS = 10.0


class Task(Protocol):
    """One piece of work under way."""

    def advance(self, amount: float = 1) -> None:
        """Count ``amount`` more as done."""

    def update(self, *, done: float | None = None, total: float | None = None, note: str | None = None) -> None:
        """Set what is done, what there is in all, or what is being done right now."""


class Progress(Protocol):
    """Whoever shows progress."""

    def task(self, description: str, total: float | None = None) -> AbstractContextManager[Task]:
        """Show ``description`` while the block runs; ``total`` None: nobody knows how much there is."""


class PlainProgress:
    """Lines on a stream that is no terminal: one at the start, one every ten seconds at most, one at the end."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    @contextlib.contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Task]:
        task = _PlainTask(self.stream, description, total)
        task.say("…")
        try:
            yield task
        except BaseException:
            task.say(f"failed after {task.elapsed():.0f} s")
            raise
        task.say(f"done in {task.elapsed():.0f} s")


class _PlainTask:
    def __init__(self, stream: TextIO, description: str, total: float | None) -> None:
        self.stream = stream
        self.description = description
        self.total = total
        self.done = 0.0
        self.note = ""
        self.started = self.last = time.monotonic()

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def say(self, text: str) -> None:
        self.stream.write(f"{self.description}: {text}\n")
        self.stream.flush()

    def advance(self, amount: float = 1) -> None:
        self.update(done=self.done + amount)

    def update(self, *, done: float | None = None, total: float | None = None, note: str | None = None) -> None:
        self.done = self.done if done is None else done
        self.total = self.total if total is None else total
        self.note = self.note if note is None else note
        now = time.monotonic()
        if now - self.last >= LINE_SECONDS:
            self.last = now
            share = f"{100 * min(1.0, self.done / self.total):.0f} %" if self.total else f"{self.elapsed():.0f} s"
            self.say(f"{share} {self.note}".rstrip())


class TerminalProgress:
    """Bars on a terminal; several tasks may be under way at once."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    @contextlib.contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Task]:
        # Imported here: it takes a tenth of a second, which most commands need not spend.
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        console = Console(file=self.stream, no_color="NO_COLOR" in os.environ)
        with Bars(*columns, console=console, transient=True) as bars:
            number = bars.add_task(description, total=total, note="")

            class Bar:
                def advance(self, amount: float = 1) -> None:
                    bars.advance(number, amount)

                def update(
                    self, *, done: float | None = None, total: float | None = None, note: str | None = None
                ) -> None:
                    fields = {} if note is None else {"note": note}
                    bars.update(number, completed=done, total=total, **fields)  # type: ignore[arg-type]

            yield Bar()


def default_progress(stream: TextIO | None = None) -> Progress:
    """Bars if ``stream`` (standard error) is a terminal, lines if not."""
    stream = sys.stderr if stream is None else stream
    return TerminalProgress(stream) if stream.isatty() else PlainProgress(stream)
