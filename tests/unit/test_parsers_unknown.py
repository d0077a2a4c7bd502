# SPDX-License-Identifier: GPL-2.0-or-later
"""Text that memhp does not know is skipped and counted; a line that no kernel prints is kept as evidence."""

from __future__ import annotations

import contextlib
import gzip
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from iomem_text import render_iomem

from harness.arch import ARM64, RISCV64
from harness.errors import ParseError
from harness.parsers.blocks import parse_blocks
from harness.parsers.dax import parse_dax
from harness.parsers.elf_core import load_segments
from harness.parsers.iomem import looks_torn, parse_iomem
from harness.parsers.kernel_config import parse_config
from harness.parsers.meminfo import parse_meminfo
from harness.parsers.notes import MAX_GARBLED, MAX_SHOWN, MAX_UNKNOWN, Notes, printable, summed
from harness.parsers.ptdump import parse_ptdump
from harness.parsers.slabinfo import parse_slabinfo
from harness.parsers.vmcoreinfo import parse_vmcoreinfo
from harness.parsers.vmstat import parse_vmstat
from harness.parsers.zoneinfo import parse_zoneinfo
from harness.state import IomemEntry, Mapping, Unknown
from harness.units import AddrRange

FIXTURES = Path(__file__).parent / "fixtures"
Parser = Callable[[str, Notes], Any]


def read(file: str) -> str:
    return (FIXTURES / file).read_text()


def unknown(parse: Parser, text: str) -> list[tuple[str, str]]:
    notes = Notes()
    parse(text, notes)
    assert notes.garbled == ()
    return [(note.kind, note.example) for note in notes.unknown]


def garbled(parse: Parser, text: str) -> list[tuple[int, str]]:
    notes = Notes()
    parse(text, notes)
    return [(line.line, line.why) for line in notes.garbled]


# /proc/iomem -----------------------------------------------------------------------------------------------------

RAM = "40000000-7fffffff : System RAM\n"


def chain(levels: int) -> str:
    """Nested entries, each two pages smaller than its parent."""
    ranges = [(0x1000 * at, 0xFFFF0FFF - 0x1000 * at) for at in range(levels)]
    return "".join(f"{'  ' * at}{start:08x}-{last:08x} : level {at}\n" for at, (start, last) in enumerate(ranges))


def depth(entry: IomemEntry) -> int:
    return 1 + max(map(depth, entry.children), default=0)


def test_iomem_nested_as_deep_as_newer_kernels_print() -> None:
    (entry,) = parse_iomem(chain(9))
    assert depth(entry) == 9
    assert unknown(parse_iomem, chain(9)) == []
    found = unknown(parse_iomem, chain(11))
    assert [kind for kind, _ in found] == ["line nested deeper than 8 levels"]


@pytest.mark.parametrize("deepest", [5, 8])
def test_iomem_nested_deeper_than_the_kernel_indents(deepest: int) -> None:
    """The kernel stops indenting at its last level: a range there is a child of the one before if that contains it."""
    rows = chain(deepest + 3).splitlines(keepends=True)
    flat = "".join(f"{'  ' * min(at, deepest)}{row.lstrip(' ')}" for at, row in enumerate(rows))
    (entry,) = parse_iomem(flat)
    assert depth(entry) == deepest + 3
    last_page = 0xFFFF1000 - 0x1000 * deepest
    beside = f"{flat}{'  ' * deepest}{last_page:08x}-{last_page + 0xFFF:08x} : beside\n"
    (entry,) = parse_iomem(beside)
    for _ in range(deepest - 1):
        entry = entry.children[0]
    assert [child.name for child in entry.children] == [f"level {deepest}", "beside"]


def test_iomem_nested_without_end_stays_shallow() -> None:
    text = "".join(f"{'  ' * at}00001000-00001fff : x\n" for at in range(3000))
    notes = Notes()
    (entry,) = parse_iomem(text, notes)
    assert depth(entry) < 40
    assert sum(note.count for note in notes.unknown) > 20 and len(notes.garbled) == MAX_GARBLED


ODD_NAMES = f"""\
00000000-00000fff : <BAD>
01000000-01000000 : APEI ERST
09000000-08ffffff : Crash kernel
{RAM}  40000000-4000ffff : Reserved
  40010000-4001ffff : reserved
  50000000-5fffffff : Crash kernel
  60000000-6fffffff : Crash kernel
  70000000-7000ffff : Soft Reserved
80000000-8fffffff : CXL Window 0
  80000000-8fffffff : region0
    80000000-8fffffff : dax0.0
      80000000-8fffffff : System RAM (kmem)
"""


def test_iomem_with_every_odd_name_that_readers_stumbled_over() -> None:
    notes = Notes()
    entries = parse_iomem(ODD_NAMES, notes)
    assert notes.unknown == notes.garbled == ()
    assert render_iomem(entries) == ODD_NAMES
    assert [entry.name for entry in entries[:3]] == ["<BAD>", "APEI ERST", "Crash kernel"]
    assert entries[1].range.size == 1 and entries[2].range == AddrRange(0x9000000, 0x9000000)
    assert [child.name for child in entries[3].children][2:4] == ["Crash kernel", "Crash kernel"]
    assert depth(entries[4]) == 4


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("09000000-09000fff : \n", 2, "a resource without a name"),
        ("09000000-09000fff : Sys\ntem\n", 3, "not '<start>-<end> : <name>'"),
        ("09000000-09000fff : a\n\n", 3, "not '<start>-<end> : <name>'"),
        ("09000000-09000fff : \x01\x02k\n", 2, r"character '\x01' does not belong in this file"),
        ("09000000-09000fff : k\ufffd\ufffd\n", 2, "character '\ufffd' does not belong in this file"),
        ("09000000-08fffffe : x\n", 2, "range runs backwards"),
        ("000009000000-000009000fff : x\n", 2, "address 000009000000 is padded beyond eight digits"),
        ("   40000000-40000fff : x\n", 2, "indented by 3 spaces, which is not a multiple of two"),
        ("    40000000-40000fff : x\n", 2, "nested 2 levels deep below a line at level 0"),
    ],
)
def test_iomem_that_no_kernel_prints_is_evidence_and_the_rest_is_still_there(text: str, line: int, why: str) -> None:
    notes = Notes()
    entries = parse_iomem(f"{RAM}{text}c0000000-ffffffff : last\n", notes)
    assert (line, why) in [(found.line, found.why) for found in notes.garbled]
    assert {found.source for found in notes.garbled} == {"/proc/iomem"}
    assert (entries[0].name, entries[-1].name) == ("System RAM", "last")


def test_iomem_that_changed_while_it_was_read() -> None:
    assert not looks_torn(ODD_NAMES) and not looks_torn(chain(9)) and not looks_torn("")
    assert looks_torn(RAM + RAM)
    assert looks_torn(f"{RAM}    40000000-4000ffff : child of a line that was left out\n")
    assert [entry.name for entry in parse_iomem(RAM + RAM, Notes())] == ["System RAM", "System RAM"]


# sysfs -----------------------------------------------------------------------------------------------------------

BLOCK = """\
memory32/state:offline
memory32/phys_index:00000020
memory32/removable:1
memory32/valid_zones:Normal Movable
memory32/node:0
"""


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("memory32/phys_device:0", ("file of a memory block", "phys_device:0")),
        ("memory_failure/total:0", ("line", "memory_failure/total:0")),
        ("hard_offline_page:", ("line", "hard_offline_page:")),
        ("memory032/state:online", ("line", "memory032/state:online")),
        ("cat: state: No such file", ("line", "cat: state: No such file")),
    ],
)
def test_other_files_beside_memory_blocks(line: str, note: tuple[str, str]) -> None:
    assert parse_blocks(f"{BLOCK}{line}\n", Notes()) == parse_blocks(BLOCK)
    assert unknown(parse_blocks, f"{BLOCK}{line}\n") == [note]


@pytest.mark.parametrize("state", ["online", "going-offline", "ERROR-UNKNOWN-7", "online_movable", "half"])
def test_any_word_is_a_state_of_a_block(state: str) -> None:
    notes = Notes()
    assert parse_blocks(BLOCK.replace("offline", state), notes)[0].state == state
    assert notes.unknown == notes.garbled == ()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("memory33/phys_index:00000021\n", "memory33 has no state"),
        ("memory32/state:offline\n", "the same file twice"),
        ("memory32/node:0\n", "the same node link twice"),
        ("memory33/state:\nmemory33/phys_index:00000021\n", "not valid content of 'state'"),
        (
            "memory32/x:\x07\n",
            r"character '\x07' does not belong in this file",
        ),
    ],
)
def test_blocks_that_no_kernel_has_are_evidence(text: str, why: str) -> None:
    assert why in [found for _, found in garbled(parse_blocks, BLOCK + text)]
    assert parse_blocks(BLOCK + text, Notes())[0] == parse_blocks(BLOCK)[0]


def test_other_files_of_a_dax_device() -> None:
    dax = read("arm64-built/dax-kmem.txt")
    assert unknown(parse_dax, f"{dax}dax0.0/numa_node:0\ndax/x:1\n") == [
        ("file of a dax device", "numa_node:0"),
        ("line", "dax/x:1"),
    ]
    assert parse_dax(f"{dax}dax0.0/numa_node:0\n") == parse_dax(dax)


# counters --------------------------------------------------------------------------------------------------------

ZONES = read("arm64-dimm-online/zoneinfo.txt")


@pytest.mark.parametrize(
    ("after", "line", "known"),
    [
        (r"  start_pfn: .*\n", "  reserved_highatomic: 0\n  free_highatomic:     0\n", True),
        (r"  start_pfn: .*\n", "  reserved_atomic: 0\n", False),
        (r"      nr_free_pages .*\n", "      nr_new_in_this_kernel 7\n", True),
        (r"        managed .*\n", "        borrowed 0\n", False),
        (r"              batch: .*\n", "              high_min: 3\n              high_max: -1\n", True),
        (r"              batch: .*\n", "              colour: 3\n", False),
        (r"  per-node stats\n", "  per-tier stats\n", False),
    ],
)
def test_zoneinfo_with_new_lines(after: str, line: str, known: bool) -> None:
    text = re.sub(f"({after})", rf"\g<1>{line}", ZONES)
    assert text != ZONES and parse_zoneinfo(text, Notes()) == parse_zoneinfo(ZONES)
    assert unknown(parse_zoneinfo, text) == ([] if known else [("line", line[:-1])])


def test_zoneinfo_that_no_kernel_prints_is_evidence() -> None:
    first = ZONES.index("Node", 1)
    assert (1, "this zone is repeated") not in garbled(parse_zoneinfo, ZONES)
    assert "this zone is repeated" in [why for _, why in garbled(parse_zoneinfo, ZONES + ZONES[:first])]
    assert parse_zoneinfo(ZONES + ZONES[:first], Notes()) == parse_zoneinfo(ZONES)


def test_meminfo_and_vmstat_with_new_names() -> None:
    meminfo, vmstat = read("arm64-built/meminfo.txt"), read("arm64-built/vmstat.txt")
    assert parse_meminfo(f"{meminfo}GPU-Active(x):   4 kB\n")["GPU-Active(x)"] == 4096
    assert parse_vmstat(f"{vmstat}pgsteal.new-1 7\n")["pgsteal.new-1"] == 7
    assert unknown(parse_meminfo, meminfo + "Borrowed: 4 MB\n") == [("line", "Borrowed: 4 MB")]
    assert unknown(parse_meminfo, meminfo + "HugePages_Lost: 4 kB\n") == [("line", "HugePages_Lost: 4 kB")]
    assert unknown(parse_vmstat, vmstat + "nr_pair 1 2\n") == [("line", "nr_pair 1 2")]


def test_which_of_two_values_counts_nobody_can_tell() -> None:
    assert parse_vmstat("nr_free_pages 1\na 1\na 2\n", Notes()) == {"nr_free_pages": 1}
    assert unknown(parse_vmstat, "nr_free_pages 1\na 1\na 2\n") == [("name with two values", "a 2")]
    assert parse_meminfo("MemTotal: 1 kB\na: 1 kB\na: 2 kB\n", Notes()) == {"MemTotal": 1024}
    assert parse_config("CONFIG_A=y\nCONFIG_B=y\nCONFIG_B=m\n", Notes()) == {"A": "y"}
    assert unknown(parse_config, "CONFIG_A=y\nCONFIG_B=y\nCONFIG_B=m\n") == [("option with two values", "CONFIG_B=m")]
    assert parse_vmcoreinfo("OSRELEASE=x\nA=1\nA=2\nB=1\nB=1\n", Notes()) == {"OSRELEASE": "x", "B": "1"}
    assert unknown(parse_vmcoreinfo, "OSRELEASE=x\nA=1\nA=2\n") == [("key with two values", "A=2")]


def test_what_config_and_vmcoreinfo_say_beside_their_values() -> None:
    assert unknown(parse_config, 'CONFIG_A=y\nB=y\nCONFIG_C=maybe\nCONFIG_D="x"y"\n') == [
        ("line", "B=y"),
        ("line", "CONFIG_C=maybe"),
        ("line", 'CONFIG_D="x"y"'),
    ]
    text = "OSRELEASE=x\n0x0000000040218000 1024\n=3\nA(b=3\n"
    assert [example for _, example in unknown(parse_vmcoreinfo, text)] == ["0x0000000040218000 1024", "=3", "A(b=3"]


def test_slabinfo_with_another_version_and_more_columns() -> None:
    old = read("arm64-stock/slabinfo.txt")
    wanted = parse_slabinfo(old)
    rows = old.replace("2.1", "3.0", 1).replace("<objsize>", "<align> <objsize>", 1).splitlines(keepends=True)
    wider = [re.sub(r"^(\S.*?\s+\d+\s+\d+)(\s+\d+\s+\d+\s+\d+ : )", r"\1 64\2", row) for row in rows[2:]]
    text = "".join([*rows[:2], *wider])
    assert parse_slabinfo(text) == wanted
    assert unknown(parse_slabinfo, text) == [("version", "slabinfo - version: 3.0"), ("column", "<align>")]
    debug = old.replace("2.1", "2.1 (statistics)", 1).replace("<sharedavail>", "<sharedavail> : cpustat <hit>", 1)
    debug = re.sub(r"(slabdata .*\d)$", r"\1 : cpustat 5", debug, flags=re.MULTILINE)
    assert parse_slabinfo(debug) == wanted


def test_a_cache_whose_name_was_freed_is_evidence() -> None:
    old = read("arm64-stock/slabinfo.txt")
    for name, line, why in (
        ("", 3, "expected 5 numbers behind a cache's name"),
        ("x\ny", 3, "not a cache: it does not have the columns of the header"),
        ("x\x10", 3, r"character '\x10' does not belong in this file"),
    ):
        text = re.sub(r"^(#.*\n)\S+", lambda match, name=name: match[1] + name, old, count=1, flags=re.MULTILINE)
        assert (line, why) in garbled(parse_slabinfo, text)
        assert parse_slabinfo(text, Notes())[-1] == parse_slabinfo(old)[-1]


# the page-table dump ---------------------------------------------------------------------------------------------

DUMP = read("arm64-dimm-added/ptdump.txt")
RISCV = """\
---[ vmemmap start ]---
0xff1c000002000000-0xff1c000004000000    0x0000000087400000        32M PMD .   ..     ..   D A G . . W R V
0xff1c000004000000-0xff1c000004200000    0x0000000089400000         2M PMD N MT(IO) RSW(1) D A G . X W R V
"""


def test_riscv_dumps_with_other_columns() -> None:
    wanted = parse_ptdump(RISCV, RISCV64).mappings
    assert wanted[0] == Mapping(
        AddrRange(0xFF1C000002000000, 0xFF1C000004000000), "PMD", ("D", "A", "G", "W", "R", "V"), "vmemmap start"
    )
    older = RISCV.replace(" .   ..     ..  ", "    ").replace(" N MT(IO) RSW(1)", " RSW")
    assert [run.attrs for run in parse_ptdump(older, RISCV64).mappings] == [
        ("D", "A", "G", "W", "R", "V"),
        ("RSW", "D", "A", "G", "X", "W", "R", "V"),
    ]
    newer = RISCV.replace(" D A G", " SS  D A G").replace("    0x0000000087", "    0x1234  0x0000000087")
    parse = partial(parse_ptdump, arch=RISCV64)
    assert parse(newer).mappings == wanted
    notes = Notes()
    parse(newer, notes=notes)
    assert {(note.kind, note.example.partition(" ")[0]) for note in notes.unknown} == {("attribute", "SS")}


def test_arm64_dumps_with_other_columns_and_lines() -> None:
    def parse(text: str, notes: Notes) -> Any:
        return parse_ptdump(text, ARM64, notes)

    wanted = parse_ptdump(DUMP, ARM64)
    assert parse(DUMP.replace(" MEM/NORMAL", " PIE MEM/NORMAL"), Notes()) == wanted
    found = unknown(parse, DUMP.replace(" MEM/NORMAL\n", " PIE MEM/NORMAL\n"))
    assert found and all(kind == "attribute" and example.startswith("PIE in 0x") for kind, example in found)
    assert parse(f"page tables of init_mm\n{DUMP}", Notes()) == wanted
    assert unknown(parse, f"page tables of init_mm\n{DUMP}") == [("line", "page tables of init_mm")]
    rows = DUMP.splitlines(keepends=True)
    hole = next(row for row in rows if row.startswith("0x") and len(row.split()) == 3)
    assert [kind for kind, _ in unknown(parse, DUMP.replace(hole, ""))] == ["gap in front of a run"]


def test_a_dump_that_no_kernel_prints_is_evidence() -> None:
    def parse(text: str, notes: Notes) -> Any:
        return parse_ptdump(text, ARM64, notes)

    rows = DUMP.splitlines(keepends=True)
    at = next(number for number, row in enumerate(rows) if row.startswith("0x") and len(row.split()) > 3)
    for other, why in (
        (rows[at] + rows[at], "overlaps or precedes the previous run"),
        (re.sub(r"-0x\w+", "-" + rows[at][:18], rows[at]), "an empty run, or one that runs backwards"),
        (re.sub(r" \d+([KMG]) ", r" 3\1 ", rows[at]), "the size is not end - start"),
    ):
        found = garbled(parse, "".join([*rows[:at], other, *rows[at + 1 :]]))
        assert [line for line, _ in found] == [at + (2 if other.count("\n") == 2 else 1)]
        assert found[0][1].startswith(why)


# core files ------------------------------------------------------------------------------------------------------


def test_segments_without_a_physical_address_are_left_out() -> None:
    data = gzip.decompress((FIXTURES / "arm64-stock/kcore.bin.gz").read_bytes())
    segments = load_segments(data, "/proc/kcore")
    assert segments and all(segment.physical.end < 1 << 63 for segment in segments)
    assert int.from_bytes(data[56:58], "little") > len(segments) + 1


# the notes themselves --------------------------------------------------------------------------------------------


def test_numbers_do_not_make_lines_different() -> None:
    notes = Notes()
    for value in (1, 22, 333):
        notes.add_unknown("/proc/zoneinfo", "line", f"  borrowed: {value}")
    notes.add_unknown("/proc/zoneinfo", "line", "  lent: 1")
    assert notes.unknown == (
        Unknown("/proc/zoneinfo", "line", "  borrowed: 1", 3),
        Unknown("/proc/zoneinfo", "line", "  lent: 1", 1),
    )
    more = Notes()
    more.add_unknown("/proc/zoneinfo", "line", "  borrowed: 4", 5)
    assert summed([*notes.unknown, *more.unknown, *notes.unknown]) == (
        Unknown("/proc/zoneinfo", "line", "  borrowed: 1", 5),
        Unknown("/proc/zoneinfo", "line", "  lent: 1", 1),
    )


def test_notes_stay_small_and_clean() -> None:
    notes = Notes()
    for number in range(2000):
        name = "".join(chr(ord("a") + int(digit)) for digit in str(number))
        notes.add_unknown("x", "line", f"\x1b[2J{name}" + "y" * 5000)
        notes.add_garbled("x", number, f"\x07{name}" + "y" * 5000, "why")
    assert len(notes.unknown) == MAX_UNKNOWN and len(notes.garbled) == MAX_GARBLED
    assert sum(note.count for note in notes.unknown) == 2000
    for text in [note.example for note in notes.unknown] + [line.text for line in notes.garbled]:
        assert text.isprintable() and len(text) <= MAX_SHOWN + 1
    assert notes.unknown[0].example.startswith(r"\x1b[2Ja")
    assert printable("a\nb\u202e\udcff\t") == r"a\nb\u202e\udcff\t"


# an additional line ----------------------------------------------------------------------------------------------

RECORDED: dict[str, tuple[Parser, str]] = {
    "blocks": (parse_blocks, "arm64-dimm-added/blocks.txt"),
    "zoneinfo": (parse_zoneinfo, "arm64-dimm-online/zoneinfo.txt"),
    "meminfo": (parse_meminfo, "arm64-built/meminfo.txt"),
    "vmstat": (parse_vmstat, "arm64-built/vmstat.txt"),
    "dax": (parse_dax, "arm64-built/dax-kmem.txt"),
    "ptdump": (lambda text, notes: parse_ptdump(text, ARM64, notes), "arm64-dimm-added/ptdump.txt"),
}


@pytest.mark.parametrize("name", RECORDED)
@given(data=st.data())
def test_unknown_lines_change_nothing_and_are_counted(name: str, data: st.DataObject) -> None:
    parse, file = RECORDED[name]
    rows = read(file).splitlines(keepends=True)
    lines = data.draw(st.lists(st.text(st.characters(codec="ascii", categories=["L", "P", "S", "N"])), max_size=5))
    assume(not any(re.match(r"0x|\w+:|\S+ \d+$|(spanned|present|managed|start_pfn)\b", line) for line in lines))
    places = [data.draw(st.integers(0, len(rows)), label="place") for _ in lines]
    for place, line in sorted(zip(places, lines, strict=True), reverse=True):
        rows.insert(place, f"{line}\n")
    notes = Notes()
    assert parse("".join(rows), notes) == parse(read(file), Notes())
    assert sum(note.count for note in notes.unknown) == len(lines) and notes.garbled == ()


@pytest.mark.parametrize("name", [*RECORDED, "iomem", "slabinfo"])
@given(data=st.data())
def test_whatever_is_done_to_a_file_it_is_read_or_refused(name: str, data: st.DataObject) -> None:
    more = {
        "iomem": (parse_iomem, "arm64-dimm-added/iomem.txt"),
        "slabinfo": (parse_slabinfo, "arm64-stock/slabinfo.txt"),
    }
    parse, file = (RECORDED | more)[name]
    text = read(file)
    start, length = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 60))
    noise = data.draw(st.text(st.sampled_from("0123456789abcdefx -:<>[]().,\n\t\0\x1b\ufffdKMG"), max_size=30))
    notes = Notes()
    with contextlib.suppress(ParseError):
        parse(text[:start] + noise + text[start + length :], notes)
    assert len(notes.unknown) <= MAX_UNKNOWN and len(notes.garbled) <= MAX_GARBLED
