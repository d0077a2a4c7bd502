# SPDX-License-Identifier: GPL-2.0-or-later
"""What a step waits for before the look: memory blocks, and the work of a driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from guest_peer import CannedShell, said

from harness.check import ResizeReport
from harness.deadline import Deadline
from harness.errors import DeadlineExpired
from harness.guest.drivers import RESIZE_QUEUE, work_wait
from harness.guest.waits import GuestWait
from harness.qemu import memdev
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.scenarios.verbs.blocks import await_size
from harness.units import MIB

NOTES: list[str] = []


def waits(
    before: Mapping[int, str],
    wanted: Mapping[int, str],
    outcome: Outcome,
    *,
    unseen: bool = False,
    before_look: Sequence[GuestWait] = (),
) -> tuple[GuestWait, ...]:
    """What the guest is asked to do before the look."""

    def blocks(states: Mapping[int, str]) -> tuple[Any, ...]:
        return tuple(SimpleNamespace(index=index, state=state) for index, state in states.items())

    session: Any = SimpleNamespace(
        model=SimpleNamespace(expected=lambda: SimpleNamespace(blocks=blocks(wanted))),
        state=SimpleNamespace(memory_blocks=blocks(before)),
        unseen=unseen,
        _before_look=list(before_look),
        number=7,
        options=SimpleNamespace(settle=5.0),
        recorder=SimpleNamespace(note=NOTES.append),
        layout=SimpleNamespace(
            block_size=1,
            machine=SimpleNamespace(
                device_window=lambda: SimpleNamespace(align_outward=lambda size: SimpleNamespace(start=8, end=10))
            ),
        ),
    )
    return Session._waits(session, outcome, Deadline(60))


def awaited(before: Mapping[int, str], wanted: Mapping[int, str], outcome: Outcome, *, unseen: bool = False) -> bytes:
    """The blocks that it waits for, b"" if for none."""
    return b"".join(wait.command[1] for wait in waits(before, wanted, outcome, unseen=unseen))


@pytest.mark.parametrize(
    ("before", "wanted", "settled", "asked"),
    [
        ({1: "online"}, {1: "online"}, False, b""),
        ({1: "offline"}, {1: "online"}, False, b"1 online\n"),
        # The write that set it online has returned.
        ({1: "offline"}, {1: "online"}, True, b""),
        # Something else will remove or add a block.
        ({1: "offline", 2: "online"}, {1: "online"}, True, b"2 absent\n1 online\n"),
        ({1: "offline"}, {1: "online", 2: "offline"}, True, b"1 online\n2 offline\n"),
    ],
)
def test_waits(before: Mapping[int, str], wanted: Mapping[int, str], settled: bool, asked: bytes) -> None:
    assert awaited(before, wanted, Outcome(settled=settled)) == asked


def test_after_a_step_that_nobody_looked_at_it_always_waits() -> None:
    assert (
        awaited({1: "offline"}, {1: "online"}, Outcome(settled=True), unseen=True) == b"8 absent\n9 absent\n1 online\n"
    )


def test_blocks_that_are_late_are_noted_and_looked_at() -> None:
    NOTES.clear()
    [wait] = waits({1: "offline"}, {1: "online"}, Outcome())
    wait.alone(CannedShell(said("")), Deadline(60))
    assert NOTES == []
    wait.alone(CannedShell(said("1 online offline\n")), Deadline(60))
    assert len(NOTES) == 1 and NOTES[0].startswith("step 7: gave up after 5.0 s waiting for memory blocks in the guest")


def test_work_that_is_late_is_told_with_the_step() -> None:
    work, outcome = work_wait("queue", deadline=Deadline(9.7)), Outcome(note="256M plugged")
    # Blocks may still be there until the work ends.
    first, second = waits({1: "online"}, {}, outcome, before_look=[work])
    assert (first.command, second.command[1]) == (("/usr/lib/memhp/wait-work queue 9", b""), b"1 absent\n")
    assert waits({}, {}, outcome, before_look=[work])[0].command == first.command
    first.alone(CannedShell(said("")), Deadline(60))
    assert outcome.note == "256M plugged"
    first.alone(CannedShell(said("kworker/0:2+queue\n", 1)), Deadline(60))
    late = "gave up after 9.7 s waiting for the guest's workqueue queue to finish its work"
    assert outcome.note.startswith(f"256M plugged; {late}")


@pytest.mark.parametrize("reached", [True, False])
def test_a_resize_ends_in_the_look_unless_it_stops_short(monkeypatch: pytest.MonkeyPatch, reached: bool) -> None:
    def wait_size(machine: str, id: str, size: int, *, deadline: Deadline) -> None:
        assert (machine, id, size) == ("machine", "v0", 256 * MIB)
        if not reached:
            raise DeadlineExpired("v0", 5.0)

    monkeypatch.setattr(memdev, "wait_size", wait_size)
    monkeypatch.setattr(memdev, "memory_device", lambda *_, deadline: SimpleNamespace(size=128 * MIB))
    shell, outcome = CannedShell(*() if reached else (said(""),)), Outcome()
    before_look: list[GuestWait] = []
    session: Any = SimpleNamespace(
        model=SimpleNamespace(devices={"v0": SimpleNamespace(qmp=lambda: SimpleNamespace(size=256 * MIB))}),
        guest=SimpleNamespace(machine="machine", shell=shell),
        options=SimpleNamespace(settle=5.0),
        before_look=before_look.append,
    )
    await_size(session, "v0", 257 * MIB, outcome, Deadline(60))
    work = f"/usr/lib/memhp/wait-work {RESIZE_QUEUE} 4"
    assert [wait.command[0] for wait in before_look] == ([work] if reached else [])
    assert [command for command, _ in shell.asked] == ([] if reached else [work])
    size, note = (256 * MIB, "256M plugged") if reached else (128 * MIB, "gave up after 5.0 s waiting for v0")
    assert (outcome.resizes, outcome.note) == ([ResizeReport("v0", 257 * MIB, size)], note)
