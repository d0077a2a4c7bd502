# SPDX-License-Identifier: GPL-2.0-or-later
"""A recheck of a bundle gives the verdict of its run, or none; never a better one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.check import CheckResult, Verdict
from harness.check.known import bare
from harness.errors import UsageError
from harness.scenarios.outcome import Outcome
from harness.scenarios.recheck import recheck
from harness.scenarios.record import CODEC, VERDICT
from harness.scenarios.verdict import Ruling

BUNDLES = Path(__file__).parent / "fixtures" / "bundles"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLES / "arm64-dimm", tmp_path / "bundle"))


def change(path: Path, **fields: object) -> dict[str, Any]:
    """Set ``fields`` of the JSON object in ``path``; return the old object."""
    value: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(value | fields))
    return value


def drop_snapshot(state: Path) -> None:
    """Leave only what a run saves for a step without a snapshot."""
    for path in state.iterdir():
        if path.name != "step.json":
            path.unlink()


def test_a_refusal_after_which_nobody_looked_is_a_refusal(bundle: Path) -> None:
    last = bundle / "states" / "005"
    drop_snapshot(last)
    outcome = change(last / "step.json")["outcome"]
    change(last / "step.json", expect="done", outcome=outcome | {"ending": "refused", "note": "memory16: EBUSY"})
    result = recheck(bundle)
    assert (result.verdict, result.steps[-1].note) == (Verdict.REFUSED, "memory16: EBUSY")


def test_a_run_whose_last_step_left_the_guest_working_proves_nothing(bundle: Path) -> None:
    last = bundle / "states" / "005"
    drop_snapshot(last)
    outcome = change(last / "step.json")["outcome"]
    change(last / "step.json", outcome=outcome | {"pending": True})
    result = recheck(bundle)
    assert (result.verdict, result.steps[-1].verdict) == (Verdict.INFRA, Verdict.PASS)
    assert result.reason == f"step 5 ({result.steps[-1].title}) left the guest working, and nobody looked after it"


def test_a_kernel_that_died_beside_text_that_nobody_can_parse_is_red(bundle: Path) -> None:
    last = bundle / "states" / "005"
    outcome = change(last / "step.json")["outcome"]
    change(last / "step.json", outcome=outcome | {"alarms": ["Oops [#1]"], "trace": ["Oops [#1]"]})
    (last / "iomem.txt").write_text("rubbish\n")
    result = recheck(bundle)
    assert result.verdict is Verdict.FAIL
    assert [check.invariant for check in result.steps[-1].checks] == ["LOG-1"]


STALL = "rcu: INFO: rcu_sched self-detected stall on CPU"
OOPS = "Internal error: Oops: 0000000096000004 [#1] SMP"


def host(waited: float) -> list[dict[str, Any]]:
    """What the host gave QEMU in the minute before STALL, as in step.json."""
    threads = [["main", 0.1, 0.0, 0.0], ["CPU 0", 60.0 - waited, waited, 0.0]]
    text = f"[   99.000000] {STALL}"
    return [{"text": text, "seconds": 60, "observed": 59.0, "threads": threads, "steal": 0.0}]


@pytest.mark.parametrize("step", ["000", "005"])
@pytest.mark.parametrize(
    ("waited", "more", "verdict", "status"),
    [
        (30.0, (), Verdict.INFRA, "not-observed"),
        (29.9, (), Verdict.FAIL, "fail"),
        (None, (), Verdict.FAIL, "fail"),
        (60.0, (OOPS,), Verdict.FAIL, "fail"),
    ],
    ids=["host", "kernel", "unmeasured", "more"],
)
def test_a_stall_is_the_hosts_if_it_starved_qemu(
    step: str, waited: float | None, more: tuple[str, ...], verdict: Verdict, status: str, bundle: Path
) -> None:
    lines = [f"[   99.000000] {text}" for text in (STALL, *more)]
    state = bundle / "states" / step
    (state / "console.json").write_text(json.dumps(lines))
    with (state / "dmesg.txt").open("a") as log:
        log.writelines(f"<3>{line}\n" for line in lines)
    if waited is not None and step == "000":
        (state / "host.json").write_text(json.dumps(host(waited)))
    elif waited is not None:
        change(state / "step.json", outcome=change(state / "step.json")["outcome"] | {"host": host(waited)})
    result = recheck(bundle)
    [found] = [check for check in result.steps[int(step)].checks if check.invariant == "LOG-1"]
    assert (result.verdict, found.status) == (verdict, status)
    # In the log and on the console; what the host caused is no finding, even beside others.
    wanted = {text for text in (STALL, *more) if status == "fail" and (text != STALL or not more)}
    assert {bare(finding.observed) for finding in found.findings} == wanted and len(found.findings) == 2 * len(wanted)
    if verdict is Verdict.INFRA:
        told = "QEMU's thread CPU 0 waited for a CPU of the host for 30.0 s of the 60 s before it"
        assert found.reason == f"the host, not the kernel: {STALL} ({told})"
        assert found.reason in result.steps[int(step)].note


@pytest.mark.parametrize(("waited", "verdict"), [(30.0, Verdict.INFRA), (29.9, Verdict.FAIL)])
def test_a_guest_that_was_lost_while_the_host_starved_it_gets_no_verdict(
    waited: float, verdict: Verdict, bundle: Path
) -> None:
    last = bundle / "states" / "005"
    drop_snapshot(last)
    alarm = f"[   99.000000] {STALL}"
    lost = {"alarms": [alarm], "trace": [alarm], "host": host(waited), "note": "the guest does not answer"}
    change(last / "step.json", outcome=change(last / "step.json")["outcome"] | lost)
    assert recheck(bundle).verdict is verdict


def test_steps_are_in_the_order_of_their_numbers(bundle: Path) -> None:
    for number in range(5, 0, -1):
        (bundle / "states" / f"{number:03d}").rename(bundle / "states" / str(number + 995))
    for number in range(1, 996):
        step = bundle / "states" / f"{number:03d}"
        step.mkdir()
        blank = {"title": "wait", "expect": "done", "actions": [], "outcome": CODEC.dump(Outcome(pending=True))}
        (step / "step.json").write_text(json.dumps(blank))
    result = recheck(bundle)
    assert [step.number for step in result.steps] == list(range(1001))
    assert result.verdict is Verdict.PASS, [step for step in result.steps if step.verdict is not Verdict.PASS]


@pytest.mark.parametrize(("lost", "said"), [("003", "lacks step 3"), ("005", "lacks step 5")])
def test_a_bundle_that_lost_a_step_proves_nothing(lost: str, said: str, bundle: Path) -> None:
    change(bundle / VERDICT, verdict="pass", reason="", steps=5)
    shutil.rmtree(bundle / "states" / lost)
    if lost == "003":
        # Later steps depend on this one.
        shutil.rmtree(bundle / "states" / "004")
        shutil.rmtree(bundle / "states" / "005")
    result = recheck(bundle)
    assert result.verdict is Verdict.INFRA and said in result.reason


def test_a_number_of_steps_that_nobody_can_count_to_is_no_bomb(bundle: Path) -> None:
    change(bundle / VERDICT, verdict="pass", reason="", steps=10**15)
    assert recheck(bundle).reason == "the bundle lacks step 6"


def test_a_run_without_a_verdict_gets_none_by_being_checked_again(bundle: Path) -> None:
    change(bundle / VERDICT, verdict="infra", reason="QEMU was killed by SIGKILL", steps=5)
    result = recheck(bundle)
    assert (result.verdict, result.reason) == (
        Verdict.INFRA,
        "the run itself had no verdict: QEMU was killed by SIGKILL",
    )


@pytest.mark.parametrize("verdict", ["fail", "refused", "known-bug"])
def test_what_a_run_found_and_its_bundle_does_not_show_is_no_pass(verdict: str, bundle: Path) -> None:
    change(bundle / VERDICT, verdict=verdict, reason="step 5 (unplug dimm0): IOM-1 broken", steps=5)
    result = recheck(bundle)
    assert (result.verdict, result.reason) == (
        Verdict.INFRA,
        f"the run itself ended as {verdict}, which its bundle does not show: step 5 (unplug dimm0): IOM-1 broken",
    )


def test_a_run_that_was_killed_before_its_last_step_proves_nothing(bundle: Path) -> None:
    change(bundle / "run.json", steps=5)
    assert recheck(bundle).verdict is Verdict.PASS
    change(bundle / "run.json", steps=7)
    result = recheck(bundle)
    assert (result.verdict, result.reason) == (Verdict.INFRA, "the run was cut off after step 5 of 7")
    change(bundle / "run.json", steps="7")
    with pytest.raises(UsageError, match=r"run\.json is damaged"):
        recheck(bundle)


@pytest.mark.parametrize("lost", ["machine.json", "facts", "states"])
def test_a_guest_that_never_came_up_leaves_no_verdict(lost: str, bundle: Path) -> None:
    change(bundle / VERDICT, verdict="infra", reason="no answer from the guest", steps=0)
    path = bundle / lost
    path.unlink() if path.is_file() else shutil.rmtree(path)
    result = recheck(bundle)
    assert (result.verdict, result.steps, result.scenario) == (Verdict.INFRA, (), "recorded-dimm")
    assert result.reason == "the run itself had no verdict: no answer from the guest"
    (bundle / VERDICT).unlink()
    with pytest.raises(UsageError, match=lost.partition(".")[0]):
        recheck(bundle)


def test_a_step_that_reboots_is_compared_with_the_rebooted_guest(bundle: Path) -> None:
    again, fresh = bundle / "states" / "006", bundle / "states" / "000"
    shutil.copytree(fresh, again)
    shutil.copytree(bundle / "facts", bundle / "boots" / "006" / "facts")
    shutil.copytree(fresh, bundle / "boots" / "006" / "state")
    step = {"title": "reboot", "expect": "done", "actions": [{"action": "Reboot"}], "outcome": CODEC.dump(Outcome())}
    (again / "step.json").write_text(json.dumps(step))
    meminfo = bundle / "states" / "005" / "meminfo.txt"
    meminfo.write_text(meminfo.read_text().replace("0 kB", "4 kB", 1))
    result = recheck(bundle)
    assert result.steps[5].verdict is Verdict.FAIL
    assert (result.steps[6].verdict, result.steps[6].changes) == (Verdict.PASS, ())


def test_a_run_that_was_skipped_is_skipped(bundle: Path) -> None:
    change(bundle / VERDICT, verdict="skipped", reason="no dax-state", steps=5)
    result = recheck(bundle)
    assert (result.verdict, result.reason) == (Verdict.SKIPPED, "no dax-state")


def test_a_run_that_was_skipped_after_a_known_bug_is_skipped(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(*arguments: Any) -> tuple[Ruling, tuple[CheckResult, ...]]:
        return Ruling(Verdict.KNOWN, "known bug"), ()

    monkeypatch.setattr("harness.scenarios.recheck.evaluate", evaluate)
    assert recheck(bundle).verdict is Verdict.KNOWN
    change(bundle / VERDICT, verdict="skipped", reason="no dax-state", steps=5)
    assert recheck(bundle).verdict is Verdict.SKIPPED


def test_what_a_run_without_a_verdict_had_found_stays_found(bundle: Path) -> None:
    change(bundle / VERDICT, verdict="infra", reason="QEMU was killed by SIGKILL", steps=5)
    iomem = bundle / "states" / "005" / "iomem.txt"
    iomem.write_text(iomem.read_text().replace("System RAM", "System RAN", 1))
    assert recheck(bundle).verdict is Verdict.FAIL


@pytest.mark.parametrize("text", ["[]", "{", '{"verdict": "good", "reason": ""}', '{"verdict": "pass"}'])
def test_a_damaged_verdict_is_named(text: str, bundle: Path) -> None:
    (bundle / VERDICT).write_text(text)
    with pytest.raises(UsageError, match=r"verdict\.json is damaged"):
        recheck(bundle)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda step: step.pop("outcome"), "KeyError: 'outcome'"),
        (lambda step: step["outcome"].pop("ending"), "KeyError: 'outcome.ending'"),
        (
            lambda step: step["outcome"].update(dumps=[["QEMU", 1]]),
            "outcome.dumps[0]: ['QEMU', 1] does not have 4 parts",
        ),
        (lambda step: step["actions"].append({"action": "Explode"}), "unknown action 'Explode'"),
    ],
)
def test_a_damaged_step_is_named_with_its_key(edit: Callable[[Any], object], message: str, bundle: Path) -> None:
    path = bundle / "states" / "002" / "step.json"
    step = json.loads(path.read_text())
    edit(step)
    path.write_text(json.dumps(step))
    with pytest.raises(UsageError) as caught:
        recheck(bundle)
    assert f"{path} is damaged: " in caught.value.message and message in caught.value.message
