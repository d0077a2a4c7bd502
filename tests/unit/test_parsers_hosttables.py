# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ParseError
from harness.parsers.hosttables import (
    format_pages,
    format_sections,
    format_tables,
    parse_section_faults,
    parse_sections,
    parse_struct_pages,
    parse_tables,
)
from harness.state import (
    HostMapping,
    HostTables,
    NotObserved,
    Section,
    SectionFault,
    StructPage,
    TableCount,
    TableFault,
    TablePage,
)
from harness.units import AddrRange

ADDRESS = st.integers(0, (1 << 64) - 1)
LEVEL = st.sampled_from(["PGD", "P4D", "PUD", "PMD", "PTE"])
RANGE = st.tuples(ADDRESS, st.integers(0, 1 << 64)).map(lambda pair: AddrRange(min(pair), max(pair)))
WORD = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=8)
FLAG = st.sampled_from(["present", "has-mem-map", "online", "early", "zone-device", "bit-7"])


@given(
    st.lists(st.builds(HostMapping, RANGE, ADDRESS, LEVEL, st.lists(WORD, max_size=4).map(tuple)), max_size=5),
    st.lists(st.builds(TablePage, ADDRESS, LEVEL, RANGE, st.integers(0, 8192)), max_size=5),
    st.lists(
        st.builds(TableFault, ADDRESS, st.integers(0, 8191), ADDRESS, RANGE, st.just("points outside of memory")),
        max_size=5,
    ),
    st.builds(
        TableCount,
        st.integers(-(10**18), 10**18),
        *(st.integers(0, 10**11) for _ in range(2)),
        st.integers(1, 99),
        st.none() | st.integers(-(10**11), 10**11),
    ),
)
def test_tables_come_back_as_they_were(
    mappings: list[HostMapping], pages: list[TablePage], faults: list[TableFault], count: TableCount
) -> None:
    tables = HostTables(tuple(mappings), tuple(pages), tuple(faults), count)
    assert parse_tables(format_tables(tables)) == tables
    unseen = HostTables((), (), (), NotObserved("no symbols"))
    assert parse_tables(format_tables(unseen)) == unseen


@given(
    st.dictionaries(
        st.integers(0, 1 << 30),
        st.tuples(st.lists(FLAG, unique=True).map(tuple), ADDRESS, ADDRESS, st.none() | st.integers(0, (1 << 256) - 1)),
        max_size=6,
    )
)
def test_sections_come_back_as_they_were(entries: dict[int, tuple[tuple[str, ...], int, int, int | None]]) -> None:
    sections = tuple(Section(number, *entries[number]) for number in sorted(entries))
    faults = tuple(SectionFault(number, 256, 7, "a pointer that is not aligned") for number in sorted(entries))
    text = format_sections(sections, faults)
    assert (parse_sections(text), parse_section_faults(text)) == (sections, faults)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "neither 'map', 'table', 'fault' nor 'count'"),
        ("map 0x1000-0x2000 0x0 PTX RW", "neither 'map', 'table', 'fault' nor 'count'"),
        ("table 0x1000 PTE 0x2000-0x1000 3", "a range that runs backwards"),
        ("table 0x1000 PTE 0x2000-0x3000 -1", "neither 'map', 'table', 'fault' nor 'count'"),
    ],
)
def test_a_line_that_is_none_is_refused(line: str, why: str) -> None:
    with pytest.raises(ParseError, match=why):
        parse_tables(f"{line}\n")


def test_struct_pages_stand_beside_the_sections() -> None:
    pages: dict[int, StructPage | NotObserved] = {
        0x47FFF: StructPage(0x47FFF, 0x3FFFE0000002000, 1, 0, "DMA"),
        0x4FFFF: NotObserved("it is not initialized"),
    }
    text = "section 8 0xfffffdffc0000000 0xffff000001fff000 - present\n" + format_pages(pages)
    assert parse_struct_pages(text) == pages
    assert len(parse_sections(text)) == 1
    why = NotObserved("the kernel does not tell the layout of struct page")
    assert parse_struct_pages(format_pages(why)) == why
    with pytest.raises(ParseError, match="not 'page PFN FLAGS REFCOUNT NODE ZONE'"):
        parse_struct_pages("page 12\n")


def test_a_section_stands_once() -> None:
    line = "section 8 0xfffffdffc0000000 0xffff000001fff000 - present\n"
    assert parse_sections(line)[0].flags == ("present",)
    with pytest.raises(ParseError, match="the same section twice"):
        parse_sections(line * 2)
    with pytest.raises(ParseError, match="not 'section NUMBER"):
        parse_sections("section eight\n")
    with pytest.raises(ParseError, match="not 'fault FIRST COUNT ADDRESS REASON'"):
        parse_section_faults("fault 9\n")
