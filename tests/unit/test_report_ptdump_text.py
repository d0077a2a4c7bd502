# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables in the kernel's format: compared with recorded dumps and an entry-by-entry walk, and parsed back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ptdump_trees import (
    LEVELS,
    PAGE,
    PGD,
    PMD,
    START,
    TOP,
    WORDS,
    Table,
    as_the_kernel,
    host_tables,
    marker_sets,
    small,
    trees,
    walk,
)

from harness.arch import ARM64, RISCV64, ArchSpec, arch_named
from harness.arch.markers import MarkerSet, marker_set
from harness.errors import InfraError, ParseError, UsageError
from harness.parsers.hosttables import parse_tables
from harness.parsers.kernel_config import parse_config
from harness.parsers.ptdump import parse_ptdump
from harness.parsers.vmcoreinfo import parse_vmcoreinfo
from harness.report.notepage import dump_tables
from harness.report.ptdump_text import Dump, Run, dump_to_json, read_dump, render, select
from harness.state import HostMapping, HostTables, Mapping, TablePage
from harness.units import AddrRange

FIXTURES = Path(__file__).parent / "fixtures"
WALKS = FIXTURES / "walks"
RECORDED = sorted(FIXTURES.rglob("ptdump.txt"))
WALKED = sorted(WALKS.glob("*/states/*"))


def recorded_arch(path: Path) -> ArchSpec:
    return RISCV64 if "riscv64" in str(path) else ARM64


def walked_dump(state: Path) -> Dump:
    arch = arch_named(state.parts[-3])
    facts = state.parents[1] / "facts"
    note = parse_vmcoreinfo((facts / "vmcoreinfo.txt").read_text())
    told = parse_ptdump((state / "ptdump.txt").read_text(), arch).markers
    places = marker_set(arch, note, parse_config((facts / "config.txt").read_text()), told)
    return dump_tables(parse_tables((state / "host_tables.txt").read_text()), arch, int(note["PAGESIZE"]), places)


def text_of(dump: Dump) -> str:
    return "".join(render(dump))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: str(path.relative_to(FIXTURES)))
def test_a_recorded_dump_is_written_as_the_kernel_wrote_it(path: Path) -> None:
    text = path.read_text()
    dump = read_dump(text, recorded_arch(path))
    assert text_of(dump) == text
    assert not dump.exact and dump.addresses == {}


@pytest.mark.parametrize("state", WALKED, ids=lambda path: str(path.relative_to(WALKS)))
def test_a_walk_by_the_host_is_written_as_the_guest_wrote_it(state: Path) -> None:
    assert text_of(walked_dump(state)) == (state / "ptdump.txt").read_text()


def test_there_are_both_architectures() -> None:
    assert (
        {recorded_arch(path).name for path in RECORDED}
        == {state.parts[-3] for state in WALKED}
        == {
            "arm64",
            "riscv64",
        }
    )


def lines_of(dump: Dump) -> list[str]:
    depths = {name: depth for depth, (name, _) in enumerate(LEVELS)}
    return [
        line
        if isinstance(line, str)
        else repr((line.range.start, line.range.end, line.physical or 0, depths[line.level], line.attrs))
        for line in dump.lines
    ]


@pytest.mark.parametrize("arch", [ARM64, RISCV64], ids=lambda arch: arch.name)
@given(data=st.data())
def test_the_same_as_a_walk_entry_by_entry(arch: ArchSpec, data: st.DataObject) -> None:
    root, places = data.draw(trees(arch.name)), data.draw(marker_sets(arch.name))
    entries = (entry for entry in walk(root, 0, START[arch.name]) if entry[0] < TOP)
    tables = host_tables(root, arch.name)
    tables = dataclasses.replace(tables, pages=tuple(data.draw(st.permutations(tables.pages))))
    dump = dump_tables(tables, arch, PAGE, places)
    assert lines_of(dump) == as_the_kernel(entries, arch.name, places)
    # the output parses back to the same runs, and prints the same again
    text = text_of(dump)
    runs = [run for run in dump.runs if run.attrs]
    if runs:
        parsed = parse_ptdump(text, arch)
        assert parsed.mappings == tuple(Mapping(run.range, run.level, run.attrs, run.region) for run in runs)
        assert text_of(read_dump(text, arch)) == text
    # the pieces cover the mappings
    assert sum(piece.range.size for piece in dump.pieces) == sum(run.range.size for run in runs)
    assert all(piece.physical is not None for piece in dump.pieces)


COLUMNS = {
    "arm64": (
        ("", "F"), ("", "USR"), ("ro", "RW"), ("NX", "x"), ("", "SHD"), ("", "AF"), ("", "NG"), ("", "CON"),
        ("", "BLK"), ("", "UXN"), ("", "GP"),
        ("", "DEVICE/nGnRnE", "DEVICE/nGnRE", "MEM/NORMAL-NC", "MEM/NORMAL", "MEM/NORMAL-TAGGED"),
    ),
    "riscv64": (
        ("", "N"), ("", "MT(NC)", "MT(IO)", "MT(??)"), ("", "RSW(1)", "RSW(2)", "RSW(3)"),
        *(("", letter) for letter in "DAGUXWR"), ("V",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("arch", [ARM64, RISCV64], ids=lambda arch: arch.name)
@given(data=st.data())
def test_all_attributes_read_back(arch: ArchSpec, data: st.DataObject) -> None:
    drawn = data.draw(st.tuples(*(st.sampled_from(column) for column in COLUMNS[arch.name])))
    words = tuple(word for word in drawn if word)
    level = data.draw(st.sampled_from(["PGD", "P4D", "PUD", "PMD", "PTE"]))
    runs = (
        Run(AddrRange(TOP - 2 * PMD, TOP - PMD), level, words, 0x8000_0000, "A region"),
        Run(AddrRange(TOP - PMD, TOP), "PMD", WORDS[arch.name][0], 0x1000, "A region"),
    )
    dump = Dump(arch.name, ("A region", *runs), runs, True, {})
    again = read_dump(text_of(dump), arch)
    known = arch is RISCV64
    assert again.lines[1:] == tuple(run if known else dataclasses.replace(run, physical=None) for run in runs)


def test_a_guests_dump_is_read_strictly() -> None:
    with pytest.raises(ParseError, match="not a run of page-table entries"):
        read_dump("---[ A ]---\n0xnonsense\n", ARM64)


SMALL = """\
---[ Linear start ]---
0xffffff8000000000-0xffffff8000400000           4M PMD       RW NX     AF            UXN    MEM/NORMAL
0xffffff8000400000-0xffffff8000402000           8K PTE       RW NX     AF            UXN    MEM/NORMAL
0xffffff8000402000-0xffffff8000600000        2040K PTE
0xffffff8000600000-0xffffff8040000000        1018M PMD
---[ Linear end ]---
0xffffff8040000000-0x0000000000000000         511G PGD
"""


def test_holes_are_named_by_the_table_they_are_in() -> None:
    assert text_of(small()) == SMALL


def test_tables_may_come_in_any_order() -> None:
    start = START["arm64"]
    tables = host_tables({0: {0: {0: (WORDS["arm64"][0], 0)}}}, "arm64")
    places = MarkerSet(start, ((start, "a"),), ())
    turned = dataclasses.replace(tables, pages=tables.pages[::-1])
    assert dump_tables(turned, ARM64, PAGE, places) == dump_tables(tables, ARM64, PAGE, places)


def test_riscv_prints_no_holes_and_where_a_run_leads() -> None:
    start = START["riscv64"]
    assert start == 0xFFFFFFC000000000
    assert text_of(small(RISCV64)) == (
        "---[ Linear start ]---\n"
        "0xffffffc000000000-0xffffffc000400000    0x0000000000000000         4M PMD .   ..     ..   D A G . . W R V\n"
        "0xffffffc000400000-0xffffffc000402000    0x0000000000005000         8K PTE .   ..     ..   D A G . . W R V\n"
        "---[ Linear end ]---\n"
    )


def test_riscv_passes_no_second_marker_at_the_first_entry_but_all_of_them_at_the_next() -> None:
    start, page = START["riscv64"], WORDS["riscv64"][0]
    table: Table = {0: {0: {0: (page, 0), 1: (page, PAGE)}}}
    dump = small(RISCV64, table, *((start, f"marker {number}") for number in range(4)))
    assert [line if isinstance(line, str) else line.range.start - start for line in dump.lines] == [
        "marker 0",
        0,
        "marker 1",
        "marker 2",
        "marker 3",
        PAGE,
    ]


def test_arm64_passes_one_marker_at_the_first_entry_and_two_at_others() -> None:
    start, page = START["arm64"], WORDS["arm64"][0]
    table: Table = {0: {0: {0: (page, 0), 1: (page, PAGE), 2: (page, 2 * PAGE)}}}
    dump = small(ARM64, table, *((start, f"marker {number}") for number in range(5)))
    assert [line if isinstance(line, str) else line.range.start - start for line in dump.lines][:8] == [
        "marker 0",
        "marker 1",
        0,
        "marker 2",
        "marker 3",
        PAGE,
        "marker 4",
        2 * PAGE,
    ]


def test_a_marker_in_a_run_that_goes_on_in_the_next_table() -> None:
    start, page = START["riscv64"], WORDS["riscv64"][0]
    full: Table = {index: (page, 0x4000_0000 + index * PAGE) for index in range(512)}
    more: Table = {index: (page, 0x4020_0000 + index * PAGE) for index in range(512)}
    table: Table = {0: {0: full, 1: more}}
    dump = small(RISCV64, table, (start, "a"), (start + 5 * PAGE - 1, "b"), (start + PMD + 3 * PAGE, "c"))
    assert [(run.range.start - start, run.physical, run.region) for run in dump.runs] == [
        (0, 0x4000_0000, "a"),
        (5 * PAGE, 0x4000_5000, "b"),
        (PMD + 3 * PAGE, 0x4020_3000, "c"),
    ]
    assert dump.pieces == tuple(dump.runs)


def test_a_dump_that_begins_inside_of_tables() -> None:
    start, page = START["riscv64"], WORDS["riscv64"][0]
    table: Table = {0: {0: {1: (page, 0)}, 1: {index: (page, index * PAGE) for index in range(512)}}}
    places = MarkerSet(start + PMD + 2 * PAGE, ((start + PMD + 2 * PAGE, "a"), (start + PMD + 4 * PAGE, "b")), ())
    dump = dump_tables(host_tables(table, "riscv64"), RISCV64, PAGE, places)
    assert [(run.range.start - start - PMD, run.range.size, run.physical) for run in dump.runs] == [
        (2 * PAGE, 2 * PAGE, 2 * PAGE),
        (4 * PAGE, 508 * PAGE, 4 * PAGE),
    ]


@pytest.mark.parametrize(
    ("size", "column"),
    [(PAGE, "4K"), (1 << 20, "1M"), (1025 << 20, "1025M"), (1 << 50, "1P"), (3 << 60, "3E"), (513 << 50, "513P")],
)
def test_sizes(size: int, column: str) -> None:
    run = Run(AddrRange.sized(0, size), "PGD", (), None, "a")
    [line] = render(Dump("arm64", (run,), (), True, {}))
    assert line.split("   ", 1)[1] == f"{column:>10} PGD\n"


def test_pieces_lead_where_they_lead() -> None:
    assert [(piece.range.size, piece.physical) for piece in small().pieces] == [
        (2 * PMD, 0),
        (PAGE, 0x5000),
        (PAGE, 0x9000),
    ]


@pytest.mark.parametrize("name", ["Linear start", "linear START", "lin"])
def test_one_region(name: str) -> None:
    found = select(small(), name, [])
    assert text_of(found) == "".join(SMALL.splitlines(keepends=True)[:5])
    assert len(found.pieces) == 3


def test_the_exact_name_of_a_region_comes_first() -> None:
    start = START["arm64"]
    dump = small(ARM64, None, (start, "Linear map"), (start + PGD, "Linear"))
    assert [line.region for line in select(dump, "linear", []).runs] == ["Linear"]
    assert next(line.region for line in select(dump, "linear m", []).runs) == "Linear map"


def test_an_unknown_region() -> None:
    with pytest.raises(UsageError, match=r"--region: unknown marker 'vm\\x1b'") as caught:
        select(small(), "vm\x1b", [])
    assert caught.value.hint == "known: 'Linear start', 'Linear end'"
    with pytest.raises(UsageError, match="unknown marker ''"):
        select(small(), "", [])


def test_runs_that_touch_a_range_are_shown_whole_under_their_marker() -> None:
    start = START["arm64"]
    rows = SMALL.splitlines(keepends=True)
    found = select(small(), None, [AddrRange(start + PMD, start + PMD + PAGE)])
    assert text_of(found) == rows[0] + rows[1]
    assert [(piece.range, piece.physical) for piece in found.pieces] == [
        (AddrRange(start + PMD, start + PMD + PAGE), PMD)
    ]
    assert text_of(select(small(), None, [AddrRange(TOP - PAGE, TOP)])) == rows[5] + rows[6]
    both = select(small(), None, [AddrRange(start, start + 1), AddrRange(start + 2 * PMD, start + 2 * PMD + 1)])
    assert text_of(both) == "".join(rows[:3])
    assert text_of(select(small(), "linear end", [AddrRange(start, start + 1)])) == rows[5]


def test_json_has_every_run_and_where_markers_are() -> None:
    found = json.loads(json.dumps(dump_to_json(small())))
    assert found["markers"] == [
        {"name": "Linear start", "address": "0xffffff8000000000"},
        {"name": "Linear end", "address": "0xffffff8040000000"},
    ]
    assert found["runs"][1] == {
        "start": "0xffffff8000400000",
        "end": "0xffffff8000402000",
        "region": "Linear start",
        "mapped": True,
        "level": "PTE",
        "attributes": ["RW", "NX", "AF", "UXN", "MEM/NORMAL"],
        "physical": "0x5000",
    }
    assert found["runs"][-1]["end"] == "0x10000000000000000" and not found["runs"][-1]["mapped"]
    assert dump_to_json(read_dump(SMALL, ARM64))["markers"] == [
        {"name": "Linear start", "address": None},
        {"name": "Linear end", "address": None},
    ]


def test_a_markers_name_cannot_steer_a_terminal() -> None:
    assert next(render(Dump("arm64", ("\x1b[2J",), (), True, {}))) == "---[ \\x1b[2J ]---\n"


ROOT = TablePage(0, "PGD", AddrRange(TOP - 512 * PGD, TOP), 1)
MIDDLE = TablePage(PAGE, "PMD", AddrRange.sized(TOP - PGD, PGD), 1)
LOW = TablePage(2 * PAGE, "PTE", AddrRange.sized(TOP - PGD, PMD), 1)
FIRST = HostMapping(AddrRange.sized(TOP - PGD, 2 * PAGE), 0, "PTE", ("RW", "NX"))


@pytest.mark.parametrize(
    ("arch", "tables", "why"),
    [
        (ARM64, HostTables((), (), ()), "the walk found no root table, or nothing below it"),
        (ARM64, HostTables((), (ROOT,), ()), "the walk found no root table, or nothing below it"),
        (ARM64, HostTables((), (ROOT, ROOT, MIDDLE), ()), "the walk found no root table"),
        (
            ARM64,
            HostTables((), (ROOT, MIDDLE, dataclasses.replace(LOW, range=AddrRange.sized(TOP - PGD, 2 * PGD))), ()),
            "the table at physical 0x2000 extends beyond its parent table",
        ),
        (
            ARM64,
            HostTables((), (ROOT, MIDDLE, dataclasses.replace(LOW, range=AddrRange(TOP + PAGE, TOP + PMD))), ()),
            "the table at physical 0x2000 extends beyond its parent table",
        ),
        (
            ARM64,
            HostTables((FIRST, dataclasses.replace(FIRST, range=AddrRange.sized(TOP - PGD + PAGE, PAGE))), (), ()),
            "two mappings of the walk overlap at 0xffffffffc0001000",
        ),
        (
            ARM64,
            HostTables((dataclasses.replace(FIRST, attrs=("NX", "RW")),), (ROOT, MIDDLE, LOW), ()),
            "the kernel's dump has no column for the attribute 'RW' at this position",
        ),
        (
            dataclasses.replace(ARM64, name="sparc64"),
            HostTables((), (), ()),
            "unknown page-table dump format of sparc64",
        ),
    ],
)
def test_tables_that_cannot_be(arch: ArchSpec, tables: HostTables, why: str) -> None:
    with pytest.raises(InfraError, match=why):
        text_of(dump_tables(tables, arch, PAGE, MarkerSet(TOP - 512 * PGD, ((TOP - 512 * PGD, "start"),), ())))
