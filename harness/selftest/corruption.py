# SPDX-License-Identifier: GPL-2.0-or-later
"""A corruption: one change, and the invariants that must name it. Building blocks for tables of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from harness.check import Evidence
from harness.selftest.live import Live
from harness.selftest.scene import Inapplicable, Scene
from harness.units import AddrRange

T = TypeVar("T")

#: returns another text for a collected source
Edit = Callable[[Scene, str], str]
#: performs a corruption of memory and returns where; raises Inapplicable if this guest has no target for it
Stroke = Callable[[Live], str]


@dataclass(frozen=True, slots=True)
class MemoryCorruption:
    """A corruption of the memory of a paused guest.

    ``broken`` are the invariants that must name it, if they are observed on the guest. As in a fast look, the guest's
    source ``left_out`` is not read then.
    """

    name: str
    target: str
    summary: str
    broken: frozenset[str]
    apply: Stroke
    left_out: str = ""


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


# collected text --------------------------------------------------------------------------------------------------


def source(target: str, case: Case[Edit]) -> TextCorruption:
    """A corruption of the collected source ``target``."""

    def apply(scene: Scene) -> Evidence:
        before = scene.text(target)
        after = case.how(scene, before)
        if after == before:
            raise Inapplicable(f"{target} is already like that")
        return scene.with_sources({target: after.encode()})

    return TextCorruption(case.name, target, case.summary, case.invariants, apply)


def sources(target: str, *cases: Case[Edit]) -> tuple[TextCorruption, ...]:
    """Corruptions of the collected source ``target``."""
    return tuple(source(target, case) for case in cases)


def replace(text: str, pattern: str, by: str) -> str:
    """Replace the first match of ``pattern`` (^ and $ match at lines). Raises Inapplicable without a match."""
    after, hits = re.subn(pattern, by, text, count=1, flags=re.MULTILINE)
    if not hits:
        raise Inapplicable(f"no line matches {pattern}")
    return after


def replaced(pattern: str, by: str) -> Edit:
    """``replace`` as an edit."""
    return lambda scene, text: replace(text, pattern, by)


def added_to(pattern: str, by: int) -> Edit:
    """Add ``by`` to the number in group 2 of ``pattern``."""

    def edit(scene: Scene, text: str) -> str:
        match = re.search(pattern, text, re.MULTILINE)
        if match is None:
            raise Inapplicable(f"no line matches {pattern}")
        return f"{text[: match.start(2)]}{int(match[2]) + by}{text[match.end(2) :]}"

    return edit


def appended(line: str) -> Edit:
    """Append a line."""
    return lambda scene, text: f"{text}{line}\n"


def in_json(change: Callable[[Scene, Any], Any]) -> Edit:
    """Change the value of a JSON source."""
    return lambda scene, text: json.dumps(change(scene, json.loads(text)))


def inclusive(where: AddrRange) -> str:
    """A range as /proc/iomem prints it."""
    return f"{where.start:08x}-{where.end - 1:08x}"
