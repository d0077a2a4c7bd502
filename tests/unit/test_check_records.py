# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's records in guest memory against the guest's own text, and alone where the text was not read."""

from __future__ import annotations

from dataclasses import replace

import model_guest
import pytest

from harness.check import CATALOGUE, CheckResult, Evidence, run_check
from harness.check.required import Demand, lacks_of
from harness.model.actions import SetAutoOnline
from harness.model.devices.dimm import PlugDimm
from harness.state import Garbled, GuestState, IomemEntry, KernelRecords, NotObserved
from harness.units import GIB, AddrRange

RAM = model_guest.boot_state().iomem
PLUGGED = AddrRange.sized(0x8000_0000, GIB)
UNREAD = NotObserved("not asked for")


def evidence(text: object, tree: object, baseline: GuestState | None = None) -> Evidence:
    model = model_guest.model()
    model.apply(SetAutoOnline("offline"))
    model.apply(PlugDimm("d0", GIB))
    layout = model.layout if baseline is None else replace(model.layout, baseline=baseline)
    observed = replace(layout.baseline, iomem=text, records=KernelRecords(iomem=tree))  # type: ignore[arg-type]
    return Evidence(layout, model.expected(), observed)


def result(id: str, seen: Evidence) -> CheckResult:
    found = run_check(CATALOGUE[id], seen)
    assert found is not None
    return found


def tree(*more: IomemEntry) -> tuple[IomemEntry, ...]:
    assert not isinstance(RAM, NotObserved)
    return (*RAM, *more)


SOUND = tree(IomemEntry(PLUGGED, "System RAM"))
RENAMED = tree(IomemEntry(PLUGGED, "System RAM (kmem)"))
NESTED = tree(IomemEntry(PLUGGED, "System RAM", (IomemEntry(PLUGGED, "Kernel code"),)))


def test_equal_witnesses_pass() -> None:
    seen = evidence(SOUND, SOUND)
    assert {id: result(id, seen).status for id in ("IOM-1", "IOM-2", "IOM-3", "XCK-2")} == dict.fromkeys(
        ("IOM-1", "IOM-2", "IOM-3", "XCK-2"), "pass"
    )


@pytest.mark.parametrize("other", [tree(), RENAMED, NESTED, (*SOUND, SOUND[-1])], ids=["gone", "name", "more", "twice"])
@pytest.mark.parametrize("turned", [False, True])
def test_each_difference_is_named(other: tuple[IomemEntry, ...], turned: bool) -> None:
    seen = result("XCK-2", evidence(SOUND, other) if turned else evidence(other, SOUND))
    assert seen.status == "fail"
    assert {finding.source for finding in seen.findings} == {"/proc/iomem against the resource tree in guest memory"}
    assert {finding.where for finding in seen.findings} == {str(PLUGGED)}


def test_a_line_that_no_kernel_prints_is_a_finding_of_the_tree() -> None:
    source = "the resource tree in guest memory"
    bad = Garbled(source, 3, "the resource at 0x1234 cannot be read", "not '<start>-<end> : <name>'")
    seen = evidence(SOUND, SOUND)
    found = result("XCK-2", replace(seen, observed=replace(seen.observed, garbled=(bad,))))
    assert [finding.where for finding in found.findings] == [f"{source}:3"]


def test_the_tree_alone_is_judged_where_the_text_was_not_read() -> None:
    assert [result(id, evidence(UNREAD, SOUND)).status for id in ("IOM-1", "IOM-2", "IOM-3")] == ["pass"] * 3
    assert result("XCK-2", evidence(UNREAD, SOUND)).reason == "not asked for"
    assert result("IOM-1", evidence(UNREAD, tree())).status == "fail"
    assert result("IOM-1", evidence(UNREAD, UNREAD)).status == "not-observed"
    assert result("IOM-1", evidence(tree(), SOUND)).status == "fail", "the text is judged if there is one"


def test_a_kernel_without_layouts_is_told_and_does_without() -> None:
    lack = NotObserved("the kernel's image has no BTF, and there is no layouts.btf beside it")
    baseline = replace(model_guest.boot_state(), records=KernelRecords(iomem=lack))
    seen = evidence(SOUND, lack, baseline)
    check = result("XCK-2", seen)
    assert (check.status, check.reason) == ("not-observed", lack.reason)
    assert lacks_of(seen.layout)["XCK-2"] == lack.reason
    assert Demand().unmet([check], seen.layout, seen.observed) == ()
    assert Demand(frozenset({"XCK-2"})).unmet([check], seen.layout, seen.observed) == (f"XCK-2 ({lack.reason})",)
    able = evidence(SOUND, SOUND)
    assert "XCK-2" not in lacks_of(able.layout)
    assert Demand().unmet([check], able.layout, able.observed) == (f"XCK-2 ({lack.reason})",)
