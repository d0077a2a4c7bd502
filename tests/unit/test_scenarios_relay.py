# SPDX-License-Identifier: GPL-2.0-or-later
"""Several concurrent runs that share one reporter."""

from __future__ import annotations

from typing import Any, cast

from harness.scenarios.reporter import Relay, SilentReporter


class Ear(SilentReporter):
    """Records its calls."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def run_started(self, scenario: str, guest: str) -> None:
        self.heard.append(f"start {scenario}")

    def step_finished(self, result: Any) -> None:
        self.heard.append(f"step {result}")

    def run_finished(self, result: Any) -> None:
        self.heard.append(f"end {result}")

    def under_way(self, runs: tuple[str, ...]) -> None:
        self.heard.append(runs)


def test_one_after_the_other_is_told_as_it_comes() -> None:
    ear = Ear()
    assert Relay(ear, live=True).reporter() is ear


def test_each_run_is_told_in_one_piece() -> None:
    ear = Ear()
    relay = Relay(ear, live=False)
    one, two = relay.reporter(), relay.reporter()
    one.run_started("one", "g")
    two.run_started("two", "g")
    one.phase("booting")
    one.step_started(1, 3, "x")
    two.step_finished(cast(Any, "two.1"))
    one.step_finished(cast(Any, "one.1"))
    two.run_finished(cast(Any, "two"))
    one.run_finished(cast(Any, "one"))
    assert ear.heard == [
        ("one",),
        ("one", "two"),
        ("one: booting", "two"),
        ("one 1/3", "two"),
        *("start two", "step two.1", "end two"),
        ("one 1/3",),
        *("start one", "step one.1", "end one"),
        (),
    ]
