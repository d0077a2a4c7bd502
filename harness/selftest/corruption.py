# SPDX-License-Identifier: GPL-2.0-or-later
"""A corruption: one change, and the invariants that must name it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.check import Evidence
from harness.selftest.live import Live
from harness.selftest.scene import Scene


@dataclass(frozen=True, slots=True)
class MemoryCorruption:
    """A corruption of the memory of a paused guest.

    ``apply`` performs it and returns where; it raises Inapplicable if this guest has no target for it. ``broken`` are
    the invariants that must name it, if they are observed on the guest.
    """

    name: str
    target: str
    summary: str
    broken: frozenset[str]
    apply: Callable[[Live], str]


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


def memory(name: str, target: str, summary: str, *broken: str, apply: Callable[[Live], str]) -> MemoryCorruption:
    """A corruption of memory."""
    return MemoryCorruption(name, target, summary, frozenset(broken), apply)
