# SPDX-License-Identifier: GPL-2.0-or-later
"""Verdicts, descriptions of changes, and the JSON in a bundle."""

from __future__ import annotations

import dataclasses
import json

import model_guest
import pytest

from harness.check import CheckResult, ResizeReport, TouchReport, UnplugReport, Verdict
from harness.model.boot_layout import MachineShape
from harness.qemu.memdev import HotplugOutcome
from harness.qemu.qmp import QmpEvent
from harness.scenarios.changes import describe_changes
from harness.scenarios.outcome import Outcome
from harness.scenarios.record import CODEC
from harness.scenarios.verbs.plugging import unplug_endings
from harness.scenarios.verdict import Ruling, evaluate, judge, worst
from harness.state import IomemEntry, MemoryBlock
from harness.units import AddrRange

BROKEN = CheckResult("IOM-1", "fail")
FINE = CheckResult("IOM-1", "pass")


@pytest.mark.parametrize(
    ("checks", "expect", "ending", "verdict"),
    [
        ((FINE,), "done", "done", Verdict.PASS),
        ((FINE,), "refused", "refused", Verdict.PASS),
        ((FINE,), "qemu-refused", "qemu-refused", Verdict.PASS),
        ((FINE,), "done", "refused", Verdict.REFUSED),
        ((FINE,), "done", "qemu-refused", Verdict.REFUSED),
        ((FINE,), "refused", "done", Verdict.FAIL),
        ((FINE,), "qemu-refused", "done", Verdict.INFRA),
        ((FINE, BROKEN), "refused", "refused", Verdict.FAIL),
        ((BROKEN,), "done", "refused", Verdict.FAIL),
    ],
)
def test_judge(checks: tuple[CheckResult, ...], expect: str, ending: str, verdict: Verdict) -> None:
    assert judge(checks, expect, Outcome(ending=ending)).verdict is verdict


@pytest.mark.parametrize(
    ("note", "verdict"),
    [
        ("a used vhost backend has no free memory slots left", Verdict.PASS),
        ("not enough space, currently 0x8000000 in use of total space for memory devices 0x40000000", Verdict.PASS),
        ("cannot set up guest memory 'mem-d': Cannot allocate memory", Verdict.INFRA),
        ("failed to resize memfd to 1073741824: No space left on device; while it ran: dump 1 round", Verdict.INFRA),
    ],
)
def test_trouble_of_the_host_is_not_the_refusal_that_was_meant(note: str, verdict: Verdict) -> None:
    ruling = judge((), "qemu-refused", Outcome(ending="qemu-refused", note=note))
    assert ruling.verdict is verdict and note in ruling.note


def test_a_refusal_keeps_its_first_reason() -> None:
    outcome = Outcome()
    outcome.refuse("memory16: EBUSY")
    outcome.refuse("memory17: EBUSY")
    assert judge((), "done", outcome) == Ruling(Verdict.REFUSED, "memory16: EBUSY")


def test_the_worst_verdict_stands_for_all() -> None:
    assert worst([]) is Verdict.PASS
    assert worst([Verdict.PASS, Verdict.SKIPPED]) is Verdict.SKIPPED
    assert worst([Verdict.PASS, Verdict.KNOWN, Verdict.SKIPPED]) is Verdict.KNOWN
    assert worst([Verdict.REFUSED, Verdict.KNOWN]) is Verdict.REFUSED
    assert worst([Verdict.REFUSED, Verdict.INFRA, Verdict.FAIL, Verdict.PASS]) is Verdict.FAIL


def test_changes_are_told_in_the_kernels_terms() -> None:
    before = model_guest.boot_state()
    assert isinstance(before.iomem, tuple) and isinstance(before.blocks, tuple) and isinstance(before.meminfo, dict)
    new = AddrRange.sized(1 << 31, 256 << 20)
    after = dataclasses.replace(
        before,
        iomem=(*before.iomem, IomemEntry(new, "System RAM")),
        blocks=(*before.blocks, *(MemoryBlock(i, i, "online", True, ("Movable",), (0,)) for i in (16, 17))),
        meminfo={"MemTotal": before.meminfo["MemTotal"] + new.size},
    )
    told = ("iomem + 80000000-8fffffff : System RAM", "memory16-17 absent → online Movable", "MemTotal +256M")
    assert describe_changes(before, after) == told
    assert describe_changes(after, before)[0] == "iomem - 80000000-8fffffff : System RAM"
    assert describe_changes(before, before) == ()


def test_an_outcome_survives_json() -> None:
    outcome = Outcome(
        ending="refused",
        note="no",
        pending=True,
        unplugs=[UnplugReport("a", ("DEVICE_DELETED",), False)],
        resizes=[ResizeReport("v", 5, 4, "why")],
        touches=[TouchReport(3, 0, ((AddrRange(0, 4096), 7),))],
    )
    assert CODEC.load(json.loads(json.dumps(CODEC.dump(outcome))), Outcome) == outcome


def test_a_shape_survives_json() -> None:
    shape = model_guest.shape()
    assert CODEC.load(json.loads(json.dumps(CODEC.dump(shape))), MachineShape) == shape


def event(name: str, **data: str) -> QmpEvent:
    return QmpEvent(1, 0.0, 0.0, name, data)


@pytest.mark.parametrize(
    ("kind", "events", "endings"),
    [
        ("deleted", (event("ACPI_DEVICE_OST"), event("DEVICE_DELETED", device="d")), ("DEVICE_DELETED",)),
        (
            "deleted",
            (event("DEVICE_DELETED", path="/d/virtio-backend"), event("DEVICE_DELETED", device="d")),
            ("DEVICE_DELETED",),
        ),
        ("refused", (event("ACPI_DEVICE_OST"),), ("ACPI_OST_REFUSED",)),
        ("refused", (event("DEVICE_UNPLUG_GUEST_ERROR", device="d"),), ("DEVICE_UNPLUG_GUEST_ERROR",)),
        (
            "deleted",
            (event("MEM_UNPLUG_ERROR", device="d"), event("DEVICE_DELETED", device="d")),
            ("MEM_UNPLUG_ERROR", "DEVICE_DELETED"),
        ),
    ],
)
def test_endings_of_an_unplug(kind: str, events: tuple[QmpEvent, ...], endings: tuple[str, ...]) -> None:
    assert unplug_endings("d", HotplugOutcome("d", kind, events, "")) == endings  # type: ignore[arg-type]


def test_a_kernel_that_died_is_named_by_its_own_last_words() -> None:
    outcome = Outcome(note="the guest panicked", alarms=("Oops [#1]", "Kernel panic - not syncing: Fatal exception"))
    model, seen = model_guest.model(), model_guest.boot_state()
    ruling, [result] = evaluate(model, "unplug dimm0", "done", outcome, None, seen)
    assert ruling.verdict is Verdict.FAIL
    assert (result.invariant, result.status) == ("LOG-1", "fail")
    assert [finding.observed for finding in result.findings] == list(outcome.alarms)
    assert {finding.step for finding in result.findings} == {"unplug dimm0"}
    assert CODEC.load(CODEC.dump(outcome), Outcome) == outcome
