# SPDX-License-Identifier: GPL-2.0-or-later
"""Differences between two page-table dumps."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ptdump_trees import PAGE, PMD, WORDS, Table, host_tables, marker_sets, small, trees

from harness.arch import ARM64, RISCV64, ArchSpec
from harness.report.notepage import dump_tables
from harness.report.ptdump_text import Dump, read_dump, render
from harness.report.tablediff import TableChange, change_to_json, compare, differences, render_changes


def text_of(dump: Dump) -> str:
    return "".join(render(dump))


def shown(old: Dump, new: Dump) -> str:
    return "".join(render_changes(compare(old, new), new.arch))


def test_nothing_changed() -> None:
    assert compare(small(), small()) == []


def test_added_removed_and_changed_runs_are_joined_and_marked() -> None:
    page, block = WORDS["arm64"][0], WORDS["arm64"][1]
    old: Table = {0: {0: (page, 0), 1: (page, PMD), 2: (page, 2 * PMD)}, 3: {0: {0: (page, 0), 1: (page, PAGE)}}}
    new: Table = {
        0: {0: (page, 0), 1: {index: (block, PMD + index * PAGE) for index in range(512)}, 2: (block, 9 * PMD)},
        2: {0: (page, 0), 1: (page, 7 * PMD)},
        3: {0: {1: (page, PAGE)}},
    }
    page_words = "RW NX     AF            UXN    MEM/NORMAL"
    rows = [
        ("@@ Linear start @@", ""),
        (f"-0xffffff8000200000-0xffffff8000400000           2M PMD       {page_words}", ""),
        (
            "+0xffffff8000200000-0xffffff8000400000           2M PTE       ro x      AF    CON           ",
            "PMD -> PTE, RW -> ro, NX -> x, +CON, -UXN, -MEM/NORMAL",
        ),
        (f"-0xffffff8000400000-0xffffff8000600000           2M PMD       {page_words}", ""),
        (
            "+0xffffff8000400000-0xffffff8000600000           2M PMD       ro x      AF    CON           ",
            "RW -> ro, NX -> x, +CON, -UXN, -MEM/NORMAL, 0x400000 -> 0x1200000",
        ),
        ("@@ Linear end @@", ""),
        (f"+0xffffff8080000000-0xffffff8080400000           4M PMD       {page_words}", ""),
        (f"-0xffffff80c0000000-0xffffff80c0001000           4K PTE       {page_words}", ""),
    ]
    expected = [f"{line}  # {mark}" if mark else line for line, mark in rows]
    assert shown(small(root=old), small(root=new)).splitlines() == expected


def test_a_change_ends_at_a_marker() -> None:
    page = WORDS["arm64"][0]
    changes = compare(small(root={3: {0: {9: (page, 0)}}}), small(root={0: {511: (page, 0)}, 1: {0: (page, PMD)}}))
    assert [(change.range.size, change.region) for change in changes][:2] == [
        (PMD, "Linear start"),
        (PMD, "Linear end"),
    ]


def test_a_run_that_leads_elsewhere_is_a_change_if_both_dumps_tell_where() -> None:
    page = WORDS["riscv64"][0]
    old, new = small(RISCV64, {0: {0: {0: (page, 0x1000)}}}), small(RISCV64, {0: {0: {0: (page, 0x7000)}}})
    [change] = compare(old, new)
    assert differences(change, "riscv64") == ["0x1000 -> 0x7000"]
    assert compare(old, read_dump(text_of(new), RISCV64)) == []


def test_only_the_start_of_a_guests_run_is_known_to_lead_somewhere() -> None:
    page = WORDS["riscv64"][0]
    old = read_dump(text_of(small(RISCV64, {0: {0: {0: (page, 0x1000), 1: (page, 0x2000)}}})), RISCV64)
    new = read_dump(text_of(small(RISCV64, {0: {0: {0: (page, 0x1000)}}})), RISCV64)
    assert shown(old, new) == (
        "@@ Linear start @@\n"
        "-0xffffffc000001000-0xffffffc000002000                     -         4K PTE .   ..     ..   D A G . . W R V\n"
    )


def test_changes_for_machines() -> None:
    page = WORDS["arm64"][0]
    [added, changed] = compare(
        small(root={1: {0: {0: (page, 0)}}}), small(root={0: {0: {0: (page, 0)}}, 1: {0: (page, 0)}})
    )[:2]
    assert change_to_json(added, "arm64")["change"] == "added" and change_to_json(added, "arm64")["before"] is None
    value = change_to_json(changed, "arm64")
    assert (value["change"], value["start"], value["differences"]) == ("changed", "0xffffff8040000000", ["PTE -> PMD"])
    removed = TableChange(changed.before, None)
    assert change_to_json(removed, "arm64")["change"] == "removed" and differences(removed, "arm64") == []
    assert json.loads(json.dumps(value))["after"]["level"] == "PMD"


@pytest.mark.parametrize("arch", [ARM64, RISCV64], ids=lambda arch: arch.name)
@given(data=st.data())
def test_changes_are_exactly_what_differs(arch: ArchSpec, data: st.DataObject) -> None:
    places = data.draw(marker_sets(arch.name))
    old, new = (dump_tables(host_tables(data.draw(trees(arch.name)), arch.name), arch, PAGE, places) for _ in "ab")
    changes = compare(old, new)
    assert compare(old, old) == []
    assert [change.range.start for change in changes] == sorted(change.range.start for change in changes)

    def seen(dump: Dump, at: int) -> object:
        for piece in dump.pieces:
            if at in piece.range:
                assert piece.physical is not None
                return piece.level, piece.attrs, piece.physical + at - piece.range.start
        return None

    bounds = {at for run in (*old.pieces, *new.pieces) for at in (run.range.start, run.range.end - 1, run.range.end)}
    for at in bounds:
        hits = [change for change in changes if at in change.range]
        assert bool(hits) == (seen(old, at) != seen(new, at)), hex(at)
        for change in hits:
            assert (change.before is None) == (seen(old, at) is None)
            assert (change.after is None) == (seen(new, at) is None)
