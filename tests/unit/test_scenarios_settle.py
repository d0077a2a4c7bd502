# SPDX-License-Identifier: GPL-2.0-or-later
"""When a step waits for memory blocks before the look."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from guest_peer import CannedShell, said

from harness.deadline import Deadline
from harness.guest.waits import GuestWait
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session

NOTES: list[str] = []


def waits(
    before: Mapping[int, str], wanted: Mapping[int, str], outcome: Outcome, *, unseen: bool = False
) -> tuple[GuestWait, ...]:
    """What the guest is asked to do before the look."""

    def blocks(states: Mapping[int, str]) -> tuple[Any, ...]:
        return tuple(SimpleNamespace(index=index, state=state) for index, state in states.items())

    session: Any = SimpleNamespace(
        model=SimpleNamespace(expected=lambda: SimpleNamespace(blocks=blocks(wanted))),
        state=SimpleNamespace(memory_blocks=blocks(before)),
        unseen=unseen,
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
