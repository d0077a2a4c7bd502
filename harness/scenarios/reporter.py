# SPDX-License-Identifier: GPL-2.0-or-later
"""The progress events of a run, and their relay from concurrent runs as if they ran one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable

from harness.scenarios.result import RunResult, StepResult


class Reporter:
    """Called live, in this order: run_started, phase*, (step_started, step_finished)*, run_finished."""

    def run_started(self, scenario: str, guest: str) -> None: ...

    def phase(self, text: str) -> None: ...

    def step_started(self, number: int, total: int, title: str) -> None: ...

    def step_finished(self, result: StepResult) -> None: ...

    def run_finished(self, result: RunResult) -> None: ...

    def under_way(self, runs: tuple[str, ...]) -> None:
        """Several concurrent runs: their current activities. The other calls report each run when it is over."""


class SilentReporter(Reporter):
    """Tells nobody."""


class Relay:
    """Hands out a reporter for each run; thread-safe.

    ``live``: all of them are ``to`` itself, for sequential runs. Otherwise a run's report is kept until it is over and
    passed on in one piece; meanwhile one line shows the current activity of all runs.
    """

    def __init__(self, to: Reporter, *, live: bool) -> None:
        self._to = to
        self._live = live
        self._at: dict[_Kept, str] = {}
        self._lock = threading.Lock()

    def reporter(self) -> Reporter:
        """One for the next run."""
        return self._to if self._live else _Kept(self)

    def at(self, run: _Kept, what: str) -> None:
        """Show the current activity of ``run``."""
        with self._lock:
            self._at[run] = what
            self._show()

    def over(self, run: _Kept, story: list[Callable[[Reporter], None]]) -> None:
        """Pass on the whole ``story`` of ``run``."""
        with self._lock:
            self._at.pop(run, None)
            for tell in story:
                tell(self._to)
            self._show()

    def _show(self) -> None:
        self._to.under_way(tuple(self._at.values()))


class _Kept(Reporter):
    """The reporter of one run among others; ``under_way`` is never called for it."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._story: list[Callable[[Reporter], None]] = []
        self._name = ""

    def run_started(self, scenario: str, guest: str) -> None:
        self._name = scenario
        self._story.append(lambda to: to.run_started(scenario, guest))
        self._relay.at(self, scenario)

    def phase(self, text: str) -> None:
        self._relay.at(self, f"{self._name}: {text}")

    def step_started(self, number: int, total: int, title: str) -> None:
        self._relay.at(self, f"{self._name} {number}/{total}")

    def step_finished(self, result: StepResult) -> None:
        self._story.append(lambda to: to.step_finished(result))

    def run_finished(self, result: RunResult) -> None:
        self._story.append(lambda to: to.run_finished(result))
        self._relay.over(self, self._story)
