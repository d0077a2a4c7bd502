# SPDX-License-Identifier: GPL-2.0-or-later
"""For how many guests the host has memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config.arguments import Args
from harness.config.guest import GuestSpec
from harness.scenarios.file import load_scenario
from harness.scenarios.memorybudget import (
    OVERHEAD,
    MemoryBudget,
    available_memory,
    cost,
    parse_bytes,
    peak_memory,
)
from harness.scenarios.steps import Repeat, Step
from harness.scenarios.verbs import VERBS
from harness.scenarios.verbs.dimm import PlugDimmVerb
from harness.scenarios.verbs.memory import FillVerb
from harness.scenarios.verbs.verb import Verb
from harness.scenarios.verbs.virtio_mem import PlugVirtioMemVerb
from harness.units import GIB, MIB


def test_parsers() -> None:
    assert parse_bytes("MemAvailable", "MemTotal:  100 kB\nMemAvailable:   2048 kB\n") == 2 * MIB
    assert parse_bytes("MemAvailable", "MemTotal:  100 kB\n") is None
    assert parse_bytes("VmHWM", "Name:\tx\nVmHWM:\t    1024 kB\n") == MIB
    assert parse_bytes("VmHWM", "Name:\tx\n") is None


def test_this_machine_tells() -> None:
    assert (available_memory() or 0) > 0
    assert (peak_memory("self") or 0) > MIB
    assert peak_memory(1 << 30) is None


def test_a_container_has_less(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{3 * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{2 * MIB}\n")
    assert available_memory(tmp_path) == MIB
    (tmp_path / "memory.max").write_text("max\n")
    assert (available_memory(tmp_path) or 0) > MIB


def test_a_guest_costs_its_memory_what_is_touched_and_qemu() -> None:
    spec = GuestSpec.default("arm64")
    assert cost(spec) == GIB + OVERHEAD
    # The scenario touches 64M and 32M.
    assert cost(spec, load_scenario("dimm-cycle").steps) == GIB + OVERHEAD + 96 * MIB


def test_a_guest_that_is_filled_up_costs_all_that_is_plugged() -> None:
    spec = GuestSpec.default("arm64")
    plugs = [Step(PlugDimmVerb("d", GIB)), Step(PlugVirtioMemVerb("v", 2 * GIB))]
    assert cost(spec, plugs) == GIB + OVERHEAD
    rounds = Repeat(2, (Step(FillVerb(MIB)),))
    assert cost(spec, [*plugs, rounds]) == 4 * GIB + OVERHEAD


def test_who_is_alone_gets_in_others_only_where_there_is_room() -> None:
    room = MemoryBudget(3)
    assert room.enter(5)
    assert not room.enter(1)
    room.leave(5)
    assert room.enter(2) and room.enter(1) and not room.enter(1)
    assert MemoryBudget(None).enter(1 << 60) and MemoryBudget(None).lack([1 << 60], 64) is None


@pytest.mark.parametrize(("total", "fit"), [(4 * GIB, "2 guests"), (GIB, "1 guest at")])
def test_too_little_memory_is_said(total: int, fit: str) -> None:
    said = MemoryBudget(total).lack([2 * GIB] * 8, 4)
    assert said is not None and f"memory for {fit}" in said and "not for 4" in said and "may take 2.0G" in said


def test_enough_memory_is_not_spoken_of() -> None:
    assert MemoryBudget(8 * GIB).lack([2 * GIB] * 8, 4) is None
    assert MemoryBudget(2 * GIB).lack([2 * GIB], 4) is None
    assert MemoryBudget(2 * GIB).lack([], 4) is None


@pytest.mark.parametrize("verb", [verb for verb in VERBS.values() if verb.room == "takes"], ids=lambda verb: verb.name)
def test_what_takes_room_for_devices_says_how_much_memory_it_can_add(verb: type[Verb]) -> None:
    assert verb.capacity is not Args.capacity
