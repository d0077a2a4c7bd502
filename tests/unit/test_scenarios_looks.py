# SPDX-License-Identifier: GPL-2.0-or-later
"""Fast looks: what they leave out, when a full look follows, and that verdicts mean the same."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import model_guest
import pytest

from harness.check import CheckResult, Verdict
from harness.check.required import Demand
from harness.cli import main
from harness.collect.looks import WITNESSES, witnessed
from harness.collect.snapshot_folder import load_state
from harness.config.guest import GuestSpec
from harness.deadline import Deadline
from harness.errors import GuestError, InfraError, UsageError
from harness.guest.waits import GuestWait
from harness.progress import SilentProgress
from harness.scenarios.boot import Resolver
from harness.scenarios.file import SNAPSHOT
from harness.scenarios.outcome import Outcome
from harness.scenarios.recheck import recheck
from harness.scenarios.record import demand_to_json, load_run
from harness.scenarios.reporter import SilentReporter
from harness.scenarios.result import StepResult
from harness.scenarios.run_options import RunOptions
from harness.scenarios.runner import _Run
from harness.scenarios.session import Session
from harness.scenarios.verdict import Ruling
from harness.state import LEFT_OUT, GuestState, KernelRecords, NotObserved

BUNDLES = Path(__file__).parent / "fixtures" / "bundles"
#: a run with full looks, and one with fast looks
RECORDED, FAST = BUNDLES / "arm64-ends", BUNDLES / "arm64-fast"
LAST = 10
#: what compares the text that fast looks leave out
LEFT = {"XCK-1", "XCK-2", "XCK-3", "XCK-4", "XCK-5"}
#: what the first look after a step follows
WAITS = (GuestWait(("true", b""), lambda done: None),)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """All steps but the last have a fast look."""
    copy = Path(shutil.copytree(RECORDED, tmp_path / "bundle"))
    for number in range(1, LAST):
        hasten(copy / "states" / f"{number:03d}")
    return copy


def hasten(state: Path, left_out: Iterable[str] = WITNESSES) -> None:
    """Make a fast look of a full one."""
    for name in left_out:
        (state / f"{name}.txt").unlink()
        with (state / "absent.txt").open("a") as absent:
            absent.write(f"{name} {LEFT_OUT}\n")


def unseen(step: StepResult) -> dict[str, str]:
    """What was not observed, and why."""
    return {check.invariant: check.reason for check in step.checks if check.status == "not-observed"}


def test_a_recorded_run_with_fast_looks_has_its_verdict_again(capsys: pytest.CaptureFixture[str]) -> None:
    result = recheck(FAST)
    assert result.verdict is Verdict.PASS and load_run(FAST).steps[0].state is not None
    assert [step.look for step in result.steps] == ["full", "fast", "fast", "full", "fast", "full"]
    assert "(refused)" in result.steps[3].title
    for step in result.steps:
        assert unseen(step) == (dict.fromkeys(LEFT, LEFT_OUT) if step.look == "fast" else {})
    for number, change in (
        (1, "iomem + 80000000"),
        (1, "linear + "),
        (2, "memory16-17 offline → online"),
        (5, "linear - "),
    ):
        assert any(told.startswith(change) for told in result.steps[number].changes), change
    assert main(["check", str(FAST)]) == 0
    assert LEFT_OUT in capsys.readouterr().out


def test_fast_looks_come_to_the_verdicts_of_full_ones(bundle: Path) -> None:
    full, fast = recheck(RECORDED), recheck(bundle)
    assert [step.look for step in full.steps] == ["full"] * (LAST + 1)
    assert [step.look for step in fast.steps] == ["full", *["fast"] * (LAST - 1), "full"]
    assert fast.verdict is full.verdict is Verdict.PASS, (full.reason, fast.reason)
    for slow, quick in zip(full.steps, fast.steps, strict=True):
        assert (slow.verdict, slow.note, slow.changes) == (quick.verdict, quick.note, quick.changes)
        assert unseen(quick) == (dict.fromkeys(LEFT, LEFT_OUT) if quick.look == "fast" else {})
        assert [one.status for one in slow.checks if one.invariant not in LEFT] == [
            one.status for one in quick.checks if one.invariant not in LEFT
        ]
    assert any(change.startswith("vmemmap + ") for change in fast.steps[2].changes)


def test_what_is_required_must_be_observed_at_the_full_looks(bundle: Path) -> None:
    path = bundle / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | demand_to_json(Demand(frozenset({"XCK-1"})))))
    assert recheck(bundle).verdict is Verdict.PASS
    (bundle / "states" / f"{LAST:03d}" / "ptdump.txt").unlink()
    result = recheck(bundle)
    assert result.verdict is Verdict.INFRA and "XCK-1 (not in this snapshot)" in result.steps[-1].note


def test_a_run_that_ends_with_a_fast_look_proves_nothing(bundle: Path) -> None:
    hasten(bundle / "states" / f"{LAST:03d}")
    result = recheck(bundle)
    assert (result.verdict, result.reason) == (Verdict.INFRA, f"the look after step {LAST}, the last one, was fast")


@pytest.mark.parametrize(
    ("witness", "missed"),
    [
        ("host_tables", {"LIN-1", "LIN-2", "LIN-3", "VMM-1", "PGT-1", "PGT-2", "MEM-2"}),
        ("host_iomem", {"IOM-1", "IOM-2", "IOM-3"}),
        ("host_blocks", {"BLK-1", "BLK-2"}),
        ("host_zoneinfo", {"ZON-1"}),
        ("host_vmstat", {"MEM-2"}),
    ],
)
def test_nothing_is_left_out_that_nobody_saw(witness: str, missed: set[str], tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(FAST, tmp_path / "bundle"))
    (bundle / "states" / "002" / f"{witness}.txt").unlink()
    step = recheck(bundle).steps[2]
    assert step.verdict is Verdict.INFRA and unseen(step).keys() == missed | LEFT
    for invariant in missed:
        assert re.search(rf"{invariant} \(({re.escape(LEFT_OUT)}; )?not in this snapshot\)", step.note), step.note


def test_a_boot_that_was_not_seen_in_full_is_a_boot_that_nobody_saw(bundle: Path) -> None:
    hasten(bundle / "states" / "000", ["ptdump"])
    assert recheck(bundle).verdict is Verdict.INFRA
    hasten(bundle / "states" / "000", [name for name in WITNESSES if name != "ptdump"])
    with pytest.raises(UsageError, match="the model needs the zones of the freshly booted guest"):
        recheck(bundle)


def test_only_text_with_a_witness_is_left_out_and_what_no_step_needs() -> None:
    run = load_run(RECORDED)
    assert witnessed(run.boot) == tuple(WITNESSES)
    blind = dataclasses.replace(run.boot, records=KernelRecords())
    assert witnessed(blind) == ("ptdump", "slabinfo")
    assert witnessed(dataclasses.replace(blind, host_tables=NotObserved("x"))) == ("slabinfo",)
    seen = dataclasses.replace(run.boot, records=KernelRecords(iomem=run.boot.iomem))
    assert witnessed(seen) == ("ptdump", "iomem", "slabinfo")
    # What the kernel does not have need not be left out.
    assert witnessed(dataclasses.replace(run.boot, raw={})) == ()


def test_the_hosts_tree_stands_for_the_text_that_a_fast_look_left_out(bundle: Path) -> None:
    drop_ram(bundle / "states" / "003" / "host_iomem.txt")
    assert {"IOM-1", "IOM-2"} <= broken(recheck(bundle).steps[3])


def drop_ram(path: Path) -> None:
    """Lose all System RAM of the text or tree."""
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "System RAM" not in line))


def completed(bundle: Path) -> tuple[Path, Path]:
    """Step 3 has a full look and the fast one just before it."""
    state = bundle / "states" / "003"
    shutil.rmtree(state)
    shutil.copytree(RECORDED / "states" / "003", state)
    shutil.copytree(RECORDED / "states" / "003", state / "fast")
    (state / "fast" / "step.json").unlink()
    hasten(state / "fast")
    return state / "fast", state


def broken(step: StepResult) -> set[str]:
    return {check.invariant for check in step.checks if check.status == "fail"}


def test_what_a_fast_look_found_stays_found(bundle: Path) -> None:
    fast, _ = completed(bundle)
    with (fast / "dmesg.txt").open("a") as log:
        log.write("<4>[   99.000000] WARNING: CPU: 0 PID: 1 at mm/memory_hotplug.c:1 f+0x0/0x10\n")
    drop_ram(fast / "host_iomem.txt")
    step = recheck(bundle).steps[3]
    assert step.verdict is Verdict.FAIL and {"LOG-1", "IOM-1"} <= broken(step) and step.look == "full"
    assert "the full look just after it did not show it any more: IOM-1" in step.note and "LOG-1" not in step.note


def test_a_full_look_completes_a_fast_one(bundle: Path) -> None:
    fast, full = completed(bundle)
    for path in (fast / "host_iomem.txt", full / "host_iomem.txt", full / "iomem.txt"):
        drop_ram(path)
    (full / "auto_online.txt").write_text("offline\n")
    step = recheck(bundle).steps[3]
    assert {"IOM-1", "BLK-2"} <= broken(step) and "did not show" not in step.note
    # Each finding once.
    alone = Path(shutil.copytree(bundle, bundle.parent / "alone"))
    shutil.rmtree(alone / "states" / "003" / "fast")
    assert recheck(alone).steps[3].checks == step.checks


Looks = Callable[..., tuple[list[bool], list[object], Any]]


@pytest.fixture
def looks() -> Looks:
    """Looks that end as told: which of them left something out, what was saved in which order, and the result."""

    def run(*verdicts: Verdict | InfraError, left_out: tuple[str, ...] = ("ptdump",)) -> Any:
        taken: list[bool] = []
        saved: list[object] = []
        ends = list(verdicts)
        state = model_guest.boot_state()

        def collect(_: Deadline, __: Path, before: GuestState, left_out: tuple[str, ...], waits: Any) -> GuestState:
            assert waits == (() if taken else WAITS)
            taken.append(bool(left_out))
            if isinstance(ends[0], InfraError):
                raise ends[0]
            return dataclasses.replace(state, left_out=left_out)

        def judge(*_: object) -> tuple[Ruling, tuple[CheckResult, ...]]:
            verdict = ends.pop(0) if len(ends) > 1 or not isinstance(ends[0], InfraError) else Verdict.FAIL
            assert isinstance(verdict, Verdict)
            return Ruling(verdict, ""), ()

        def save(number: int, title: str, expect: str, outcome: Outcome, state: Any, bugs: Any, first: Any) -> None:
            saved.append((state.left_out != (), first is not None))

        session: Any = Session.__new__(Session)
        session.number, session.recorder = 1, SimpleNamespace(step_dir=lambda number: Path(), save_step=save)
        session._collect, session._judge, session._host_times = collect, judge, lambda *_: ()
        session._last_look = lambda error: saved.append(error)
        outcome = Outcome()
        after, (ruling, _) = session._look_after("step", "done", outcome, state, (), left_out, WAITS, Deadline(60))
        return taken, saved, (ruling.verdict, bool(after.left_out), outcome.note)

    return run


def test_a_fast_look_that_passes_is_the_only_one(looks: Looks) -> None:
    assert looks(Verdict.PASS) == ([True], [(True, False)], (Verdict.PASS, True, ""))


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.KNOWN, Verdict.INFRA, Verdict.REFUSED])
def test_any_other_fast_look_is_completed_at_once(verdict: Verdict, looks: Looks) -> None:
    assert looks(verdict, Verdict.FAIL) == ([True, False], [(True, False), (False, True)], (Verdict.FAIL, False, ""))


def test_a_full_look_is_taken_once(looks: Looks) -> None:
    assert looks(Verdict.FAIL, left_out=()) == ([False], [(False, False)], (Verdict.FAIL, False, ""))


def test_a_guest_that_dies_before_the_full_look_takes_no_finding_with_it(looks: Looks) -> None:
    died = GuestError("lost the guest")
    taken, saved, (verdict, fast, note) = looks(Verdict.FAIL, died)
    # The last look comes after the step was saved, which replaces its folder.
    assert (taken, saved) == ([True, False], [(True, False), (True, False), died])
    assert (verdict, fast) == (Verdict.FAIL, True)
    assert note == "no full look was possible: lost the guest"
    with pytest.raises(GuestError, match="lost the guest"):
        looks(Verdict.INFRA, died)


def test_the_last_look_of_a_run_is_full_and_what_fast_ones_leave_out_is_told() -> None:
    options = RunOptions(look="fast")
    run = _Run(SNAPSHOT, GuestSpec.default("arm64"), options, SilentReporter(), Resolver(SilentProgress()), None)
    run.total = 3
    session: Any = SimpleNamespace(number=0, left_out=("ptdump",))
    assert run._look_after(session) == "fast"
    session.number = 2
    assert run._look_after(session) == "full"
    told = "fast looks leave out ptdump (instead: the page tables, walked by the host)"
    assert run._told_look(session) == told
    assert run.facts == {"look": "fast", "left_out": {"ptdump": "instead: the page tables, walked by the host"}}
    session.left_out = ()
    assert run._told_look(session) == "fast looks leave out nothing"
    run.options = RunOptions()
    assert run._told_look(session) == "" and run.facts["look"] == "full"


def test_a_run_that_does_not_end_with_a_full_look_has_no_verdict() -> None:
    seen = (CheckResult("IOM-1", "pass"),)
    run = _Run(SNAPSHOT, GuestSpec.default("arm64"), RunOptions(), SilentReporter(), Resolver(SilentProgress()), None)
    run.steps = [StepResult(0, "boot", Verdict.PASS, 0, 0, seen, look="full")]
    assert run._judged().verdict is Verdict.PASS
    run.steps.append(StepResult(1, "check", Verdict.PASS, 0, 0, seen, look="fast"))
    assert run._judged().reason == "the look after step 1, the last one, was fast"
    run.steps.append(StepResult(2, "resize", Verdict.PASS, 0, 0, ()))
    assert run._judged().reason == "step 2 (resize) left the guest working, and nobody looked after it"
    run.steps[2] = StepResult(2, "resize", Verdict.KNOWN, 0, 0, ())
    assert run._judged().verdict is Verdict.KNOWN


def test_what_was_left_out_is_in_the_snapshot(bundle: Path) -> None:
    run = load_run(bundle)
    state = load_state(bundle / "states" / "001", run.facts)
    assert (state.left_out, state.page_tables) == (tuple(WITNESSES), NotObserved(LEFT_OUT)) and run.boot.left_out == ()
    assert json.loads((bundle / "run.json").read_text())["format"] == 1
