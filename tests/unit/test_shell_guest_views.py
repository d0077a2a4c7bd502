# SPDX-License-Identifier: GPL-2.0-or-later
"""The prompt's views of a recorded run: addresses, colours, a drawing, and no guest output that controls a terminal."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from harness.errors import InfraError
from harness.scenarios.record import RecordedRun, load_run
from harness.shell import guest_views
from harness.state import GuestState, IomemEntry, NotObserved
from harness.units import MIB, AddrRange

BLOCK = 128 * MIB


@pytest.fixture(scope="module")
def run() -> RecordedRun:
    return load_run(Path(__file__).parent / "fixtures" / "bundles" / "arm64-dimm")


@pytest.fixture(scope="module")
def plugged(run: RecordedRun) -> GuestState:
    """The first state with a DIMM."""
    return next(step.state for step in run.steps if step.state is not None and step.state.devices)


def test_changes_have_addresses_and_colours(run: RecordedRun, plugged: GuestState) -> None:
    lines = guest_views.changes(run.boot, plugged, BLOCK)
    blocks = next(line for line in lines if line.plain.startswith("memory"))
    assert "[80000000-" in blocks.plain and "absent →" in blocks.plain and blocks.style == "yellow"
    added = next(line for line in lines if line.plain.startswith("iomem +"))
    assert added.style == "green" and "System RAM" in added.plain
    gone = guest_views.changes(plugged, run.boot, BLOCK)
    assert any(line.style == "red" for line in gone)
    assert guest_views.changes(plugged, plugged, BLOCK) == []
    assert guest_views.change_line("MemTotal -1G", BLOCK).style == "red"


def test_tables(run: RecordedRun, plugged: GuestState) -> None:
    assert any("System RAM" in line.plain for line in guest_views.iomem(plugged))
    blocks = [line.plain for line in guest_views.blocks(plugged, BLOCK)]
    assert blocks[0].startswith("memory8-15 ") and "40000000-7fffffff" in blocks[0]
    assert "node" in blocks[0]
    zones = [line.plain for line in guest_views.zones(plugged)]
    assert "managed" in zones[0] and any("DMA" in line for line in zones)
    assert [line.plain for line in guest_views.devices(run.boot)] == ["no memory device is plugged"]
    assert "dimm0" in next(guest_views.devices(plugged)).plain and "slot 0" in next(guest_views.devices(plugged)).plain


def test_the_map_draws_a_character_a_block(run: RecordedRun, plugged: GuestState) -> None:
    before, after = ([line.plain for line in guest_views.draw_map(state, BLOCK)] for state in (run.boot, plugged))
    assert "········████████" + "·" * 48 in before[1]
    assert "········████████" in after[1] and "░" in after[1]
    assert after[-1].startswith("dimm0")


def test_what_was_not_seen_is_said_and_guests_cannot_draw(run: RecordedRun) -> None:
    blind = dataclasses.replace(run.boot, iomem=NotObserved("no \x1bfile"), blocks=NotObserved("gone"))
    with pytest.raises(InfraError, match=r"/proc/iomem could not be observed: no \\x1bfile"):
        list(guest_views.iomem(blind))
    with pytest.raises(InfraError, match="memory blocks could not be observed"):
        list(guest_views.draw_map(blind, BLOCK))
    hostile = dataclasses.replace(run.boot, iomem=(IomemEntry(AddrRange(0, 4096), "\x1b[2J[red]x"),))
    [line] = guest_views.iomem(hostile)
    assert "\\x1b[2J[red]x" in line.plain
