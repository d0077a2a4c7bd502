# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress of long work: bars on a terminal, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

#: work of at least this many seconds leaves a line when it ends
_WORTH_TELLING = 2.0
#: seconds between two lines of one task without a terminal
_LINE_EVERY = 10.0


class Task(Protocol):
    """One task in progress. Its methods may be called from any thread."""

    def advance(self, amount: float = 1) -> None:
        """Add ``amount`` to the work done."""

    def update(self, *, done: float | None = None, total: float | None = None, note: str | None = None) -> None:
        """Set the work done, the total, or the short note beside the bar."""


class Progress(Protocol):
    """Shows tasks in progress."""

    def task(self, title: str, total: float | None = None) -> AbstractContextManager[Task]:
        """Show ``title`` while the context is active; ``total`` is in any unit, None if unknown."""

    def say(self, text: str) -> None:
        """Print a message that is not an error, without disturbing the display."""


def format_seconds(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``4 min 05 s``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class _Count:
    """The progress of a task, guarded by a lock."""

    def __init__(self, total: float | None, changed: Callable[[], None]) -> None:
        self.total = total
        self.done = 0.0
        self.note = ""
        self._lock = threading.Lock()
        self._changed = changed

    def advance(self, amount: float = 1) -> None:
        with self._lock:
            self.done += amount
        self._changed()

    def update(self, *, done: float | None = None, total: float | None = None, note: str | None = None) -> None:
        with self._lock:
            self.done = self.done if done is None else done
            self.total = self.total if total is None else total
            self.note = self.note if note is None else note
        self._changed()

    def percent(self) -> int | None:
        """Never 100 before the end: a total may be an estimate."""
        if not self.total:
            return None
        return min(99, int(100 * self.done / self.total))


class SilentProgress:
    """Shows nothing."""

    @contextmanager
    def task(self, title: str, total: float | None = None) -> Iterator[Task]:
        yield _Count(total, lambda: None)

    def say(self, text: str) -> None:
        pass


class PlainProgress:
    """Lines: one when a task starts, at most one every ten seconds while it runs, one when it ends."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        with self._lock:
            self._stream.write(f"{text}\n")
            self._stream.flush()

    @contextmanager
    def task(self, title: str, total: float | None = None) -> Iterator[Task]:
        start = last = self._clock()

        def changed() -> None:
            nonlocal last
            now = self._clock()
            if now - last < _LINE_EVERY:
                return
            last = now
            percent = count.percent()
            parts = ["" if percent is None else f"{percent} %", count.note, f"after {format_seconds(now - start)}"]
            self.say(f"{title}: {', '.join(part for part in parts if part)}")

        count = _Count(total, changed)
        self.say(f"{title} ...")
        try:
            yield count
        except BaseException:
            self.say(f"{title}: failed after {format_seconds(self._clock() - start)}")
            raise
        self.say(f"{title}: done in {format_seconds(self._clock() - start)}")


class TerminalProgress:
    """Moving bars; longer tasks leave one line. NO_COLOR is honoured."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console if console is not None else Console(stderr=True)
        self._bars = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[percent]}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=self._console,
            transient=True,
        )
        self._lock = threading.Lock()
        self._running = 0

    def say(self, text: str) -> None:
        self._console.print(escape(text), highlight=False)

    @contextmanager
    def task(self, title: str, total: float | None = None) -> Iterator[Task]:
        with self._lock:
            if self._running == 0:
                self._bars.start()
            self._running += 1
            bar = self._bars.add_task(escape(title), total=total, percent="", note="")

        def changed() -> None:
            percent = count.percent()
            shown = "" if percent is None else f"{percent:3d}%"
            self._bars.update(bar, completed=count.done, total=count.total, percent=shown, note=escape(count.note[:60]))

        count = _Count(total, changed)
        start = time.monotonic()
        mark = "[red]✗[/]"
        try:
            yield count
            mark = "[green]✓[/]"
        finally:
            took = time.monotonic() - start
            with self._lock:
                self._bars.remove_task(bar)
                self._running -= 1
                if self._running == 0:
                    self._bars.stop()
            if took >= _WORTH_TELLING or "red" in mark:
                self._console.print(f"{mark} {escape(title)} [dim]{format_seconds(took)}[/]", highlight=False)


def default_progress() -> Progress:
    """Bars if stderr is a terminal, lines if not."""
    return TerminalProgress() if sys.stderr.isatty() else PlainProgress(sys.stderr)
