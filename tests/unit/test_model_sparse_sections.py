# SPDX-License-Identifier: GPL-2.0-or-later
"""mem_section in the model, compared with a count of single sub-sections."""

from __future__ import annotations

import dataclasses
import itertools

import model_guest
from hypothesis import given
from hypothesis import strategies as st
from model_guest import BLOCK, FIRST

from harness.model.actions import SetBlock, Unplug
from harness.model.devices.dimm import PlugDimm
from harness.model.devices.virtio_mem import PlugVirtioMem, Resize
from harness.model.memory_model import MemoryModel
from harness.model.sparse_sections import SectionTable
from harness.state import IomemEntry
from harness.units import GIB, MIB, AddrRange

SUB = 2 * MIB
EARLY = frozenset({"present", "has-mem-map", "online", "early"})
HOT = frozenset({"present", "has-mem-map"})


def flags(model: MemoryModel) -> dict[int, frozenset[str]]:
    return {section.number: section.flags for section in model.expected().sections}


def test_a_fresh_guest_has_early_sections() -> None:
    sections = model_guest.model().expected().sections
    assert [section.number for section in sections] == list(range(8, 16))
    assert {(section.flags, section.subsections) for section in sections} == {(EARLY, (1 << 64) - 1)}


def test_what_firmware_keeps_has_no_sub_sections() -> None:
    boot = model_guest.boot_state()
    told = (
        IomemEntry(AddrRange(0x4000_0000, 0x4010_0000), "System RAM"),
        IomemEntry(AddrRange(0x4010_0000, 0x4020_0000), "reserved"),
        IomemEntry(AddrRange(0x4040_0001, 0x7000_0000), "System RAM"),
        IomemEntry(AddrRange(0x9000_0000, 0x9000_1000), "PNP0C0C"),
    )
    layout = dataclasses.replace(model_guest.layout(), baseline=dataclasses.replace(boot, iomem=told))
    sections = MemoryModel(layout).expected().sections
    assert [section.number for section in sections] == list(range(8, 14))
    assert sections[0].subsections == (1 << 64) - 1 - 0b10
    unseen = dataclasses.replace(layout, baseline=dataclasses.replace(boot, iomem=model_guest.UNSEEN))
    assert len(MemoryModel(unseen).expected().sections) == 8


def test_sections_follow_their_blocks() -> None:
    model = model_guest.model()
    model.apply(PlugDimm("d0", GIB))
    assert {number: words for number, words in flags(model).items() if number >= FIRST} == dict.fromkeys(
        range(FIRST, FIRST + 8), HOT
    )
    model.apply(SetBlock(FIRST + 1, "online_movable"))
    assert flags(model)[FIRST + 1] == HOT | {"online"}
    model.apply(SetBlock(FIRST + 1, "offline"))
    assert flags(model)[FIRST + 1] == HOT
    model.apply(SetBlock(9, "offline"))
    assert flags(model)[9] == EARLY - {"online"}
    model.apply(SetBlock(9, "online"))
    assert flags(model)[9] == EARLY
    model.apply(Unplug("d0"))
    assert list(flags(model)) == list(range(8, 16))


def test_virtio_mem_brings_whole_sections() -> None:
    model = model_guest.model()
    model.apply(PlugVirtioMem("v0", 2 * GIB, 2 * MIB))
    model.apply(Resize("v0", BLOCK + 2 * MIB))
    hot = {section.number: section.subsections for section in model.expected().sections if section.number >= FIRST}
    assert hot == {FIRST: (1 << 64) - 1, FIRST + 1: (1 << 64) - 1}


@given(cuts=st.sets(st.integers(0, 256), min_size=2, max_size=8), order=st.randoms(use_true_random=False))
def test_sub_sections_come_and_go_one_by_one(cuts: set[int], order: object) -> None:
    edges = sorted(cuts)
    pieces = [AddrRange(FIRST * BLOCK + a * SUB, FIRST * BLOCK + b * SUB) for a, b in itertools.pairwise(edges)]
    table = SectionTable(BLOCK, SUB, [])
    present: set[int] = set()
    tainted: set[int] = set()
    order.shuffle(pieces)  # type: ignore[attr-defined]
    todo = [(True, piece) for piece in pieces] + [(False, piece) for piece in pieces]
    for adding, piece in todo:
        numbers = set(range(piece.start // SUB, piece.end // SUB))
        if adding:
            table.add(piece, device=True)
            present |= numbers
            tainted |= {edge // BLOCK for edge in (piece.start, piece.end) if edge % BLOCK}
        else:
            table.remove(piece)
            present -= numbers
            tainted &= {number // 64 for number in present}
        seen = table.to_state(lambda number, early: False)
        assert {s.number * 64 + bit for s in seen for bit in range(64) if s.subsections >> bit & 1} == present
        assert {s.number for s in seen if "zone-device" in s.flags} == tainted
