# SPDX-License-Identifier: GPL-2.0-or-later
"""What is timed: the kernel alone, the parts of a verified step, and the yardstick of looks."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.bench import cycle as module
from harness.bench import kernel_time
from harness.bench import yardstick as yardstick_module
from harness.bench.cycle import Cycle, Operation, fresh_ids, require_pass
from harness.bench.speed import resolve_able
from harness.bench.yardstick import Yardstick
from harness.check import CheckResult, Verdict
from harness.config.guest import GuestSpec
from harness.deadline import Deadline
from harness.errors import InfraError, UnsupportedError
from harness.guest.memory_blocks import BlockOutcome
from harness.guest.ssh import CommandResult
from harness.progress import SilentProgress
from harness.qemu.memdev import HotplugOutcome
from harness.qemu.qmp import QmpEvent
from harness.scenarios.result import StepResult
from harness.scenarios.verbs.virtio_mem import ResizeVerb
from harness.units import MIB, AddrRange

#: SHA-256 of guest-scripts/collect of commit bcfe9e6
SCRIPT = "e61c58e9afbe7b48aceeb914014b0de0341c66561850a42a0f610ace984a3994"


def step(verdict: Verdict = Verdict.PASS, guest: float = 0.0, **more: Any) -> StepResult:
    return StepResult(1, "resize", verdict, 9.0, guest, **({"checks": ()} | more))


class Timed:
    """A session whose steps take as long as told, by a clock of its own, and what does them alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.state: Any = SimpleNamespace(raw={})
        self.model = None
        self.guest: Any = SimpleNamespace(facts=None)
        self.left_out = ("ptdump", "iomem")
        self.done: list[tuple[str, str]] = []
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(module, "time", clock)
        monkeypatch.setattr(module, "parse_state", lambda *_: self._pass(0.001))
        monkeypatch.setattr(module, "evaluate", lambda *_: self._pass(0.002))

    def _pass(self, seconds: float) -> None:
        self.now += seconds

    def deadline(self) -> Deadline:
        return Deadline(60)

    def look(self, left_out: tuple[str, ...]) -> None:
        assert left_out == self.left_out
        self.done.append(("look", ""))

    def act(self, title: str, work: Any, look: str) -> StepResult:
        self.done.append((look, work.__self__.id))
        self.now += 0.1 if look == "fast" else 0.5
        return step(guest=0.06)

    def alone(self, guest: object, device: str, deadline: Deadline) -> float:
        self.done.append(("alone", device))
        return 0.05


def test_the_parts_of_a_step_are_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed(monkeypatch)
    grow = Operation("grow", "resize to 256M", lambda id: ResizeVerb(id, 1), timed.alone)
    made = Cycle(cast(Any, timed), [grow], fresh_ids("v"))
    made.once(0, counts=False)
    assert made.times == {}
    made.once(0)
    made.once(1)
    alternately = ["alone", "fast", "full"] * 2 + ["alone", "full", "fast"]
    assert [done for done in timed.done if done[0] != "look"] == [
        (name, f"v{number}") for number, name in enumerate(alternately)
    ]
    # Whatever is timed finds a guest that has just been looked at.
    assert [name for name, _ in timed.done[:4]] == ["look", "alone", "look", "fast"]
    assert timed.done.count(("look", "")) == 6
    found = {figure.name: round(figure.spread.median, 6) for figure in made.figures()}
    assert found == {
        "grow_kernel": 0.05,
        "grow_fast": 0.1,
        "grow_fast_overhead": 0.01,
        "grow_fast_look": 0.037,
        "grow_fast_parse": 0.001,
        "grow_fast_check": 0.002,
        "grow_full": 0.5,
        "grow_full_overhead": 0.01,
        "grow_full_look": 0.437,
        "grow_full_parse": 0.001,
        "grow_full_check": 0.002,
        "rate_fast": 10.0,
        "rate_full": 2.0,
    }
    [target] = made.targets()
    assert (target.name, target.met, round(target.measured or 0, 6)) == ("step_grow", True, 0.8)
    assert all(len(figure.spread.values) == 2 for figure in made.figures())


class Asked:
    """QEMU's answers, in order, and the events that follow a command."""

    def __init__(self, sizes: list[int], status: int = 0) -> None:
        self.sizes, self.status, self.seq = sizes, status, 0
        self.commands: list[str] = []

    def execute(self, command: str, arguments: object = None, *, deadline: Deadline) -> Any:
        self.commands.append(command)
        return None

    def wait_event(self, accept: Any, **words: Any) -> QmpEvent:
        events = [
            QmpEvent(number, 0.0, time.time() + 0.25, "ACPI_DEVICE_OST", {"info": {"status": status}})
            for number, status in enumerate((0x80, self.status))
        ]
        return next(event for event in events if accept(event))


def guest_of(qmp: Asked) -> Any:
    return SimpleNamespace(machine=SimpleNamespace(qmp=qmp, add_backend=lambda *_: None), shell=None)


def test_an_add_ends_with_the_guests_answer() -> None:
    seconds = kernel_time.add(MIB)(guest_of(Asked([])), "dimm0", Deadline(60))
    assert 0.25 <= seconds < 60
    with pytest.raises(InfraError, match="a timed operation failed: add: ACPI_DEVICE_OST"):
        kernel_time.add(MIB)(guest_of(Asked([], status=1)), "dimm0", Deadline(60))


def test_a_resize_ends_when_qemu_has_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    qmp = Asked([0, MIB, 2 * MIB])
    sizes = iter(qmp.sizes)
    monkeypatch.setattr(kernel_time.memdev, "memory_device", lambda *_, deadline: SimpleNamespace(size=next(sizes)))
    assert kernel_time.resize(2 * MIB)(guest_of(qmp), "vmem0", Deadline(60)) > 0
    assert qmp.commands == ["qom-set"] and list(sizes) == []


def test_blocks_that_refuse_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    place = SimpleNamespace(range=AddrRange(4 * MIB, 8 * MIB))
    monkeypatch.setattr(kernel_time.memdev, "memory_device", lambda *_, deadline: place)
    asked: list[int] = []

    def set_blocks(shell: object, blocks: range, to: str, *, deadline: Deadline) -> tuple[BlockOutcome, ...]:
        asked.extend(blocks)
        error = None if to == "offline" else "EBUSY"
        return BlockOutcome(2, True, None, 0.25), BlockOutcome(3, error is None, error, seconds[0])

    monkeypatch.setattr(kernel_time, "set_blocks", set_blocks)
    seconds: list[float | None] = [0.5]
    assert kernel_time.set_all("offline", 2 * MIB)(guest_of(Asked([])), "dimm0", Deadline(60)) == 0.75
    assert asked == [2, 3]
    seconds[0] = None
    with pytest.raises(InfraError, match="this guest root has no agent, which times writes to sysfs"):
        kernel_time.set_all("offline", 2 * MIB)(guest_of(Asked([])), "dimm0", Deadline(60))
    with pytest.raises(InfraError, match="memory3 online_movable: EBUSY"):
        kernel_time.set_all("online_movable", 2 * MIB)(guest_of(Asked([])), "dimm0", Deadline(60))


def test_a_removal_ends_with_the_last_event(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = iter(["deleted", "refused"])

    def unplug(machine: object, device: str, *, deadline: Deadline) -> HotplugOutcome:
        now = time.time()
        events = tuple(QmpEvent(1, 0.0, now + more, "E", {}) for more in (0.5, 1.0))
        return HotplugOutcome(device, next(kinds), events, "busy")  # type: ignore[arg-type]

    monkeypatch.setattr(kernel_time.memdev, "unplug", unplug)
    assert 1.0 <= kernel_time.remove(guest_of(Asked([])), "dimm0", Deadline(60)) < 60
    with pytest.raises(InfraError, match="a timed operation failed: remove: busy"):
        kernel_time.remove(guest_of(Asked([])), "dimm0", Deadline(60))


def test_the_yardstick_is_the_collector_of_its_commit_in_a_folder_of_its_own() -> None:
    class Guest:
        """Answers like the collector."""

        def __init__(self) -> None:
            self.script = b""

        def run(self, command: str, *, stdin: bytes = b"", deadline: Deadline, limit: int = 0) -> CommandResult:
            if stdin:
                self.script = stdin
                return CommandResult(0, b"", b"")
            *_, path, boundary, _ = command.split()[:5]
            assert path == "/run/memhp-bench/collect"
            mark = f"\n@@{boundary} "
            out = f"{mark}begin uptime\n1 1\n{mark}end uptime ok\n{mark}done 1\n"
            return CommandResult(0, out.encode(), b"")

    guest = Guest()
    yardstick = Yardstick(guest, Deadline(60))
    yardstick.collect(Deadline(60))
    script = (Path(yardstick_module.__file__).parent / "collect-bcfe9e6.sh").read_bytes()
    assert hashlib.sha256(script).hexdigest() == SCRIPT
    assert guest.script == script.replace(b"run=/run/memhp\n", b"run=/run/memhp-bench\n") != script


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
