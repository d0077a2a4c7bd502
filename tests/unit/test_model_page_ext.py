# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel with page_owner or the like has a struct page_ext for each online section, and counts it as memmap."""

from __future__ import annotations

import dataclasses

import model_guest
import pytest

from harness.model.actions import SetBlock, Unplug
from harness.model.boot_layout import boot_layout
from harness.model.devices.dimm import PlugDimm
from harness.model.memory_model import MemoryModel
from harness.state import DmesgLine, NotObserved
from harness.units import MIB

STRUCT_PAGES = 512


def model(dmesg: object) -> MemoryModel:
    boot = model_guest.model().layout
    state = dataclasses.replace(boot.baseline, dmesg=dmesg)
    return MemoryModel(boot_layout(boot.machine, boot.facts, state))


def test_it_comes_when_a_block_goes_online_and_goes_when_it_goes_offline() -> None:
    here = model((DmesgLine(0.0, 6, "allocated 2097152 bytes of page_ext"),))
    assert here.layout.page_ext_pages == 64
    here.apply(PlugDimm("dimm0", 256 * MIB))
    assert here.expected().memmap_pages == 2 * STRUCT_PAGES
    first, second = here.blocks_of("dimm0")
    here.apply(SetBlock(first, "online_movable"))
    assert here.expected().memmap_pages == 2 * STRUCT_PAGES + 64
    here.apply(SetBlock(second, "online_kernel"))
    assert here.expected().memmap_pages == 2 * STRUCT_PAGES + 128
    here.apply(SetBlock(first, "offline"))
    assert here.expected().memmap_pages == 2 * STRUCT_PAGES + 64
    here.apply(Unplug("dimm0"))
    assert here.expected().memmap_pages == 0


def test_boot_memory_that_goes_offline_has_none() -> None:
    here = model((DmesgLine(0.0, 6, "allocated 2097152 bytes of page_ext"),))
    last = here.boot_blocks()[-1]
    here.apply(SetBlock(last, "offline"))
    assert here.expected().memmap_pages == -64
    here.apply(SetBlock(last, "online"))
    assert here.expected().memmap_pages == 0


@pytest.mark.parametrize("dmesg", [(), NotObserved("no"), (DmesgLine(0.0, 6, "allocated some bytes of page_ext"),)])
def test_a_kernel_without(dmesg: object) -> None:
    here = model(dmesg)
    here.apply(PlugDimm("dimm0", 128 * MIB))
    here.apply(SetBlock(here.blocks_of("dimm0")[0], "online_movable"))
    assert here.expected().memmap_pages == STRUCT_PAGES
