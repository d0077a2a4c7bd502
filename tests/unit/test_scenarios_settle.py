# SPDX-License-Identifier: GPL-2.0-or-later
"""When a step waits for memory blocks before the look."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from guest_peer import CannedShell, said

from harness.deadline import Deadline
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session


def awaited(before: Mapping[int, str], wanted: Mapping[int, str], outcome: Outcome, *, unseen: bool = False) -> bytes:
    """What the guest is asked to wait for, b"" if it is not asked."""

    def blocks(states: Mapping[int, str]) -> tuple[Any, ...]:
        return tuple(SimpleNamespace(index=index, state=state) for index, state in states.items())

    shell = CannedShell(said(""))
    session: Any = SimpleNamespace(
        model=SimpleNamespace(expected=lambda: SimpleNamespace(blocks=blocks(wanted))),
        state=SimpleNamespace(memory_blocks=blocks(before)),
        unseen=unseen,
        options=SimpleNamespace(settle=5.0),
        guest=SimpleNamespace(shell=shell),
        layout=SimpleNamespace(
            block_size=1,
            machine=SimpleNamespace(
                device_window=lambda: SimpleNamespace(align_outward=lambda size: SimpleNamespace(start=8, end=10))
            ),
        ),
    )
    Session._settle(session, outcome, Deadline(60))
    return shell.asked[0][1] if shell.asked else b""


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
