# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run tells whoever watches it."""

from __future__ import annotations

from typing import Protocol

from harness.scenarios.result import RunResult, StepResult


class Reporter(Protocol):
    """Called live, in this order: run_started, phase*, (step_started, step_finished)*, run_finished."""

    def run_started(self, scenario: str, guest: str) -> None: ...

    def phase(self, text: str) -> None: ...

    def step_started(self, number: int, total: int, title: str) -> None: ...

    def step_finished(self, result: StepResult) -> None: ...

    def run_finished(self, result: RunResult) -> None: ...

    def under_way(self, runs: tuple[str, ...]) -> None:
        """Several runs at a time: what each of them is at. Each is told of by the other calls when it is over."""


class SilentReporter:
    """Tells nobody."""

    def run_started(self, scenario: str, guest: str) -> None:
        """Nothing to do."""

    def phase(self, text: str) -> None:
        """Nothing to do."""

    def step_started(self, number: int, total: int, title: str) -> None:
        """Nothing to do."""

    def step_finished(self, result: StepResult) -> None:
        """Nothing to do."""

    def run_finished(self, result: RunResult) -> None:
        """Nothing to do."""

    def under_way(self, runs: tuple[str, ...]) -> None:
        """Nothing to do."""
