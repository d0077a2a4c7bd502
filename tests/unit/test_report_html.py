# SPDX-License-Identifier: GPL-2.0-or-later
"""The HTML report: well-formed, self-contained, and safe against guest output."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

from report_samples import BAD, GOOD, HOSTILE, INFRA, KNOWN, MISSED, REFUSED, SKIPPED, step

from harness.check import Verdict
from harness.report.book import Book, Entry, book_of
from harness.report.drawing import WIDTH, memory, scale_of, timeline
from harness.report.html import MAX_STEPS, to_html
from harness.report.trends import Night
from harness.scenarios.memorymap import MemoryMap
from harness.scenarios.result import RunResult
from harness.units import GIB, TIB, AddrRange

NOW = "2026-11-21T00:00:00+00:00"
VOID = {"meta", "path", "use"}
BEFORE = MemoryMap(((0, AddrRange(GIB, 2 * GIB), "System RAM"),), ((AddrRange(GIB, 2 * GIB), "online Normal"),))
AFTER = MemoryMap(
    (
        *BEFORE.iomem,
        (0, AddrRange(2 * GIB, 3 * GIB), f"virtio0 {HOSTILE}"),
        (1, AddrRange(2 * GIB, 2 * GIB + GIB // 2), "System RAM (virtio_mem)"),
        (0, AddrRange(TIB, TIB + GIB), "Persistent Memory"),
    ),
    (*BEFORE.blocks, (AddrRange(2 * GIB, 2 * GIB + GIB // 2), "offline")),
)


class Page(HTMLParser):
    """Asserts balanced tags, and records attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def links(self) -> list[str]:
        return [str(attrs["href"]) for tag, attrs in self.tags if tag == "a"]


def mapped() -> RunResult:
    return dataclasses.replace(
        GOOD,
        guest="riscv64",
        steps=(dataclasses.replace(step(0), memory=BEFORE), dataclasses.replace(step(1), memory=AFTER)),
    )


def book(*runs: RunResult) -> Book:
    return book_of(f"night {HOSTILE}", NOW, runs, {})


def test_it_is_well_formed_and_needs_nothing_else() -> None:
    text = to_html(book(GOOD, BAD, REFUSED, SKIPPED, INFRA, mapped()))
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "img", "iframe", "object", "x")]
    assert not re.search(r"url\(|@import|https?:", text), "no external resources"
    names = {name for _, attrs in page.tags for name in attrs}
    assert not {"src", "srcset", "style"} & names and not [name for name in names if name.startswith("on")]
    assert any("default-src 'none'" in str(attrs.get("content")) for _, attrs in page.tags)
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert all(link[1:] in ids for link in page.links() if link.startswith("#"))


def test_a_guest_cannot_get_out_of_its_text() -> None:
    evil = '</pre><script>alert(1)</script>" onload="x'
    run = dataclasses.replace(BAD, reason=evil, guest=evil, facts={"kernel": evil})
    text = to_html(Book(evil, NOW, (Entry(evil, run, {evil: evil}, ((evil, f"javascript:{evil}"),), evil),)))
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert "javascript:" not in text and "\x1b" not in text and "\u202e" not in text
    assert "<script>alert(1)" in "".join(page.text)


def test_it_tells_what_is_broken_and_where() -> None:
    text = "".join(Page(to_html(book(GOOD, BAD))).text)
    assert "2 runs: 1 passed, 1 FAIL; 3 min 20 s of guests." in text
    assert "BLK-1 broken." in text and "expectedoffline" in text and "observedonline" in text
    assert "LIN-1 not observed: the kernel has no CONFIG_PTDUMP_DEBUGFS" in text


def test_it_tells_which_known_bugs_were_met_and_which_were_not() -> None:
    text = to_html(book_of("memhp", NOW, [KNOWN, MISSED], {}))
    assert "<td>some-bug</td>" in text and "<td>other-bug</td><td>another title</td><td></td><td><a" in text
    assert '<span class="b b-known-bug">known bug</span>' in text and 'id="broken"' not in text
    assert "some-bug 1 min 40 s</a>" in text


def test_the_grid_has_every_cell_also_those_without_a_result() -> None:
    made = Book("m", NOW, (Entry("arm64/dimm-cycle", GOOD),), (("riscv64/dimm-cycle", {}), ("arm64/numa", {})))
    text = to_html(made)
    grid = text[text.index('id="grid"') : text.index("<h2>Runs")]
    assert grid.count("not run") == 2 and "1 passed, 2 not run" in text
    one, two = grid.split("</table>")[:2]
    assert "<th>scenario</th><th>arm64</th>" in one and one.count("<tr>") == 3 and one.count("not run") == 1
    assert "<th>guest</th><th>dimm-cycle</th>" in two and two.count("<tr>") == 2 and "riscv64</th>" in two


def test_guests_with_the_same_scenarios_share_a_table() -> None:
    missing = [(f"{guest}/{name}", {}) for guest in ("a.x", "b.y") for name in ("one", "two", "three")]
    text = to_html(Book("m", NOW, (), tuple(missing)))
    grid = text[text.index('id="grid"') : text.index("<h2>Runs")]
    assert grid.count("<table") == 1 and grid.count("<tr>") == 4 and grid.count("not run") == 6
    assert "<th>scenario</th><th>a.x</th><th>b.y</th>" in grid


def test_runs_that_did_not_pass_are_open() -> None:
    page = Page(to_html(book(GOOD, BAD, SKIPPED)))
    runs = [attrs for tag, attrs in page.tags if tag == "details" and attrs.get("class") == "run"]
    assert ["open" in attrs for attrs in runs] == [False, True, False]


def test_links_lead_into_the_bundle_and_are_quoted() -> None:
    entry = Entry("a/b", GOOD, {}, (("bundle", "cells/a b/#1/"),), "memhp run x --guest y")
    page = Page(to_html(Book("m", NOW, (entry,))))
    assert "cells/a%20b/%231/" in page.links() and "memhp run x --guest y" in page.text


def test_trends_name_the_first_bad_night() -> None:
    nights = tuple(
        Night(f"2026-11-0{day}T00:00:00+00:00", Verdict.PASS, 90.0 + day, "6.12.1", (), f"n{day}")
        for day in range(1, 7)
    )
    bad = Night("2026-11-10T00:00:00+00:00", Verdict.FAIL, 50.0, "6.13", ("BLK-1",), "n10")
    run = dataclasses.replace(BAD, facts={"kernel": "6.13"})
    text = "".join(Page(to_html(book_of("m", NOW, [run], {"arm64/dimm-cycle": (*nights, bad)}))).text)
    assert "2026-11-10 n10, BLK-1, 6.13; last good 2026-11-06 6.12.1" in text
    assert "91.0 to 96.0 s (29%)" in text
    again = Night(NOW, Verdict.FAIL, 100.0, "6.13", ("BLK-1",), "merged")
    assert to_html(book_of("m", NOW, [run], {"arm64/dimm-cycle": (*nights, bad, again)})).count('class="v-fail"') >= 2
    assert "Trends" not in to_html(book(GOOD)), "no history, no trends"
    flaky = dataclasses.replace(BAD, facts={"kernel": "6.12.1"})
    assert "<b>1 of 6</b>" in to_html(book_of("m", NOW, [flaky], {"arm64/dimm-cycle": nights}))


def test_long_runs_are_cut_but_never_their_failures() -> None:
    steps = [step(number) for number in range(MAX_STEPS + 50)]
    steps[-1] = dataclasses.replace(BAD.steps[1], number=MAX_STEPS + 49)
    text = to_html(book(dataclasses.replace(BAD, steps=tuple(steps))))
    assert text.count('class="step"') == MAX_STEPS + 1 and "50 more steps" in text and "BLK-1 broken." in text


def test_memory_is_drawn_before_and_after_on_one_scale() -> None:
    text = to_html(book(mapped(), mapped()))
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids)) and set(re.findall(r'<use href="#([^"]+)"', text)) <= set(ids)
    assert 'aria-label="physical memory before"' in text and 'aria-label="physical memory after"' in text
    scale = scale_of([BEFORE, AFTER])
    assert len(scale.spans) == 2, "the gap up to 1 TiB is cut short"
    ram, pmem = scale.place(AddrRange(GIB, 2 * GIB)), scale.place(AddrRange(TIB, TIB + GIB))
    assert ram is not None and pmem is not None and ram[0] == 0 and pmem[0] + pmem[1] <= WIDTH + 0.01
    assert scale.place(AddrRange(5 * GIB, 6 * GIB)) is None
    drawn = memory(AFTER, scale)
    assert drawn.count("<rect") == 6 and 'class="offline"' in drawn and 'class="pmem"' in drawn and "1G" in drawn
    assert scale_of([]).spans == () and "physical memory" not in to_html(book(GOOD))


def test_the_timeline_is_as_wide_as_the_time() -> None:
    drawn = timeline(GOOD)
    widths = re.findall(r'width="([0-9.]+)" height="26.0" class="(?:boot|v-pass rest)"', drawn)
    assert len(widths) == 3 and abs(sum(map(float, widths)) - WIDTH) < 1
    assert timeline(dataclasses.replace(SKIPPED, boot_seconds=0.0)) == ""


def test_a_map_of_too_many_pieces_is_drawn_in_part() -> None:
    many = MemoryMap(tuple((0, AddrRange(n * GIB, n * GIB + 4096), "System RAM") for n in range(0, 400, 2)), ())
    assert memory(many, scale_of([many])).count("<rect") < 30


def test_what_memhp_does_not_know_stands_in_the_run() -> None:
    page = to_html(book_of("memhp", "2026-11-21T00:00:00+00:00", [BAD], {}))
    assert "/proc/zoneinfo: 3 lines that memhp does not know: &#x27;borrowed: 0&#x27;" in page
