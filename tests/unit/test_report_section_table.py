# SPDX-License-Identifier: GPL-2.0-or-later
"""mem_section as a table, and changes of it."""

from __future__ import annotations

import dataclasses
import json

from hypothesis import given
from hypothesis import strategies as st

from harness.report.section_table import (
    SectionChange,
    SectionShape,
    compare_sections,
    render_section_changes,
    render_sections,
    section_change_to_json,
    section_differences,
    section_to_json,
    within,
)
from harness.state import Section
from harness.units import MIB, AddrRange

SHAPE = SectionShape(128 * MIB, 2 * MIB)
ALL = (1 << 64) - 1
BOOT = Section(8, ("present", "has-mem-map", "online", "early"), 0xFFFFFDFFBF000000, 0xFFFF00003FB4BB40, ALL)
PLUGGED = Section(16, ("present", "has-mem-map"), 0xFFFFFDFFBF000000, 0xFFFF000001FFF000, 0xFFFF00FF)
BARE = Section(17, (), 0, 0, None)


def test_a_line_for_each_section() -> None:
    assert "".join(render_sections([BOOT, PLUGGED, BARE], SHAPE)).splitlines() == [
        "section  physical           flags                             "
        "sub-sections        mem_map             usage               present if partial",
        "8        40000000-47ffffff  present,has-mem-map,online,early  "
        "0xffffffffffffffff  0xfffffdffbf000000  0xffff00003fb4bb40",
        "16       80000000-87ffffff  present,has-mem-map               "
        "0x00000000ffff00ff  0xfffffdffbf000000  0xffff000001fff000  80000000-80ffffff, 82000000-83ffffff",
        "17       88000000-8fffffff  -                                 "
        "-                   0x0000000000000000  0x0000000000000000",
    ]


def test_without_sections_there_is_the_header() -> None:
    assert list(render_sections([], SHAPE)) == ["section  physical  flags  sub-sections  mem_map  usage\n"]


def test_a_bitmap_is_as_wide_as_a_section_has_sub_sections() -> None:
    wide = SectionShape(512 * MIB, 2 * MIB)
    rows = list(render_sections([dataclasses.replace(BOOT, subsections=1)], wide))
    assert f"  0x{'0' * 63}1  " in rows[1] and rows[1].endswith("  100000000-1001fffff\n")
    assert not wide.is_partial(dataclasses.replace(BOOT, subsections=(1 << 256) - 1))


def test_an_empty_bitmap_has_no_ranges() -> None:
    empty = dataclasses.replace(BOOT, subsections=0)
    assert not SHAPE.is_partial(empty) and SHAPE.present(empty) == ()
    assert " 0x0000000000000000  0xfffffdffbf000000" in list(render_sections([empty], SHAPE))[1]


@given(st.integers(0, ALL))
def test_ranges_say_the_same_as_the_bitmap(bits: int) -> None:
    section = dataclasses.replace(PLUGGED, subsections=bits)
    present = SHAPE.present(section)
    for bit in range(64):
        at = SHAPE.physical(section).start + bit * 2 * MIB
        assert any(at in place for place in present) == bool(bits >> bit & 1)
    assert all(SHAPE.physical(section).covers(place) for place in present)
    assert SHAPE.is_partial(section) == (0 < bits < ALL)


def test_sections_that_touch_physical_ranges() -> None:
    every = (BOOT, PLUGGED, BARE)
    assert within(every, SHAPE, []) == every
    assert within(every, SHAPE, [AddrRange(0x47FFFFFF, 0x48000000)]) == (BOOT,)
    assert within(every, SHAPE, [AddrRange(0x48000000, 0x80000000)]) == ()
    assert within(every, SHAPE, [AddrRange(0x87000000, 0x89000000), AddrRange(0, 0x40000001)]) == every


def test_changes() -> None:
    online = dataclasses.replace(PLUGGED, flags=("present", "has-mem-map", "online"), subsections=ALL)
    changes = compare_sections([BOOT, PLUGGED], [online, BARE])
    assert changes == [SectionChange(BOOT, None), SectionChange(PLUGGED, online), SectionChange(None, BARE)]
    rows = "".join(render_section_changes(changes, SHAPE)).splitlines()
    assert [row.split()[0] for row in rows] == ["section", "-8", "-16", "+16", "+17"]
    assert rows[0].startswith(" section  physical")
    assert rows[3].endswith("0xffff000001fff000  # +online, sub-sections")
    assert rows[2].endswith("0xffff000001fff000  80000000-80ffffff, 82000000-83ffffff")
    assert "#" not in rows[1] + rows[2] + rows[4]
    assert list(render_section_changes([], SHAPE)) == [] == compare_sections([BOOT], [BOOT])


def test_every_field_that_differs_is_named() -> None:
    other = Section(8, ("present", "bit-9"), 0, 0, None)
    assert section_differences(SectionChange(BOOT, other)) == [
        "+bit-9",
        "-has-mem-map",
        "-online",
        "-early",
        "sub-sections",
        "mem_map",
        "usage",
    ]
    turned = dataclasses.replace(BOOT, flags=BOOT.flags[::-1])
    assert section_differences(SectionChange(BOOT, turned)) == ["flags"]
    assert section_differences(SectionChange(None, BOOT)) == []


def test_sections_for_machines() -> None:
    assert json.loads(json.dumps(section_to_json(PLUGGED, SHAPE))) == {
        "number": 16,
        "start": "0x80000000",
        "end": "0x88000000",
        "flags": ["present", "has-mem-map"],
        "subsections": "0xffff00ff",
        "present": [["0x80000000", "0x81000000"], ["0x82000000", "0x84000000"]],
        "mem_map": "0xfffffdffbf000000",
        "usage": "0xffff000001fff000",
    }
    assert section_to_json(BARE, SHAPE)["subsections"] is None
    kinds = [
        section_change_to_json(SectionChange(*pair), SHAPE)["change"]
        for pair in ((None, BARE), (BARE, None), (BARE, dataclasses.replace(BARE, usage=1)))
    ]
    assert kinds == ["added", "removed", "changed"]
