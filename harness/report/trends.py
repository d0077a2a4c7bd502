# SPDX-License-Identifier: GPL-2.0-or-later
"""One cell over many nights: since when it is bad, how often it changes its mind, and whether it became slower.

How far times scatter is measured, not guessed: the band is from the least to the greatest of the earlier nights that
passed. One more night of the same kind falls outside of the band of N nights with the chance 2/(N+1), whatever the
distribution (each of N+1 exchangeable values is as likely as the others to be the least, or the greatest).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from harness.check import Verdict
from harness.report.tally import findings
from harness.scenarios.result import RunResult

#: fewer nights than this make no band: every third value would fall outside
LEAST_NIGHTS = 5
#: verdicts that say something of the kernel
_TOLD = (Verdict.PASS, Verdict.KNOWN, Verdict.FAIL)


@dataclass(frozen=True, slots=True)
class Night:
    """How a cell ended once. ``started`` is ISO 8601 in UTC; ``seconds`` includes the boot; ``broken`` are invariants;
    ``name`` is where it was read from, "" for tonight."""

    started: str
    verdict: Verdict
    seconds: float
    kernel: str = ""
    broken: tuple[str, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Trend:
    """What a row of nights comes to, tonight last.

    ``first_bad`` is the first of the failures that have gone on without a pass since, ``last_good`` the pass before
    it. ``flips`` counts changes between pass and fail from one night to the next, of ``turns``; only nights with the
    same kernel are compared. ``band`` are seconds, None with fewer than LEAST_NIGHTS passes; ``chance`` is how likely
    it is to fall outside by chance alone; ``drift`` is "slower", "faster" or "".
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
        """It passes and fails with one and the same kernel."""
        return self.flips > 0


def night_of(run: RunResult) -> Night:
    """What trends keep of a run."""
    broken = {found.invariant for found in findings(run)}
    kernel = f"{run.facts.get('kernel', '')} {run.facts.get('kernel_origin', '')}".strip()
    return Night(run.started, run.verdict, run.seconds, kernel, tuple(sorted(broken)))


def trend(nights: Sequence[Night]) -> Trend:
    """The trend of at least one night; the latest is tonight."""
    ordered = tuple(sorted(nights, key=lambda night: night.started))
    told = [night for night in ordered if night.verdict in _TOLD]
    first_bad = last_good = None
    for night in told:
        if night.verdict is not Verdict.FAIL:
            first_bad, last_good = None, night
        elif first_bad is None:
            first_bad = night
    pairs = [(one, two) for one, two in itertools.pairwise(told) if one.kernel == two.kernel]
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
