# SPDX-License-Identifier: GPL-2.0-or-later
"""The progress events of a run."""

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
        """Several concurrent runs: their current activities. The other calls report each run when it is over."""


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
