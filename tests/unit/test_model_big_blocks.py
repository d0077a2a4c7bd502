# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtio-mem device whose blocks are at least as large as memory blocks adds and removes only whole big blocks."""

from __future__ import annotations

import model_guest
import pytest
from model_guest import BLOCK

from harness.model.actions import SetAutoOnline, SetBlock
from harness.model.devices.virtio_mem import PlugVirtioMem, Resize, VirtioMem
from harness.model.memory_model import MemoryModel
from harness.units import GIB, MIB


def grown(block: int, maximum: int, policy: str = "online_movable") -> MemoryModel:
    model = model_guest.model()
    model.apply(SetAutoOnline(policy))
    model.apply(PlugVirtioMem("vmem0", maximum, block, 0, 0, "rp0"))
    return model


def steps_of(model: MemoryModel) -> list[int]:
    return [piece.range.size for piece in model.expected().linear]


def plugged(model: MemoryModel) -> int:
    return model.devices["vmem0"].qmp().size


@pytest.mark.parametrize(("block", "big"), [(2 * MIB, None), (64 * MIB, None), (BLOCK, BLOCK), (GIB, GIB)])
def test_the_mode_is_the_drivers(block: int, big: int | None) -> None:
    device = grown(block, 4 * GIB).devices["vmem0"]
    assert isinstance(device, VirtioMem)
    assert device.big_block == big


def test_what_is_less_than_a_big_block_is_neither_added_nor_removed() -> None:
    model = grown(512 * MIB, 2 * GIB)
    model.apply(Resize("vmem0", 1280 * MIB))
    assert (plugged(model), steps_of(model)) == (GIB, [512 * MIB, 512 * MIB])
    model.apply(Resize("vmem0", 768 * MIB))
    assert plugged(model) == GIB
    model.apply(Resize("vmem0", 512 * MIB))
    assert (plugged(model), steps_of(model)) == (512 * MIB, [512 * MIB])
    model.apply(Resize("vmem0", 0))
    assert model.blocks_of("vmem0") == ()


def test_only_big_blocks_that_lie_wholly_in_the_device_are_used() -> None:
    model = model_guest.model()
    model.apply(PlugVirtioMem("vmem0", 2 * GIB, GIB, 0, 0, "rp0", model.place(3 * GIB, GIB).start + 512 * MIB))
    model.apply(Resize("vmem0", 2 * GIB))
    assert plugged(model) == GIB


def test_offline_ones_go_first_then_those_without_kernel_memory_the_highest_first() -> None:
    model = grown(256 * MIB, GIB)
    model.apply(Resize("vmem0", GIB))
    blocks = model.blocks_of("vmem0")
    model.apply(SetBlock(blocks[7], "online_kernel"))
    model.apply(SetBlock(blocks[0], "offline"))
    model.apply(SetBlock(blocks[1], "offline"))
    for left in ([2, 3, 4, 5, 6, 7], [2, 3, 6, 7], [6, 7], []):
        model.apply(Resize("vmem0", len(left) * BLOCK))
        assert model.blocks_of("vmem0") == tuple(blocks[at] for at in left)


def test_two_big_blocks_may_wait_to_be_onlined_however_large_they_are() -> None:
    model = grown(GIB, 4 * GIB, "offline")
    model.apply(Resize("vmem0", 4 * GIB))
    assert plugged(model) == 2 * GIB
    for index in model.blocks_of("vmem0")[:8]:
        model.apply(SetBlock(index, "online_movable"))
    assert plugged(model) == 3 * GIB
