# SPDX-License-Identifier: GPL-2.0-or-later
"""Measuring several ways to do one thing, alternately and part by part."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

#: rounds that are not counted: they fill caches, import lazily, touch the first pages of a mapping
WARM_UPS = 1
#: the part for a side's whole work
TOTAL = "total"


@dataclass(frozen=True, slots=True)
class Spread:
    """The values of one quantity, one per round, in order; never empty."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def over(self, other: Spread) -> Spread:
        """The ratios, round by round."""
        return Spread(tuple(mine / its for mine, its in zip(self.values, other.values, strict=True)))


@dataclass(frozen=True, slots=True)
class Clocks:
    """``wall`` time and ``cpu`` time of the calling thread, in seconds since an arbitrary start."""

    wall: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.thread_time


@dataclass(frozen=True, slots=True)
class Timing:
    """A part of the work: ``wall`` seconds, and ``cpu`` seconds of the measuring thread.

    If ``wall`` is much larger, the thread waited for other work or the host was busy. ``cpu`` is None for a part that
    another clock measured.
    """

    wall: Spread
    cpu: Spread | None


class Laps:
    """The times of one side in one round."""

    def __init__(self, clocks: Clocks | None = None) -> None:
        self._clocks = clocks or Clocks()
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._told: dict[str, Callable[[], float]] = {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block; times of the same name add up."""
        clocks = self._clocks
        cpu, wall = clocks.cpu(), clocks.wall()
        try:
            yield
        finally:
            self.wall[name] = self.wall.get(name, 0.0) + clocks.wall() - wall
            self.cpu[name] = self.cpu.get(name, 0.0) + clocks.cpu() - cpu

    def told(self, name: str, ask: Callable[[], float]) -> None:
        """Measure a part with another clock: ``ask`` returns its seconds, and is called after the timing."""
        self._told[name] = ask

    def finish(self) -> None:
        """Call every ``ask``."""
        self.wall |= {name: ask() for name, ask in self._told.items()}


#: does the whole job once; what it times itself become parts
Side = Callable[[Laps], None]
Series = Mapping[str, Timing]


def paired(
    sides: Mapping[str, Side],
    rounds: int,
    *,
    after_round: Callable[[], None] = lambda: None,
    clocks: Clocks | None = None,
    warm_ups: int = WARM_UPS,
) -> dict[str, Series]:
    """Run every side once per round, alternating the order, and return the times of all parts by side.

    The part ``TOTAL`` is the whole of a side. ``after_round`` is not timed: it can compare the results. ``warm_ups``
    rounds come first and are not counted. Python's garbage collector is off while the clocks run. Raises ValueError if
    a side's parts differ between rounds.
    """
    taken: dict[str, list[Laps]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(warm_ups + rounds):
        for name in names if number % 2 == 0 else reversed(names):
            laps = Laps(clocks)
            with _no_collector(), laps.part(TOTAL):
                sides[name](laps)
            laps.finish()
            if number >= warm_ups:
                taken[name].append(laps)
        after_round()
    return {name: _series(laps) for name, laps in taken.items()}


def _series(laps: Sequence[Laps]) -> Series:
    parts = laps[0].wall
    if any(lap.wall.keys() != parts.keys() for lap in laps):
        raise ValueError("not every round timed the same parts")
    return {
        name: Timing(
            Spread(tuple(lap.wall[name] for lap in laps)),
            Spread(tuple(lap.cpu[name] for lap in laps)) if name in laps[0].cpu else None,
        )
        for name in parts
    }


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@dataclass(frozen=True, slots=True)
class FittedLine:
    """The line ``fixed + slope * x``; ``deviations`` of the points from it, as fractions of it."""

    fixed: float
    slope: float
    deviations: tuple[float, ...]

    @property
    def worst(self) -> float:
        """The largest absolute deviation."""
        return max(abs(part) for part in self.deviations)


def fit_line(points: Sequence[tuple[float, float]]) -> FittedLine:
    """The line through points (x, y), y > 0, with the smallest sum of squared relative errors.

    Relative errors give small and large points the same weight. Raises ValueError for fewer than three points.
    """
    if len(points) < 3:
        raise ValueError("a fit needs at least three points")
    # Minimise the sum of ((fixed + slope * x) / y - 1) ** 2: linear in u = 1 / y and v = x / y.
    rows = [(1 / y, x / y) for x, y in points]
    uu, uv, vv = (sum(a[i] * a[j] for a in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    u, v = sum(a[0] for a in rows), sum(a[1] for a in rows)
    scale = uu * vv - uv * uv
    fixed, slope = (u * vv - v * uv) / scale, (v * uu - u * uv) / scale
    return FittedLine(fixed, slope, tuple(y / (fixed + slope * x) - 1 for x, y in points))
