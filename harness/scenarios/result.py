# SPDX-License-Identifier: GPL-2.0-or-later
"""How steps and runs ended, as values that every report is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.check import CheckResult, Verdict
from harness.scenarios.memorymap import MemoryMap
from harness.state import Unknown

#: verdicts that ask nobody to do anything
FINE = frozenset({Verdict.PASS, Verdict.SKIPPED, Verdict.KNOWN})


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step: ``guest_seconds`` is the part of ``seconds`` in which the guest and QEMU worked on the action itself.

    ``note`` says how the action ended where that needs words (a refusal, a size), ``changes`` what it changed in the
    kernel's state, a line each, ``memory`` the physical memory after it. ``bugs`` are the ids of known bugs that were
    met, ``unseen`` of those that this kernel has and the step names, in vain; ``stops``: nothing can follow.
    """

    number: int
    title: str
    verdict: Verdict
    seconds: float
    guest_seconds: float
    checks: tuple[CheckResult, ...]
    note: str = ""
    changes: tuple[str, ...] = ()
    memory: MemoryMap | None = None
    bugs: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    stops: bool = False

    @property
    def goes_on(self) -> bool:
        """True if the steps after it can be done."""
        return self.verdict in (Verdict.PASS, Verdict.KNOWN) and not self.stops


@dataclass(frozen=True, slots=True)
class RunResult:
    """One scenario on one guest. ``facts`` are JSON-able: kernel release, QEMU version, page size, argv, …

    ``bundle`` is the directory with everything needed to debug and replay the run, None where nothing was kept.
    ``started`` is ISO 8601 in UTC. ``family`` is the scenario's; ``lacks`` the ability without which it was skipped.
    ``unknown`` is what of the kernel's text memhp did not know, each thing once.
    ``bugs`` has the title of each known bug that its steps met or named in vain, by id; ``left`` is how many steps were
    not done because of one.
    """

    scenario: str
    guest: str
    arch: str
    verdict: Verdict
    reason: str
    hint: str | None
    seconds: float
    boot_seconds: float
    steps: tuple[StepResult, ...]
    facts: Mapping[str, object]
    bundle: Path | None
    started: str
    seed: int
    family: str = ""
    lacks: str = ""
    unknown: tuple[Unknown, ...] = ()
    bugs: Mapping[str, str] = field(default_factory=dict)
    left: int = 0

    @property
    def met(self) -> tuple[str, ...]:
        """The ids of the known bugs that its steps met."""
        return tuple(dict.fromkeys(id for step in self.steps for id in step.bugs))

    @property
    def unseen(self) -> tuple[str, ...]:
        """The ids of known bugs that this kernel has and that did not show where a step names them."""
        return tuple(dict.fromkeys(id for step in self.steps for id in step.unseen))
