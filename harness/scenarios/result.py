# SPDX-License-Identifier: GPL-2.0-or-later
"""The results of steps and runs, the input of every report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.check import CheckResult, Verdict
from harness.scenarios.memorymap import MemoryMap
from harness.state import Unknown

#: verdicts that need no action
FINE = frozenset({Verdict.PASS, Verdict.SKIPPED, Verdict.KNOWN})


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step: ``guest_seconds`` is the part of ``seconds`` that the guest and QEMU spent on the action itself.

    ``note`` explains the action's end if necessary (a refusal, a size), ``changes`` are the changes of the kernel's
    state, one per line, ``memory`` is the physical memory after it. ``bugs`` are the ids of known bugs that showed,
    ``unseen`` those named by the step that this kernel has but that did not show; ``stops``: no step can follow.
    ``look`` is full or fast, "" if nobody looked.
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
    look: str = ""

    @property
    def goes_on(self) -> bool:
        """True if further steps are possible."""
        return self.verdict in (Verdict.PASS, Verdict.KNOWN) and not self.stops


@dataclass(frozen=True, slots=True)
class RunResult:
    """One scenario on one guest. ``facts`` are JSON-able: kernel release, QEMU version, page size, argv, …

    ``bundle`` is the directory with everything needed to debug and replay the run, None if it was not kept.
    ``started`` is ISO 8601 in UTC. ``family`` is the scenario's; ``lacks`` the unmet requirement of a skipped run.
    ``unknown`` is the kernel's text that memhp did not know, each item once.
    ``bugs`` has the title of each known bug that showed, or was named and did not show, by id; ``left`` is how many
    steps were not done because of a known bug. A bug that showed in any step is ``unseen`` in none.
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

    def __post_init__(self) -> None:
        met = self.met
        left = (tuple(id for id in step.unseen if id not in met) for step in self.steps)
        steps = (dataclasses.replace(step, unseen=unseen) for step, unseen in zip(self.steps, left, strict=True))
        object.__setattr__(self, "steps", tuple(steps))

    @property
    def met(self) -> tuple[str, ...]:
        """The ids of the known bugs that showed."""
        return tuple(dict.fromkeys(id for step in self.steps for id in step.bugs))

    @property
    def unseen(self) -> tuple[str, ...]:
        """The ids of known bugs that this kernel has and that did not show in any step, though some name them."""
        return tuple(dict.fromkeys(id for step in self.steps for id in step.unseen))
