# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that booted with devices: a snapshot with devices, minus the devices, is the boot without them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import model_guest
import pytest

from harness.check import run_all
from harness.errors import UnsupportedError, UsageError
from harness.model.actions import SetBlock, Unplug
from harness.model.boot_layout import BootLayout
from harness.model.booted import booted_model, plugged_devices
from harness.model.devices.dimm import PlugDimm
from harness.model.devices.virtio_mem import PlugVirtioMem
from harness.model.devices.virtio_pmem import PlugVirtioPmem
from harness.model.memory_model import MemoryModel
from harness.scenarios.outcome import Outcome
from harness.scenarios.record import RecordedRun, load_run
from harness.scenarios.verdict import evidence_of
from harness.state import GuestState, HostTables, NotObserved, PageTables
from harness.units import MIB, intersect_ranges, merge_ranges

BUNDLES = Path(__file__).parent / "fixtures" / "bundles"


def offline_steps(run: RecordedRun) -> Iterator[tuple[MemoryModel, GuestState]]:
    """Snapshots with DIMMs or virtio-mem plugged and all of their memory offline, and the model of each."""
    model = booted_model(run.shape, run.facts, run.boot, ())
    for step in run.steps:
        for action in step.actions:
            model.apply(action)
        hot = [block for block in model.blocks.values() if block.owner is not None]
        plain = all(device.id and "pmem" not in device.id for device in model.devices.values())
        if step.state is not None and model.devices and plain and all(block.zone is None for block in hot):
            yield model, step.state


def mapped(state: GuestState, layout: BootLayout) -> list[object]:
    """The ranges that linear map and vmemmap cover, by each witness; other kernel mappings change without hotplug."""
    assert layout.kernel is not None
    windows = [layout.kernel.linear_window, layout.kernel.vmemmap_window]
    tables = [state.page_tables, state.host_tables]
    return [
        merge_ranges(intersect_ranges(windows, [mapping.range for mapping in found.mappings]))
        for found in tables
        if isinstance(found, HostTables | PageTables)
    ]


@pytest.mark.parametrize("name", ["arm64-dimm", "arm64-story", "riscv64-story"])
def test_a_state_less_its_devices_is_the_boot(name: str) -> None:
    run = load_run(BUNDLES / name)
    tried = 0
    for model, state in offline_steps(run):
        if state.auto_online != "offline":
            continue
        tried += 1
        booted = booted_model(run.shape, run.facts, state, plugged_devices(model))
        bare = booted.layout.baseline
        assert bare.iomem == run.boot.iomem
        assert bare.backends == {id: bare.backends[id] for id in run.boot.backends}  # type: ignore[index,union-attr]
        assert bare.vmstat["nr_memmap_pages"] == run.boot.vmstat["nr_memmap_pages"]  # type: ignore[index]
        assert mapped(bare, booted.layout) == mapped(run.boot, booted.layout)
        evidence = evidence_of(booted, Outcome(), dataclasses.replace(state, dmesg=(), console=()))
        assert not [finding for check in run_all(evidence, "first look") for finding in check.findings]
    assert tried


def test_devices_in_the_order_a_kernel_finds_them() -> None:
    model = model_guest.model()
    model.apply(PlugVirtioMem("far", 1 << 30, 2 * MIB, 256 * MIB, port="rp1"))
    model.apply(PlugVirtioMem("near", 1 << 30, 2 * MIB, 0, port="rp0"))
    model.apply(PlugDimm("dimm", 256 * MIB, slot=3))
    again = plugged_devices(model)
    assert [action.id for action in again] == ["dimm", "near", "far"]  # type: ignore[union-attr]
    twin = model_guest.model()
    for action in again:
        twin.apply(action)
    before, after = model.expected(), twin.expected()
    assert {device.id: device for device in before.devices} == {device.id: device for device in after.devices}
    assert after.virtio_names == {"near": "virtio2", "far": "virtio3"}


def test_what_is_not_followed_through_a_boot() -> None:
    model = model_guest.model()
    model.apply(PlugVirtioPmem("pmem", 256 * MIB, "rp0"))
    with pytest.raises(UsageError, match=r"pmem is not tracked across a reboot\n  hint: unplug it first"):
        plugged_devices(model)
    model.apply(Unplug("pmem"))
    assert plugged_devices(model) == ()
    state = dataclasses.replace(model_guest.boot_state(), auto_online="online_movable")
    with pytest.raises(UnsupportedError, match=r"policy online_movable\), before the first look\n  hint: boot it with"):
        booted_model(model_guest.shape(), model_guest.facts(), state, (PlugDimm("dimm", 128 * MIB),))


def test_sources_that_were_not_read_stay_unread() -> None:
    state = model_guest.boot_state()
    blind = dataclasses.replace(state, iomem=NotObserved("x"), vmstat=NotObserved("x"), backends=NotObserved("x"))
    model = booted_model(model_guest.shape(), model_guest.facts(), blind, (PlugDimm("dimm", 128 * MIB),))
    assert model.layout.baseline.iomem == NotObserved("x")
    model.apply(SetBlock(model_guest.FIRST, "online_movable"))
    model.apply(Unplug("dimm"))
