# SPDX-License-Identifier: GPL-2.0-or-later
"""The catalogue of invariants, and running them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from harness.check.evidence import Evidence
from harness.check.findings import CheckResult, Finding
from harness.state import NotObserved

T = TypeVar("T")
K = TypeVar("K", int, str, tuple[int, str])
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Broken:
    """One difference that a check found; the registry turns it into a Finding."""

    where: str
    expected: str
    observed: str
    source: str


@dataclass(frozen=True, slots=True)
class Seen:
    """Differences, and a note about the sources (see ``CheckResult.note``)."""

    broken: Iterable[Broken]
    note: str


class Unobserved(Exception):
    """A source of a check was not observed; what it has found until then is broken all the same."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def observed(value: T | NotObserved) -> T:
    """``value`` unless it was not observed: then raises Unobserved."""
    if isinstance(value, NotObserved):
        raise Unobserved(value.reason)
    return value


def paired(wanted: Iterable[S], seen: Iterable[T], key: Callable[[S | T], K]) -> dict[K, tuple[S | None, T | None]]:
    """What is expected and what is observed by key, in its order; None is absent."""
    left, right = {key(item): item for item in wanted}, {key(item): item for item in seen}
    return {name: (left.get(name), right.get(name)) for name in sorted(left.keys() | right.keys())}


#: gives the differences (none is a pass); raises Unobserved if there may be others, but a source is missing
CheckFunction = Callable[[Evidence], Iterable[Broken] | Seen]


@dataclass(frozen=True, slots=True)
class Invariant:
    """``statement`` is one line; ``source`` the kernel or QEMU code it follows from; ``motive`` the bug it catches.

    ``reads`` are the guest's files whose garbled lines are findings of this invariant, whatever else it makes of them.
    ``needs`` are words of ``harness.check.required``: sources of the invariant that a kernel may lack.
    ``when`` tells whether it applies to a step. ``posthumous``: it can be told of a kernel that died in the step.
    """

    id: str
    statement: str
    source: str
    motive: str
    check: CheckFunction
    reads: tuple[str, ...]
    needs: tuple[str, ...]
    posthumous: bool
    when: Callable[[Evidence], object]


CATALOGUE: dict[str, Invariant] = {}


def invariant(
    id: str,
    statement: str,
    *,
    source: str,
    motive: str,
    reads: tuple[str, ...] = (),
    needs: tuple[str, ...] = (),
    posthumous: bool = False,
    when: Callable[[Evidence], object] = lambda evidence: True,
) -> Callable[[CheckFunction], CheckFunction]:
    """Register a check under a stable id; no two of them ``read`` the same file."""

    def register(check: CheckFunction) -> CheckFunction:
        if id in CATALOGUE:
            raise ValueError(f"invariant {id} is registered twice")
        CATALOGUE[id] = Invariant(id, statement, source, motive, check, reads, needs, posthumous, when)
        return check

    return register


def sort_catalogue(families: Sequence[str]) -> None:
    """Sort the catalogue by ``families`` (the part of an id before the dash), then by id."""
    ids = sorted(CATALOGUE, key=lambda id: (families.index(id.partition("-")[0]), id))
    items = [CATALOGUE[id] for id in ids]
    CATALOGUE.clear()
    CATALOGUE.update({item.id: item for item in items})


def run_check(item: Invariant, evidence: Evidence, step: str = "") -> CheckResult | None:
    """Run one invariant; None if it does not apply to this step."""
    broken = [*_garbled(item, evidence)]
    applies, note = item.when(evidence), ""
    if not applies and not broken:
        return None
    try:
        outcome = item.check(evidence) if applies else ()
        if isinstance(outcome, Seen):
            note = outcome.note
            outcome = outcome.broken
        broken.extend(outcome)
    except Unobserved as missing:
        if not broken:
            return CheckResult(item.id, "not-observed", reason=missing.reason)
    findings = tuple(Finding(item.id, one.where, one.expected, one.observed, one.source, step) for one in broken)
    return CheckResult(item.id, "fail" if findings else "pass", findings, note=note)


def _garbled(item: Invariant, evidence: Evidence) -> Iterator[Broken]:
    """The lines that no sound kernel prints, in the files that ``item`` reads."""
    for found in evidence.observed.garbled:
        if found.source in item.reads:
            yield Broken(
                f"{found.source}:{found.line}",
                "a line as the kernel prints it",
                f"'{found.text}': {found.why}",
                found.source,
            )


def run_all(evidence: Evidence, step: str = "") -> Iterator[CheckResult]:
    """Run every invariant that applies, in the catalogue's order; of a kernel that died, nothing was seen after it."""
    for item in CATALOGUE.values():
        result = run_check(item, evidence, step) if item.posthumous or not evidence.alarms else None
        if result is not None:
            yield result
