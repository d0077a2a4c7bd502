# SPDX-License-Identifier: GPL-2.0-or-later
"""The virtio-mem driver adds at most 1 GiB of memory that is not online yet (offline_threshold)."""

from __future__ import annotations

import model_guest

from harness.model.actions import SetAutoOnline, SetBlock
from harness.model.devices.virtio_mem import PlugVirtioMem, Resize
from harness.model.memory_model import MemoryModel
from harness.units import GIB, MIB


def plugged(model: MemoryModel) -> int:
    return model.devices["vmem0"].qmp().size


def grown() -> MemoryModel:
    model = model_guest.model()
    model.apply(PlugVirtioMem("vmem0", 4 * GIB, 2 * MIB, 0, 0, "rp0"))
    return model


def test_growth_stops_at_the_threshold_and_goes_on_when_half_of_it_is_online() -> None:
    model = grown()
    model.apply(Resize("vmem0", 1536 * MIB))
    assert plugged(model) == GIB
    first = model.blocks_of("vmem0")
    for index in first[:3]:
        model.apply(SetBlock(index, "online_movable"))
    assert plugged(model) == GIB
    model.apply(SetBlock(first[3], "online_movable"))
    assert plugged(model) == 1536 * MIB
    model.apply(Resize("vmem0", 2 * GIB))
    assert plugged(model) == 1536 * MIB


def test_what_goes_online_by_itself_knows_no_threshold() -> None:
    model = grown()
    model.apply(SetAutoOnline("online_movable"))
    model.apply(Resize("vmem0", 3 * GIB))
    assert plugged(model) == 3 * GIB


def test_going_offline_adds_nothing() -> None:
    model = grown()
    model.apply(Resize("vmem0", 4 * GIB))
    first = model.blocks_of("vmem0")[0]
    model.apply(SetBlock(first, "online_movable"))
    model.apply(SetBlock(first, "offline"))
    assert plugged(model) == GIB
