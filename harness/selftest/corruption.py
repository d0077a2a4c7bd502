# SPDX-License-Identifier: GPL-2.0-or-later
"""What a corruption is: one lie, and the invariants that must name it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.check import Evidence
from harness.selftest.live import Live
from harness.selftest.scene import Scene


@dataclass(frozen=True, slots=True)
class MemoryCorruption:
    """Something wrong in the memory of a paused guest.

    ``apply`` does it and says where; it raises Inapplicable where this guest has nothing to do it to. ``broken`` are
    the invariants that must name it, as far as they are observed on the guest at all.
    """

    name: str
    target: str
    summary: str
    broken: frozenset[str]
    apply: Callable[[Live], str]


@dataclass(frozen=True, slots=True)
class TextCorruption:
    """Something wrong in what was collected: ``edit`` gives the evidence of a scene with the lie in it.

    ``target`` is the source that is edited. As with MemoryCorruption, Inapplicable is raised where there is nothing.
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
