# SPDX-License-Identifier: GPL-2.0-or-later
"""Page-table dumps: recorded ones of arm64, and ones rendered like both kernels' ptdump.c."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.arch import ARM64, RISCV64, ArchSpec
from harness.errors import InfraError, ParseError
from harness.parsers.ptdump import parse_ptdump
from harness.state import Mapping, PageTables
from harness.units import GIB, KIB, MIB, AddrRange

FIXTURES = Path(__file__).parent / "fixtures"
TOP = 1 << 64

# (set, clear) of pte_bits in arch/arm64/mm/ptdump.c and arch/riscv/mm/ptdump.c (v6.12), in order
ARM64_BITS = [
    (" ", "F"),
    ("USR", "   "),
    ("ro", "RW"),
    ("NX", "x "),
    ("SHD", "   "),
    ("AF", "  "),
    ("NG", "  "),
    ("CON", "   "),
    ("   ", "BLK"),
    ("UXN", "   "),
    ("GP", "  "),
]
ARM64_TYPES = ["DEVICE/nGnRnE", "DEVICE/nGnRE", "MEM/NORMAL-NC", "MEM/NORMAL", "MEM/NORMAL-TAGGED", None]
RISCV_BITS = [
    ("N", "."),
    ("MT(NC)", "  ..  "),
    ("RSW(3)", "  ..  "),
    ("D", "."),
    ("A", "."),
    ("G", "."),
    ("U", "."),
    ("X", "."),
    ("W", "."),
    ("R", "."),
    ("V", "."),
]


def size_column(size: int) -> str:
    """``delta`` and ``unit`` as in note_page(), dump_addr()."""
    delta, units = size >> 10, "KMGTPE"
    while not delta & 1023 and units[1:]:
        delta, units = delta >> 10, units[1:]
    return f"{delta:9d}{units[0]}"


@dataclasses.dataclass
class Run:
    start: int
    end: int
    level: str
    columns: list[str] | None
    marker: str | None = None

    def words(self) -> tuple[str, ...]:
        return tuple(word for column in self.columns or () if (word := column.strip()) not in ("", ".", ".."))


def render(runs: list[Run], arch: ArchSpec) -> str:
    """``runs`` as printed by seq_printf: arm64 also prints unmapped ones (columns None), riscv a physical address."""
    out: list[str] = []
    for run in runs:
        if run.marker is not None:
            out.append(f"---[ {run.marker} ]---\n")
        if run.columns is None and arch is RISCV64:
            continue
        physical = f" 0x{0x80200000:016x} " if arch is RISCV64 else ""
        attributes = "".join(f" {column}" for column in run.columns or ())
        extent = f"0x{run.start:016x}-0x{run.end % TOP:016x}   {physical}{size_column(run.end - run.start)} {run.level}"
        out.append(f"{extent}{attributes}\n")
    return "".join(out)


def expected(runs: list[Run]) -> tuple[Mapping, ...]:
    region, out = "", []
    for run in runs:
        region = region if run.marker is None else run.marker
        if run.columns is not None:
            out.append(Mapping(AddrRange(run.start, run.end), run.level, run.words(), region))
    return tuple(out)


def arm64_columns() -> st.SearchStrategy[list[str]]:
    bits = st.tuples(*(st.sampled_from(pair) for pair in ARM64_BITS)).map(list)
    return st.builds(lambda head, kind: head + ([kind] if kind else []), bits, st.sampled_from(ARM64_TYPES))


def riscv_columns() -> st.SearchStrategy[list[str]]:
    choices = [list(pair) for pair in RISCV_BITS]
    choices[1] += ["MT(IO)", "MT(??)"]
    choices[2] += ["RSW(1)", "RSW(2)"]
    return st.tuples(*(st.sampled_from(choice) for choice in choices)).map(list)


@st.composite
def dumps(draw: st.DrawFn, columns: st.SearchStrategy[list[str]], page_size: int) -> list[Run]:
    """Adjacent runs that end at the top of the address space; the first follows a marker."""
    pages = draw(
        st.lists(st.one_of(st.integers(1, 600), st.sampled_from([1 << n for n in range(40)])), min_size=1, max_size=12)
    )
    at = TOP - sum(pages) * page_size
    runs = []
    for number, count in enumerate(pages):
        level = draw(st.sampled_from(["PGD", "P4D", "PUD", "PMD", "PTE"]))
        marker = f"marker {number} ]-" if number == 0 or draw(st.booleans()) else None
        runs.append(Run(at, at + count * page_size, level, draw(st.none() | columns), marker))
        at += count * page_size
    return runs


@pytest.mark.parametrize("page_size", [4 * KIB, 16 * KIB, 64 * KIB])
@given(st.data())
def test_arm64_round_trip(page_size: int, data: st.DataObject) -> None:
    runs = data.draw(dumps(arm64_columns(), page_size))
    tables = parse_ptdump(render(runs, ARM64), ARM64)
    assert tables.mappings == expected(runs)
    assert tables.markers == {run.marker: run.start for run in runs if run.marker is not None}


@given(dumps(riscv_columns(), 4 * KIB).filter(lambda runs: any(run.columns for run in runs)))
def test_riscv_round_trip(runs: list[Run]) -> None:
    tables = parse_ptdump(render(runs, RISCV64), RISCV64)
    assert tables.mappings == expected(runs)
    mapped = [run.start for run in runs if run.columns is not None]
    for run in runs:
        if run.marker is not None:
            assert tables.markers[run.marker] == next((start for start in mapped if start >= run.start), TOP)


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("arm64-*/ptdump.txt")), ids=lambda path: path.parent.name)
def test_recorded(path: Path) -> None:
    text = path.read_text()
    tables = parse_ptdump(text, ARM64)
    rows = [row for row in text.splitlines() if row.startswith("0x") and len(row.split()) > 3]
    assert len(tables.mappings) == len(rows)
    for mapping, row in zip(tables.mappings, rows, strict=True):
        words = row.split()
        assert words[0].startswith(f"0x{mapping.range.start:016x}-")
        assert (mapping.level, *mapping.attrs) == tuple(words[2:])
    assert list(tables.markers)[:2] == ["Linear Mapping start", "Linear Mapping end"]
    assert {mapping.region for mapping in tables.mappings} >= {"Linear Mapping start", "vmemmap start"}


def linear_bytes(tables: PageTables) -> int:
    return sum(run.range.size for run in tables.mappings if run.region == "Linear Mapping start")


def test_recorded_dimm_extends_the_linear_map_by_its_own_size() -> None:
    base = parse_ptdump((FIXTURES / "arm64-dimm-added/ptdump.txt").read_text(), ARM64)
    start = base.markers["Linear Mapping start"] + 0x8000_0000 - 0x4000_0000
    dimm = AddrRange.sized(start, GIB)
    runs = [run.range for run in base.mappings if run.range.overlaps(dimm)]
    assert sum(run.size for run in runs) == GIB and linear_bytes(base) > GIB


ARM64_TEXT = """\
---[ Linear Mapping start ]---
0xfff0000000000000-0xfff0000018000000         384M PMD       RW NX     AF NG CON BLK UXN    MEM/NORMAL-TAGGED
0xfff0000018000000-0xfff0000018001000           4K PTE F     RW NX SHD AF NG         UXN    MEM/NORMAL
0xfff0000018001000-0xffff800000000000   4260607164412K PTE
---[ Linear Mapping end ]---
---[ Modules start ]---
0xffff800000000000-0x0000000000000000         128T PGD
"""
RISCV_TEXT = """\
---[ Fixmap start ]---
---[ Fixmap end ]---
0xff1bfffffee00000-0xff1bffffff000000    0x0000000082200000         2M PMD .   ..     ..   D A G . . W R V
---[ vmemmap start ]---
0xff1c000002000000-0xff1c000004000000    0x0000000087400000        32M PMD N MT(IO) RSW(1) D A G . X W R V
---[ Kernel mapping ]---
"""


def test_arm64_text() -> None:
    tables = parse_ptdump(ARM64_TEXT, ARM64)
    block, invalid = tables.mappings
    assert block.attrs == ("RW", "NX", "AF", "NG", "CON", "BLK", "UXN", "MEM/NORMAL-TAGGED")
    assert (block.range.size, block.level, block.region) == (384 * MIB, "PMD", "Linear Mapping start")
    assert invalid.attrs == ("F", "RW", "NX", "SHD", "AF", "NG", "UXN", "MEM/NORMAL")
    assert tables.markers == {
        "Linear Mapping start": 0xFFF0000000000000,
        "Linear Mapping end": 0xFFFF800000000000,
        "Modules start": 0xFFFF800000000000,
    }


def test_riscv_text() -> None:
    tables = parse_ptdump(RISCV_TEXT, RISCV64)
    assert [run.attrs for run in tables.mappings] == [
        ("D", "A", "G", "W", "R", "V"),
        ("N", "MT(IO)", "RSW(1)", "D", "A", "G", "X", "W", "R", "V"),
    ]
    assert [run.region for run in tables.mappings] == ["Fixmap end", "vmemmap start"]
    assert tables.markers["Fixmap start"] == tables.markers["Fixmap end"] == 0xFF1BFFFFFEE00000
    assert tables.markers["Kernel mapping"] == TOP


def arm64_dump(*rows: tuple[int, int, str]) -> str:
    body = "".join(f"0x{a % TOP:016x}-0x{b % TOP:016x}   {size_column((b - a) % TOP)} {tail}\n" for a, b, tail in rows)
    return "---[ start ]---\n" + body


A, B, C = TOP - 3 * GIB, TOP - 2 * GIB, TOP - GIB
PROT = "PMD       RW NX SHD AF NG     BLK UXN    MEM/NORMAL"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "a dump without any run"),
        ("---[ start ]---\n", "a dump without any run"),
        (arm64_dump((C, TOP, PROT)).removeprefix("---[ start ]---\n"), "a run before the first marker"),
        (arm64_dump((A, C, PROT), (B, TOP, PROT)), "overlaps or precedes the previous run"),
        (arm64_dump((B, C, PROT), (A, B, PROT)), "overlaps or precedes the previous run"),
        (arm64_dump((A, TOP, PROT), (B, TOP, PROT)), "overlaps or precedes the previous run"),
        (arm64_dump((A, B, PROT)), "it is truncated"),
        (arm64_dump((C, TOP, PROT))[:-20], "ends in the middle of a line"),
        (arm64_dump((C, TOP, PROT)).replace("1G", "2G"), "the size is not end - start, 1G"),
        (arm64_dump((C, TOP, PROT)).replace("     1G", "  1024M"), "the size is not end - start, 1G"),
        (arm64_dump((C, C, PROT)), "an empty run, or one that runs backwards"),
        (arm64_dump((C, B, PROT)), "an empty run, or one that runs backwards"),
        (arm64_dump((C + 2048, TOP, PROT)), "not aligned to 4096 bytes"),
        (arm64_dump((C, TOP, "PMX")), "not a run of page-table entries"),
        (arm64_dump((C, TOP, PROT)).replace("0xffff", "0xFFFF"), "not a run of page-table entries"),
        ("cat: can't open 'kernel_page_tables': No such file or directory\n", "a dump without any run"),
        (arm64_dump((C, TOP, PROT.replace("RW", "rw"))), "needed attributes are missing"),
        (arm64_dump((C, TOP, PROT.replace("RW", "  "))), "needed attributes are missing"),
        (arm64_dump((C, TOP, PROT.replace("NX", "  "))), "needed attributes are missing"),
        (arm64_dump((C, TOP, "PMD ")), "needed attributes are missing"),
        (RISCV_TEXT, "needed attributes are missing"),
    ],
)
def test_arm64_refusals(text: str, why: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_ptdump(text, ARM64)
    assert why in str(caught.value)
    assert caught.value.source == "/sys/kernel/debug/kernel_page_tables"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (arm64_dump((C, TOP, PROT)), "needed attributes are missing"),
        (RISCV_TEXT.replace(" .   ..     ..   D A G . . W R V", ""), "needed attributes are missing"),
        (RISCV_TEXT.replace(" .   ..     ..   D A G . . W R V", " D A G . . W R"), "needed attributes are missing"),
        (RISCV_TEXT.replace("       32M", "       16M"), "the size is not end - start, 32M"),
        (RISCV_TEXT.replace("0xff1c0000", "0xff1a0000"), "overlaps or precedes the previous run"),
        ("---[ Fixmap start ]---\n", "a dump without any run"),
    ],
)
def test_riscv_refusals(text: str, why: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_ptdump(text, RISCV64)
    assert why in str(caught.value)


def test_an_architecture_without_a_format_is_named() -> None:
    with pytest.raises(InfraError, match="no parser for the page-table dumps of s390x"):
        parse_ptdump("", dataclasses.replace(ARM64, name="s390x"))


def test_a_hundred_thousand_lines() -> None:
    columns = ["  ", "   ", "RW", "NX", "SHD", "AF", "NG", "   ", "   ", "UXN", "  ", "MEM/NORMAL"]
    columns[0] = " "
    start = TOP - 100_000 * 4096
    runs = [
        Run(start + n * 4096, start + (n + 1) * 4096, "PTE", columns if n % 2 else None, "start" if n == 0 else None)
        for n in range(100_000)
    ]
    text = render(runs, ARM64)
    assert len(parse_ptdump(text, ARM64).mappings) == 50_000
