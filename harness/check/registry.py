# SPDX-License-Identifier: GPL-2.0-or-later
"""The catalogue of invariants, and running them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.check.evidence import Evidence
from harness.check.findings import CheckResult, Finding
from harness.state import NotObserved


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


#: result of a check: differences (none is a pass), NotObserved, or None if it does not apply to the step
Outcome = Iterable[Broken] | Seen | NotObserved | None
CheckFunction = Callable[[Evidence], Outcome]


@dataclass(frozen=True, slots=True)
class Invariant:
    """``statement`` is one line; ``source`` the kernel or QEMU code it follows from; ``motive`` the bug it catches.

    ``reads`` are the guest's files whose garbled lines are findings of this invariant, whatever else it makes of them.
    ``needs`` are words of ``harness.check.required``: sources of the invariant that a kernel may lack.
    ``posthumous``: it can be told of a kernel that died in the step.
    """

    id: str
    statement: str
    source: str
    motive: str
    check: CheckFunction
    reads: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    posthumous: bool = False


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
) -> Callable[[CheckFunction], CheckFunction]:
    """Register a check under a stable id; no two of them ``read`` the same file."""

    def register(check: CheckFunction) -> CheckFunction:
        if id in CATALOGUE:
            raise ValueError(f"invariant {id} is registered twice")
        CATALOGUE[id] = Invariant(id, statement, source, motive, check, reads, needs, posthumous)
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
    outcome = item.check(evidence)
    garbled = [*_garbled(item, evidence)]
    if garbled and (outcome is None or isinstance(outcome, NotObserved)):
        outcome = []
    if outcome is None:
        return None
    if isinstance(outcome, NotObserved):
        return CheckResult(item.id, "not-observed", reason=outcome.reason)
    seen = outcome if isinstance(outcome, Seen) else Seen(outcome, "")
    findings = tuple(
        Finding(item.id, broken.where, broken.expected, broken.observed, broken.source, step)
        for broken in [*garbled, *seen.broken]
    )
    return CheckResult(item.id, "fail" if findings else "pass", findings, note=seen.note)


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
