# SPDX-License-Identifier: GPL-2.0-or-later
"""How steps and runs ended, as values that every report is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.check import CheckResult, Verdict
from harness.scenarios.memorymap import MemoryMap
from harness.state import Unknown

#: verdicts that ask nobody to do anything
FINE = frozenset({Verdict.PASS, Verdict.SKIPPED})


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step: ``guest_seconds`` is the part of ``seconds`` in which the guest and QEMU worked on the action itself.

    ``note`` says how the action ended where that needs words (a refusal, a size), ``changes`` what it changed in the
    kernel's state, a line each, ``memory`` the physical memory after it.
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


@dataclass(frozen=True, slots=True)
class RunResult:
    """One scenario on one guest. ``facts`` are JSON-able: kernel release, QEMU version, page size, argv, …

    ``bundle`` is the directory with everything needed to debug and replay the run, None where nothing was kept.
    ``started`` is ISO 8601 in UTC. ``family`` is the scenario's; ``lacks`` the ability without which it was skipped.
    ``unknown`` is what of the kernel's text memhp did not know, each thing once.
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
