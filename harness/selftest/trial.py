# SPDX-License-Identifier: GPL-2.0-or-later
"""Trials: each corruption is applied, checked, undone, and checked again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.check import CheckResult, Evidence
from harness.collect.hostside import KERNEL_SOURCES, PAUSE
from harness.errors import InfraError
from harness.selftest.corruption import Corruption, MemoryCorruption, TextCorruption
from harness.selftest.live import Live
from harness.selftest.scene import Inapplicable, Scene, broken, check

#: how a trial ended: every required invariant named the corruption; one did not; a finding or another trace was left
#: after undoing it; the corruption did not apply
NAMED, MISSED, STUCK, INAPPLICABLE = "named", "missed", "stuck", "not applicable"


@dataclass(frozen=True, slots=True)
class Trial:
    """How one corruption went.

    ``where`` says what was corrupted. ``wanted`` are the invariants that had to name it (those observed on this guest),
    ``named`` those that did. ``reason`` explains every status but NAMED.
    """

    corruption: Corruption
    status: str
    where: str = ""
    wanted: frozenset[str] = field(default_factory=frozenset)
    named: frozenset[str] = field(default_factory=frozenset)
    reason: str = ""


def try_text(item: TextCorruption, scenes: Sequence[Scene]) -> Trial:
    """Try a corruption of text on the last of ``scenes`` to which it applies, and which shows no known bug."""
    reasons: dict[str, None] = {}
    for scene in reversed(scenes):
        if broken(scene.results):
            continue
        try:
            wanted = _wanted(item, scene.results)
            evidence = item.edit(scene)
        except Inapplicable as nothing:
            reasons.setdefault(str(nothing))
            continue
        results = check(evidence)
        left = check(scene.with_sources({}))
        return _judge(item, f"{item.target} of step {scene.title!r}", wanted, results, left, "")
    return Trial(item, INAPPLICABLE, reason=next(iter(reasons), "no step was recorded"))


def try_memory(item: MemoryCorruption, live: Live) -> Trial:
    """Try a corruption of memory. Raises InfraError if the guest does not stay paused."""
    before = _host_sources(live.untouched)
    live.begin()
    try:
        wanted = _wanted(item, live.scene.results)
        with live.editor.undone():
            where = item.apply(live)
            results = check(live.look(item.left_out))
    except Inapplicable as nothing:
        return Trial(item, INAPPLICABLE, reason=str(nothing))
    after = live.look()
    trace = "" if _host_sources(after) == before else "the host's sources differ from before"
    return _judge(item, where, wanted, results, check(after), trace)


def require_sound(evidence: Evidence) -> None:
    """Raise InfraError if any invariant is broken before any corruption."""
    for result in check(evidence).values():
        for finding in result.findings:
            raise InfraError(
                f"the guest fails before any corruption: {finding.invariant}: {finding.where}: "
                f"expected {finding.expected}, observed {finding.observed}",
                hint="see memhp run for details",
            )


def _wanted(item: Corruption, clean: Mapping[str, CheckResult]) -> frozenset[str]:
    """The invariants that must name a corruption, without those not observed on this guest."""
    blind = {name: result for name, result in clean.items() if result.status == "not-observed"}
    wanted = item.broken - blind.keys()
    if not wanted:
        first = min(item.broken)
        raise Inapplicable(f"{first} is not observed: {blind[first].reason}")
    return wanted


def _host_sources(evidence: Evidence) -> Mapping[str, bytes | None]:
    raw = evidence.observed.raw
    return {name: raw.get(name) for name in KERNEL_SOURCES if name != PAUSE}


def _judge(
    item: Corruption,
    where: str,
    wanted: frozenset[str],
    results: Mapping[str, CheckResult],
    left: Mapping[str, CheckResult],
    trace: str,
) -> Trial:
    named, still = broken(results), broken(left)
    if still or trace:
        reason = trace or f"still broken after undoing it: {', '.join(sorted(still))}"
        return Trial(item, STUCK, where, wanted, named, reason)
    if wanted - named:
        by = f"only {', '.join(sorted(named))}" if named else "nothing"
        return Trial(
            item, MISSED, where, wanted, named, f"{', '.join(sorted(wanted - named))} did not name it; {by} did"
        )
    return Trial(item, NAMED, where, wanted, named)
