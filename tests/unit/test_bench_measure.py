# SPDX-License-Identifier: GPL-2.0-or-later
"""Measurements with clocks that the test advances."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.bench.figures import Host, cpu_model, look_at_host
from harness.bench.measure import TOTAL, Clocks, Laps, Spread, fit_line, paired


class Time:
    """A wall clock and a CPU clock: work takes wall time, part of it on a CPU."""

    def __init__(self) -> None:
        self.wall = 100.0
        self.cpu = 7.0
        self.clocks = Clocks(lambda: self.wall, lambda: self.cpu)

    def work(self, wall: float, cpu: float = 0.0) -> None:
        self.wall += wall
        self.cpu += cpu


def test_a_spread() -> None:
    spread = Spread((4.0, 1.0, 2.0, 3.0))
    assert (spread.median, spread.low, spread.high) == (2.5, 1.0, 4.0)
    assert spread.over(Spread((2.0, 1.0, 4.0, 1.0))).values == (2.0, 1.0, 0.5, 3.0)
    with pytest.raises(ValueError, match="shorter"):
        spread.over(Spread((1.0,)))


def test_rounds_are_paired_and_their_order_turns() -> None:
    time = Time()
    done: list[str] = []

    def host(laps: Laps) -> None:
        done.append("host")
        with laps.part("copy"):
            time.work(len(done), 0.5)
        time.work(0.25)
        laps.told("still", lambda: float(len(done)))

    def guest(laps: Laps) -> None:
        done.append("guest")
        time.work(10.0)

    found = paired({"host": host, "guest": guest}, 3, after_round=lambda: done.append("-"), clocks=time.clocks)
    # The first round does not count.
    assert done == ["host", "guest", "-", "guest", "host", "-", "host", "guest", "-", "guest", "host", "-"]
    assert found["host"].keys() == {"copy", "still", TOTAL}
    assert found["host"]["copy"].wall.values == (5.0, 7.0, 11.0)
    assert found["host"][TOTAL].wall.values == (5.25, 7.25, 11.25)
    cpu = found["host"]["copy"].cpu
    assert cpu is not None and cpu.values == (0.5, 0.5, 0.5)
    assert found["host"]["still"].wall.values == (5.0, 7.0, 11.0)
    assert found["host"]["still"].cpu is None
    assert found["guest"][TOTAL].wall.values == (10.0, 10.0, 10.0)


def test_rounds_without_a_warm_up() -> None:
    time = Time()
    found = paired({"a": lambda laps: time.work(1.0)}, 2, clocks=time.clocks, warm_ups=0)
    assert found["a"][TOTAL].wall.values == (1.0, 1.0) and time.wall == 102.0


def test_a_part_that_comes_twice_adds_up() -> None:
    time = Time()
    laps = Laps(time.clocks)
    for seconds in (1.0, 2.0):
        with laps.part("read"):
            time.work(seconds, seconds / 4)
    assert (laps.wall, laps.cpu) == ({"read": 3.0}, {"read": 0.75})


def test_what_others_tell_costs_no_time() -> None:
    time = Time()

    def ask() -> float:
        time.work(9.0)
        return 3.0

    found = paired({"side": lambda laps: laps.told("theirs", ask)}, 1, clocks=time.clocks)["side"]
    assert (found["theirs"].wall.values, found[TOTAL].wall.values) == ((3.0,), (0.0,))


def test_other_parts_in_another_round_are_an_error() -> None:
    rounds = iter("aab")

    def side(laps: Laps) -> None:
        with laps.part(next(rounds)):
            pass

    with pytest.raises(ValueError, match="not every round timed the same parts"):
        paired({"side": side}, 2)


@pytest.mark.parametrize("was_on", [True, False])
def test_the_collector_rests_while_the_clock_runs(was_on: bool) -> None:
    seen: list[bool] = []
    before = gc.isenabled()
    try:
        gc.enable() if was_on else gc.disable()
        paired({"side": lambda laps: seen.append(gc.isenabled())}, 2)
        assert seen == [False] * 3
        assert gc.isenabled() is was_on

        def fails(laps: Laps) -> None:
            raise KeyError("side")

        with pytest.raises(KeyError, match="side"):
            paired({"side": fails}, 1)
        assert gc.isenabled() is was_on
    finally:
        gc.enable() if before else gc.disable()


def test_real_clocks_tick() -> None:
    found = paired({"side": lambda laps: None}, 5)["side"][TOTAL]
    assert 0 < found.wall.low < 1 and found.cpu is not None


@given(
    st.floats(1e-6, 1.0), st.floats(1e-9, 1e-3), st.lists(st.integers(1, 10**6), min_size=3, max_size=8, unique=True)
)
def test_points_on_a_line(fixed: float, slope: float, pages: list[int]) -> None:
    line = fit_line([(x, fixed + slope * x) for x in pages])
    assert line.worst < 1e-3


def test_points_off_a_line() -> None:
    points = [(1.0, 1.0), (2.0, 2.2), (4.0, 4.0)]
    line = fit_line(points)
    x, y = np.array(points).T
    slope, fixed = np.polyfit(x, y, 1, w=1 / y)
    assert (line.fixed, line.slope) == pytest.approx((fixed, slope))
    assert line.deviations == pytest.approx(tuple(y / (fixed + slope * x) - 1))
    assert [part > 0 for part in line.deviations] == [False, True, False]
    # Quadratic cost is not taken for linear.
    assert fit_line([(x, x * x) for x in (1, 4, 16, 64)]).worst > 0.5
    with pytest.raises(ValueError, match="a fit needs at least three points"):
        fit_line([(1, 1.0), (2, 2.0)])


def test_the_cpus_name() -> None:
    assert cpu_model("processor\t: 0\nmodel name\t: Some CPU: @ 2 GHz\nmodel name\t: other\n") == "Some CPU: @ 2 GHz"
    assert cpu_model("hart : 0\nuarch : sifive,u74\n") == "sifive,u74"
    assert cpu_model("processor\t: 0\nCPU part\t: 0xd0c\nmodel name\t:\n") is None


@pytest.mark.parametrize(("load", "busy"), [(0.5, False), (1.5, True)])
def test_a_busy_host(load: float, busy: bool) -> None:
    assert Host("cpu", 4, (load, 9.0, 9.0), "6.1", "3.12", "2.0").busy is busy


def test_this_host() -> None:
    host = look_at_host()
    assert host.cpu and host.cpus >= 1 and len(host.load) == 3
