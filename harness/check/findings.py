# SPDX-License-Identifier: GPL-2.0-or-later
"""Verdicts, findings, results of checks."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Verdict(enum.Enum):
    """How a step or a run ended. Only PASS is good; the others differ in who has to act.

    FAIL: the kernel under test broke an invariant. KNOWN: all findings match known bugs exactly. REFUSED: the guest
    refused what the scenario needed.
    SKIPPED: a requirement is not met. INFRA: the harness or its environment failed, the kernel got no verdict.
    """

    PASS = "pass"
    KNOWN = "known-bug"
    FAIL = "fail"
    REFUSED = "refused"
    SKIPPED = "skipped"
    INFRA = "infra"


#: expected outcomes of a step: done, refused by the guest, failed in the guest, refused by QEMU
EXPECTATIONS = ("done", "refused", "failed", "qemu-refused")


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken invariant: ``where`` is an address range, block, zone or file; ``source`` is the observer."""

    invariant: str
    where: str
    expected: str
    observed: str
    source: str
    step: str = ""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One invariant at one step: ``status`` is pass, fail or not-observed (with ``reason``, never a pass).

    ``note`` qualifies a pass or a failure: which of several sources was used, and why the others were not. It is empty
    if all of them were.
    """

    invariant: str
    status: str
    findings: tuple[Finding, ...] = ()
    reason: str = ""
    note: str = ""
