# SPDX-License-Identifier: GPL-2.0-or-later
"""The results of all corruptions on one guest: the mutation score, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from harness import __version__
from harness.selftest.corruption import Corruption, MemoryCorruption
from harness.selftest.trial import INAPPLICABLE, NAMED, Trial

FORMAT = "memhp-selftest"
VERSION = 1


@dataclass(frozen=True)
class SelftestResult:
    """The ``trials`` on one guest; ``lacks`` are the devices that it could not have, with the reason."""

    arch: str
    guest: str
    kernel: str
    trials: tuple[Trial, ...]
    lacks: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def applied(self) -> tuple[Trial, ...]:
        """The trials of corruptions that apply to this guest."""
        return tuple(trial for trial in self.trials if trial.status != INAPPLICABLE)

    @property
    def named(self) -> int:
        """How many corruptions were named by all required invariants, and left no trace when undone."""
        return sum(trial.status == NAMED for trial in self.applied)

    @property
    def perfect(self) -> bool:
        """True if corruptions applied and all of them were named."""
        return 0 < len(self.applied) == self.named


def exit_status(results: Sequence[SelftestResult]) -> int:
    """0: all named. 1: a corruption was not named, or left a trace. 3: nothing could be corrupted on some guest."""
    if any(result.named < len(result.applied) for result in results):
        return 1
    return 0 if all(result.perfect for result in results) else 3


def to_lines(result: SelftestResult) -> Iterator[str]:
    """As text: missed corruptions first, then those not tried, then the number that each invariant named."""
    for trial in result.trials:
        if trial.status not in (NAMED, INAPPLICABLE):
            yield f"{result.guest}: {trial.status}: {trial.corruption.name}: {trial.where}: {trial.reason}"
    for reason, names in _not_tried(result).items():
        yield f"{result.guest}: not tried: {', '.join(names)}: {reason}"
    counts: dict[str, int] = {}
    for trial in result.applied:
        for invariant in trial.wanted & trial.named:
            counts[invariant] = counts.get(invariant, 0) + 1
    if counts:
        yield f"{result.guest}: named by " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    yield score(result)


def score(result: SelftestResult) -> str:
    """The mutation score in one line."""
    if not result.applied:
        return f"{result.guest}: nothing could be corrupted"
    # Rounded down: 100 % means all of them.
    percent = 100 * result.named // len(result.applied)
    memory = sum(isinstance(trial.corruption, MemoryCorruption) for trial in result.applied)
    return (
        f"{result.guest}: {result.named}/{len(result.applied)} corruptions named ({percent} %), {memory} of them in "
        f"the memory of a live guest, {len(result.applied) - memory} in text; {result.seconds:.1f} s"
    )


def _not_tried(result: SelftestResult) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for trial in result.trials:
        if trial.status == INAPPLICABLE:
            reasons.setdefault(trial.reason, []).append(trial.corruption.name)
    return reasons


def to_json(results: Sequence[SelftestResult]) -> dict[str, object]:
    """All trials on all guests; ``score`` is the fraction of named corruptions."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "memhp": __version__,
        "guests": [
            {
                "arch": result.arch,
                "guest": result.guest,
                "kernel": result.kernel,
                "lacks": dict(result.lacks),
                "seconds": round(result.seconds, 3),
                "applied": len(result.applied),
                "named": result.named,
                "score": result.named / len(result.applied) if result.applied else None,
                "trials": [_trial(trial) for trial in result.trials],
            }
            for result in results
        ],
    }


def _trial(trial: Trial) -> dict[str, object]:
    return {
        **describe(trial.corruption),
        "status": trial.status,
        "where": trial.where,
        "wanted": sorted(trial.wanted),
        "named": sorted(trial.named),
        "reason": trial.reason,
    }


def describe(item: Corruption) -> dict[str, object]:
    """A corruption as JSON."""
    return {
        "name": item.name,
        "kind": "memory" if isinstance(item, MemoryCorruption) else "text",
        "target": item.target,
        "summary": item.summary,
        "broken": sorted(item.broken),
    }
