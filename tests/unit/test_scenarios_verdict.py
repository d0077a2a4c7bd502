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
from harness.scenarios.outcome import Outcome, Rejection
from harness.scenarios.record import CODEC
from harness.scenarios.verbs.plugging import unplug_endings
from harness.scenarios.verdict import Ruling, evaluate, evidence_of, judge, worst
from harness.state import DmesgLine, IomemEntry, MemoryBlock, NotObserved
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


def refused(ending: str, says: tuple[str, ...], *said: str) -> Outcome:
    outcome = Outcome(says=says)
    for text in said:
        outcome.refuse(text, ending)
    return outcome


@pytest.mark.parametrize(
    ("ending", "says", "said", "verdict"),
    [
        ("qemu-refused", ("usable range",), ["can't add [0x1:0x2], usable range for memory devices"], Verdict.PASS),
        ("qemu-refused", ("usable range", "conflicts"), ["address range conflicts with memory device"], Verdict.PASS),
        ("qemu-refused", ("usable range",), ["cannot set up guest memory: Cannot allocate memory"], Verdict.INFRA),
        ("qemu-refused", ("usable range",), ["Property 'pc-dimm.sise' not found"], Verdict.INFRA),
        ("refused", ("EBUSY",), ["memory8 did not go offline: EBUSY"], Verdict.PASS),
        ("refused", ("EBUSY",), ["memory8 did not go offline: ENOMEM"], Verdict.FAIL),
        # every refusal of the step is judged, not just the first
        ("refused", ("EPERM",), ["memory8 did not go offline: EPERM", "memory9 …: EINVAL"], Verdict.FAIL),
        ("refused", ("EPERM", "EINVAL"), ["memory8 …: EPERM", "memory9 …: EINVAL"], Verdict.PASS),
        ("failed", ("ENOMEM",), ["memory8 did not go online_movable: EAGAIN"], Verdict.FAIL),
        # older bundles do not say which one was meant
        ("failed", (), ["memory8 did not go online_movable: EAGAIN"], Verdict.PASS),
    ],
)
def test_a_refusal_must_be_the_one_that_was_meant(
    ending: str, says: tuple[str, ...], said: list[str], verdict: Verdict
) -> None:
    ruling = judge((FINE,), ending, refused(ending, says, *said))
    assert ruling.verdict is verdict
    assert verdict is Verdict.PASS or f"not as meant ({says[0]}): {said[-1]}" in ruling.note


def test_a_refusal_may_be_explained_by_the_kernels_log() -> None:
    outcome = Outcome(says=("unaligned hotplug range",))
    outcome.refuse("_OST status 0", "failed", said="")
    state = model_guest.boot_state()
    said = DmesgLine(1.0, 3, "Block size [0x8000000] unaligned hotplug range: start 0x80000000, size 0x8200000", None)

    def told(dmesg: tuple[DmesgLine, ...] | NotObserved, lost: str = "") -> Ruling:
        seen = dataclasses.replace(state, dmesg=dmesg, dmesg_lost=lost)
        return judge((), "failed", outcome, None, evidence_of(model_guest.model(), outcome, seen))

    assert told((said,)).verdict is Verdict.PASS
    assert told(()) == Ruling(
        Verdict.FAIL, "the guest failed, but not as meant (unaligned hotplug range): its log has nothing of it"
    )
    assert told(NotObserved("no PRINTK")).verdict is Verdict.INFRA
    lost = "older lines of the log were overwritten"
    assert told((said,), lost).verdict is Verdict.PASS
    assert told((), lost) == Ruling(
        Verdict.INFRA, f"the guest failed, but not as meant (unaligned hotplug range): {lost}"
    )


def test_an_older_bundle_has_what_was_said_alone() -> None:
    outcome = CODEC.load(CODEC.dump(Outcome()) | {"refusals": ["no", ["", 0, 4096]]}, Outcome)
    assert outcome.refusals == [Rejection("no"), Rejection("", AddrRange(0, 4096))]


UNALIGNED = "Block size [0x8000000] unaligned hotplug range: start {}, size 0x4200000"
BEYOND = "Hotplug memory [{}-0x4fffffffff] exceeds maximum addressable range [0x0-0x3fffffffff]"
NO_MEMORY = "kworker/0:1: page allocation failure: order:0"
SPLITS = "[48000000 50000000] splits a leaf entry in linear map"
FIRST, SECOND = AddrRange.sized(0x140000000, 0x4200000), AddrRange.sized(0x150000000, 0x4200000)
EIGHT, NINE = AddrRange.sized(8 << 27, 1 << 27), AddrRange.sized(9 << 27, 1 << 27)


@pytest.mark.parametrize(
    ("refusals", "log", "other"),
    [
        ([("", FIRST)], [(3, UNALIGNED.format("0x140000000"))], None),
        ([("", FIRST)], [(3, UNALIGNED.format("0x150000000"))], ""),
        ([("", FIRST), ("", SECOND)], [(3, UNALIGNED.format("0x140000000"))], ""),
        ([("", FIRST), ("", SECOND)], [(3, UNALIGNED.format(hex(one.start))) for one in (FIRST, SECOND)], None),
        ([("", FIRST)], [(3, UNALIGNED.format("0x140000000")), (4, BEYOND.format("0x4000000000"))], "Hotplug memory"),
        ([("", FIRST)], [(3, UNALIGNED.format("0x140000000")), (6, BEYOND.format("0x4000000000"))], None),
        ([("", FIRST)], [(3, UNALIGNED.format("0x140000000")), (4, BEYOND.format("0x140000000"))], None),
        ([("", None)], [(3, UNALIGNED.format("0x140000000"))], None),
        ([("", FIRST)], [(4, NO_MEMORY)], None),
        ([("memory8 …: ENOMEM", EIGHT), ("memory9 …: ENOMEM", NINE)], [(4, NO_MEMORY)], None),
        ([("memory8 …: ENOMEM", EIGHT), ("memory9 …: EBUSY", NINE)], [(4, NO_MEMORY)], "memory8 …: ENOMEM"),
        ([("memory8 …: EPERM", EIGHT), ("memory9 …: EPERM", NINE)], [(4, SPLITS)], "memory8 …: EPERM"),
        ([("memory9 …: EPERM", NINE)], [(4, SPLITS)], None),
    ],
    ids=[
        *("its own line", "a line about another", "one of two", "both", "a warning about another", "told in passing"),
        *("two lines", "an older bundle", "no place", "the same twice", "another one", "another block", "its block"),
    ],
)
def test_a_line_of_the_log_explains_only_the_refusal_that_it_is_about(
    refusals: list[tuple[str, AddrRange | None]], log: list[tuple[int, str]], other: str | None
) -> None:
    outcome = Outcome(says=("unaligned hotplug range", "page allocation failure", "splits a leaf"))
    for said, place in refusals:
        outcome.refuse("refused", said=said, place=place)
    told = tuple(DmesgLine(1.0, level, text) for level, text in log)
    seen = dataclasses.replace(model_guest.boot_state(), dmesg=told)
    ruling = judge((), "refused", outcome, None, evidence_of(model_guest.model(), outcome, seen))
    assert ruling.verdict is (Verdict.PASS if other is None else Verdict.FAIL)
    assert other is None or (other or "its log has nothing of it") in ruling.note


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
        refusals=[Rejection("no"), Rejection("", AddrRange(0, 4096))],
        says=("no",),
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
