# SPDX-License-Identifier: GPL-2.0-or-later
"""A corruption: one change, and the invariants that must name it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from harness.check import Evidence
from harness.selftest.live import Live
from harness.selftest.scene import Scene

T = TypeVar("T")

#: performs a corruption of memory and returns where; raises Inapplicable if this guest has no target for it
Stroke = Callable[[Live], str]


@dataclass(frozen=True, slots=True)
class MemoryCorruption:
    """A corruption of the memory of a paused guest.

    ``broken`` are the invariants that must name it, if they are observed on the guest.
    """

    name: str
    target: str
    summary: str
    broken: frozenset[str]
    apply: Stroke


@dataclass(frozen=True, slots=True)
class TextCorruption:
    """A corruption of a collected source: ``edit`` returns the evidence of a scene with it.

    ``target`` is the edited source. As with MemoryCorruption, Inapplicable is raised if there is no target.
    """

    name: str
    target: str
    summary: str
    broken: frozenset[str]
    edit: Callable[[Scene], Evidence]


Corruption = MemoryCorruption | TextCorruption


@dataclass(frozen=True, slots=True)
class Case(Generic[T]):
    """A row of a table of corruptions: ``broken`` are the invariants, separated by spaces, ``how`` it is done."""

    name: str
    summary: str
    broken: str
    how: T

    @property
    def invariants(self) -> frozenset[str]:
        return frozenset(self.broken.split())


def memory(target: str, *cases: Case[Stroke]) -> tuple[MemoryCorruption, ...]:
    """Corruptions of the ``target`` in memory."""
    return tuple(MemoryCorruption(case.name, target, case.summary, case.invariants, case.how) for case in cases)
