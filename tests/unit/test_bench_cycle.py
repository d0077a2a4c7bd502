# SPDX-License-Identifier: GPL-2.0-or-later
"""The share of a cycle's time that the guest takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.bench import cycle as module
from harness.bench.cycle import Cycle, Stopwatch, require_pass, union
from harness.bench.speed import resolve_able
from harness.check import CheckResult, Verdict
from harness.config.guest import GuestSpec
from harness.deadline import Deadline
from harness.errors import InfraError, UnsupportedError
from harness.progress import SilentProgress
from harness.scenarios.result import StepResult
from harness.scenarios.verbs.virtio_mem import ResizeVerb


def step(verdict: Verdict = Verdict.PASS, guest: float = 0.0, **more: Any) -> StepResult:
    return StepResult(1, "resize", verdict, 9.0, guest, **({"checks": ()} | more))


@pytest.mark.parametrize(
    ("spans", "seconds"),
    [
        ([], 0.0),
        ([(1, 2)], 1.0),
        ([(1, 3), (2, 4)], 3.0),
        ([(5, 6), (1, 2), (1.5, 1.75)], 2.0),
        ([(1, 9), (2, 3)], 8.0),
    ],
)
def test_spans_that_overlap_count_once(spans: list[tuple[float, float]], seconds: float) -> None:
    assert union(spans) == seconds


def test_the_guests_share_is_the_order_and_what_ran_in_it_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    watch = Stopwatch(cast(Any, SimpleNamespace(run=lambda *args, **words: now.__setitem__(0, now[0] + 0.5))))

    class Session:
        def act(self, title: str, work: object) -> StepResult:
            # 2 s in the guest, including a command of 0.5 s; 0.25 s in memhp; 0.5 s of collecting; 0.125 s in memhp.
            watch.run("x", deadline=Deadline(1))
            now[0] += 1.5
            now[0] += 0.25
            watch.run("collect", deadline=Deadline(1))
            now[0] += 0.125
            return step(guest=2.0)

    made = Cycle(cast(Any, Session()), watch, (ResizeVerb("vmem0", 0), ResizeVerb("vmem0", 0)))
    made.once(counts=False)
    made.once()
    assert (made.wall, made.guest) == ([5.75], [5.0])


def test_what_does_not_pass_is_not_timed() -> None:
    require_pass(step())
    with pytest.raises(InfraError, match="a timed step failed: resize: no room"):
        require_pass(step(Verdict.REFUSED, note="no room"))
    broken = CheckResult("IOM-2", "fail", ())
    with pytest.raises(InfraError, match="resize: IOM-2 broken"):
        require_pass(step(Verdict.FAIL, checks=(broken,)))


def test_what_a_kernel_cannot_do_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(spec: GuestSpec, needs: tuple[str, ...], progress: object) -> str:
        if "acpi-dimm" in needs:
            raise UnsupportedError("acpi-dimm", "no ACPI_HOTPLUG_MEMORY")
        return "parts"

    monkeypatch.setattr("harness.bench.speed.resolve", resolve)
    found = resolve_able(GuestSpec.default("arm64"), SilentProgress())
    assert found == ("parts", ["virtio-mem"], ["not measured: no ACPI_HOTPLUG_MEMORY"])
