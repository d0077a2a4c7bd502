# SPDX-License-Identifier: GPL-2.0-or-later
"""One cell over many nights: since when it fails, how often its verdict flips, and whether it became slower.

The band of times goes from the minimum to the maximum of the earlier nights that passed. One more night of the same
kind falls outside the band of N nights with probability 2/(N+1), whatever the distribution (each of N+1 exchangeable
values is equally likely to be the minimum, or the maximum).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from harness.check import Verdict
from harness.report.tally import findings
from harness.scenarios.result import RunResult

#: fewer nights make no band: with four of them, 40 % of the values would fall outside
LEAST_NIGHTS = 5
#: verdicts about the kernel
_CONCLUSIVE = (Verdict.PASS, Verdict.KNOWN, Verdict.FAIL)


@dataclass(frozen=True, slots=True)
class Night:
    """One result of a cell. ``started`` is ISO 8601 in UTC; ``seconds`` includes the boot; ``broken`` are invariants;
    ``name`` is its source, "" for tonight."""

    started: str
    verdict: Verdict
    seconds: float
    kernel: str = ""
    broken: tuple[str, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Trend:
    """The trend of a series of nights, tonight last.

    ``first_bad`` is the first failure since the last pass, ``last_good`` that pass. ``flips`` counts changes between
    pass and fail among the ``turns`` pairs of consecutive nights with the same kernel. ``band`` is in seconds, None
    with fewer than LEAST_NIGHTS passes; ``chance`` is the probability to fall outside it by chance; ``drift`` is
    "slower", "faster" or "".
    """

    nights: tuple[Night, ...]
    first_bad: Night | None
    last_good: Night | None
    flips: int
    turns: int
    band: tuple[float, float] | None
    chance: float
    drift: str

    @property
    def flaky(self) -> bool:
        """It both passes and fails with the same kernel."""
        return self.flips > 0


def night_of(run: RunResult) -> Night:
    """The night of a run."""
    broken = {found.invariant for found in findings(run)}
    kernel = f"{run.facts.get('kernel', '')} {run.facts.get('kernel_origin', '')}".strip()
    return Night(run.started, run.verdict, run.seconds, kernel, tuple(sorted(broken)))


def trend(nights: Sequence[Night]) -> Trend:
    """The trend of at least one night; the latest is tonight."""
    ordered = tuple(sorted(nights, key=lambda night: night.started))
    conclusive = [night for night in ordered if night.verdict in _CONCLUSIVE]
    first_bad = last_good = None
    for night in conclusive:
        if night.verdict is not Verdict.FAIL:
            first_bad, last_good = None, night
        elif first_bad is None:
            first_bad = night
    pairs = [(one, two) for one, two in itertools.pairwise(conclusive) if one.kernel == two.kernel]
    *earlier, tonight = ordered
    times = [night.seconds for night in earlier if night.verdict is Verdict.PASS]
    band = (min(times), max(times)) if len(times) >= LEAST_NIGHTS else None
    drift = ""
    if band is not None and tonight.verdict is Verdict.PASS:
        drift = "slower" if tonight.seconds > band[1] else "faster" if tonight.seconds < band[0] else ""
    return Trend(
        nights=ordered,
        first_bad=first_bad,
        last_good=None if first_bad is None else last_good,
        flips=sum(one.verdict is not two.verdict for one, two in pairs),
        turns=len(pairs),
        band=band,
        chance=2 / (len(times) + 1),
        drift=drift,
    )
