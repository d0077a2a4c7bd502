# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress reports during long work."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from harness.progress import PlainProgress, SilentProgress, TerminalProgress, default_progress, format_seconds


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_at_start_every_ten_seconds_and_at_the_end() -> None:
    out, clock = io.StringIO(), Clock()
    with PlainProgress(out, clock).task("Building", total=200) as task:
        for _ in range(100):
            clock.now += 0.3
            task.advance()
        task.update(note="mm/slub.o")
    assert out.getvalue().splitlines() == [
        "Building ...",
        "Building: 17 %, after 10 s",
        "Building: 34 %, after 20 s",
        "Building: done in 30 s",
    ]


def test_plain_without_a_total_shows_the_note() -> None:
    out, clock = io.StringIO(), Clock()
    with PlainProgress(out, clock).task("Waiting") as task:
        clock.now += 11
        task.update(note="for APT")
    assert out.getvalue().splitlines()[1] == "Waiting: for APT, after 11 s"


def test_plain_says_that_it_failed() -> None:
    out, clock = io.StringIO(), Clock()
    with pytest.raises(RuntimeError), PlainProgress(out, clock).task("Building"):
        clock.now += 65
        raise RuntimeError
    assert out.getvalue().splitlines()[-1] == "Building: failed after 1 min 05 s"


def test_an_estimate_that_was_too_low_never_reads_as_the_end() -> None:
    out, clock = io.StringIO(), Clock()
    with PlainProgress(out, clock).task("Building", total=10) as task:
        clock.now += 11
        task.update(done=30)
    assert "99 %" in out.getvalue()


def terminal(**settings: bool) -> tuple[TerminalProgress, io.StringIO]:
    out = io.StringIO()
    return TerminalProgress(Console(file=out, force_terminal=True, width=100, **settings)), out


def test_a_terminal_shows_bars_of_tasks_in_tasks_and_quick_ones_leave_no_line() -> None:
    progress, out = terminal()
    with progress.task("Fetching [all]", total=2) as outer:
        outer.advance()
        with progress.task("Building", total=None) as inner:
            inner.update(done=1, total=4, note="[half]")
            progress.say("lists are [old]")
    assert "Fetching [all]" in out.getvalue()
    assert "lists are [old]" in out.getvalue()
    assert "✓" not in out.getvalue()


def test_a_terminal_shows_what_failed() -> None:
    progress, out = terminal(no_color=True)
    with pytest.raises(KeyError), progress.task("Building"):
        raise KeyError
    assert "✗ Building" in out.getvalue()


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    progress, out = terminal()
    with pytest.raises(KeyError), progress.task("Building"):
        raise KeyError
    assert "\x1b[31m" not in out.getvalue()


def test_silence() -> None:
    progress = SilentProgress()
    progress.say("x")
    with progress.task("Building", 3) as task:
        task.advance()


def test_default_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(default_progress(), PlainProgress)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.42, "0.4 s"), (12.3, "12 s"), (59.7, "1 min 00 s"), (245, "4 min 05 s")]
)
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
