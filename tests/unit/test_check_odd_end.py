# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests whose boot memory ends inside a memory block: what stays, and what is checked there."""

from __future__ import annotations

import dataclasses

import model_guest
import pytest
from model_guest import ARM64_4K, KINDS, Kind
from test_check_host import Guest, complaints, story

from harness.check import CATALOGUE, Evidence, OfflineReport, run_check
from harness.model.boot_layout import BootLayout, boot_layout
from harness.model.expected import ExpectedState
from harness.model.memory_model import MemoryModel
from harness.state import HostMapping, HostTables, IomemEntry, Zone
from harness.units import MIB, AddrRange

ODD = 1100 * MIB
#: from the base of the RAM, as movablecore=384M puts it: inside block 5 of 8
MOVABLE_FROM = 716 * MIB


def layout(kind: Kind = ARM64_4K, *, movable: bool = False, **changes: object) -> BootLayout:
    boot, page = model_guest.boot_state(kind, ODD), kind.page_size
    if movable:
        base, kernel, rest = kind.arch.ram_base, MOVABLE_FROM // page, (ODD - MOVABLE_FROM) // page
        low = model_guest.zones(kind=kind)[0].name
        zones = (
            Zone(0, low, kernel, kernel, kernel, base // page),
            Zone(0, "Normal", 0, 0, 0, None),
            Zone(0, "Movable", rest, rest, rest, base // page + kernel),
        )
        boot = dataclasses.replace(boot, zones=zones)
    boot = dataclasses.replace(boot, **changes)  # type: ignore[arg-type]
    return boot_layout(model_guest.shape(kind, node_memory=(ODD,)), model_guest.facts(kind), boot)


def findings(name: str, made: BootLayout, *reports: OfflineReport) -> list[tuple[str, str, str]]:
    expected: ExpectedState = MemoryModel(made).expected()
    result = run_check(CATALOGUE[name], Evidence(made, expected, made.baseline, offlines=reports))
    assert result is not None
    return [(finding.where, finding.expected, finding.observed) for finding in result.findings]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_sound_states_pass(kind: Kind) -> None:
    for _, evidence in story(Guest(kind, ODD)):
        assert complaints(evidence) == []


def test_the_last_section_is_early_and_partial() -> None:
    expected = MemoryModel(layout()).expected()
    last = expected.sections[-1]
    assert (last.number, last.subsections) == (16, (1 << 38) - 1)
    assert expected.blocks[-1].index == 16
    assert expected.memmap == (AddrRange(0x4000_0000, 0x8800_0000),)
    # QEMU aligns the window for memory devices to 1 GiB.
    assert MemoryModel(layout()).place(256 * MIB).start == 0xC000_0000


def test_a_block_with_a_hole_never_goes_offline() -> None:
    made = layout()
    assert MemoryModel(made).expected().broken == {16: "it has a hole"}
    assert findings("BLK-3", made, OfflineReport(16, "EINVAL")) == []
    must = "stays online (EINVAL): it has a hole"
    assert findings("BLK-3", made, OfflineReport(16, None)) == [("memory16", must, "went offline")]
    assert findings("BLK-3", made, OfflineReport(16, "EPERM")) == [("memory16", must, "EPERM")]


def test_what_firmware_keeps_is_a_hole() -> None:
    iomem = (
        IomemEntry(AddrRange(0x4000_0000, 0x4800_1000), "System RAM"),
        IomemEntry(AddrRange(0x4800_1000, 0x4800_2000), "reserved"),
        IomemEntry(AddrRange(0x4800_2000, 0x84C0_0000), "System RAM"),
    )
    assert MemoryModel(layout(iomem=iomem)).expected().broken == {9: "it has a hole", 16: "it has a hole"}
    unseen = MemoryModel(layout(iomem=model_guest.UNSEEN))
    assert unseen.expected().broken == {16: "it has a hole"}


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[-1]], ids=str)
def test_a_block_of_two_zones_is_online_in_none_of_them(kind: Kind) -> None:
    made = layout(kind, movable=True)
    model, first = MemoryModel(made), made.machine.arch.ram_base // made.block_size
    mixed, last = model.expected().blocks[5], model.expected().blocks[-1]
    assert (mixed.index, mixed.state, mixed.valid_zones) == (first + 5, "online", ("none",))
    assert (last.index, last.state, last.valid_zones) == (first + 8, "online", ("Movable",))
    assert model.expected().broken == {first + 5: "it has pages of several zones", first + 8: "it has a hole"}
    assert findings("BLK-3", made, OfflineReport(first + 5, "EINVAL")) == []
    assert [seen for _, _, seen in findings("BLK-3", made, OfflineReport(first + 5, None))] == ["went offline"]


def test_all_boot_memory_is_present() -> None:
    made = layout()
    assert findings("ZON-1", made) == []
    assert isinstance(made.baseline.zones, tuple)
    pages = made.baseline.zones[0].present
    rounded = dataclasses.replace(made.baseline.zones[0], present=pages + 1)
    wrong = layout(zones=(rounded, *made.baseline.zones[1:]))
    assert findings("ZON-1", wrong) == [("node 0 after boot", f"present {pages}", f"present {pages + 1}")]


@pytest.mark.parametrize(("state", "broken"), [("online", False), ("offline", True)])
def test_blocks_of_a_device_that_booted_with_the_guest_are_present_if_they_are_online(state: str, broken: bool) -> None:
    made = layout()
    assert isinstance(made.baseline.zones, tuple) and isinstance(made.baseline.blocks, tuple)
    last = made.baseline.blocks[-1]
    hot = dataclasses.replace(last, index=last.index + 8, phys_index=last.index + 8, state=state)
    more = made.baseline.zones[0].present + made.block_size // made.page_size
    grown = dataclasses.replace(made.baseline.zones[0], present=more)
    changed = layout(zones=(grown, *made.baseline.zones[1:]), blocks=(*made.baseline.blocks, hot))
    assert any(where == "node 0 after boot" for where, _, _ in findings("ZON-1", changed)) is broken


def test_the_linear_map_ends_with_boot_memory() -> None:
    kernel, ram = layout().kernel, AddrRange.sized(0x4000_0000, ODD)
    assert kernel is not None
    for extra, found in ((0, []), (2 * MIB, ["physical 84c00000-84dfffff"])):
        leaf = HostMapping(kernel.linear(AddrRange.sized(ram.start, ram.size + extra)), ram.start, "PMD", ("RW",))
        made = layout(host_tables=HostTables((leaf,), (), ()))
        assert [where for where, _, _ in findings("LIN-1", made)] == found
