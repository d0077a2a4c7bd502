# SPDX-License-Identifier: GPL-2.0-or-later
"""KTAP, KCIDB, JUnit and JSON, read by third-party parsers."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import junitparser
import kcidb_io
import pytest
from report_samples import BAD, BROKEN, COMMANDS, GOOD, HOSTILE, INFRA, KNOWN, MISSED, PASSED, REFUSED, SKIPPED, step
from tap.parser import Parser

from harness.check import CheckResult, Finding, Verdict
from harness.cli.results import REPORTS
from harness.errors import UsageError
from harness.report.book import Book, Entry, book_of, status_of
from harness.report.json import MAX_BYTES, MAX_RESULT_VALUES, dumps, load_results, results_to_json
from harness.report.junit import to_junit
from harness.report.kcidb import to_kcidb
from harness.report.ktap import MAX_DIAGNOSTICS, to_ktap
from harness.report.terminal_report import TerminalReporter
from harness.report.text import WORDS, tell
from harness.scenarios.file import MAX_STEPS
from harness.scenarios.memorymap import MemoryMap, memory_map
from harness.scenarios.recheck import recheck
from harness.scenarios.result import RunResult
from harness.units import AddrRange

RUNS = [GOOD, BAD, REFUSED, SKIPPED, INFRA]
NOW = "2026-11-21T00:00:00+00:00"
BOOK = dataclasses.replace(book_of("memhp", NOW, RUNS, {}), missing=(("arm64/never", {"arch": "arm64"}),))
#: a line of KTAP without its indentation (Documentation/dev-tools/ktap.rst): # only before the directive
RESULT = re.compile(r"(ok|not ok) ([1-9][0-9]*) ([^#\s][^#]*?)( # (SKIP|TODO|XFAIL|TIMEOUT|ERROR)( [^#]*)?)?")


def read_ktap(lines: Iterator[str], depth: int = 0) -> list[tuple[bool, str, str | None]]:
    """A strict reader: (ok, name, directive) of each test of one level; subtests are read and dropped."""
    pad = "  " * depth
    if depth == 0:
        assert next(lines) == "KTAP version 1"
    plan = re.fullmatch(rf"{pad}1\.\.([0-9]+)", next(lines))
    assert plan is not None
    found: list[tuple[bool, str, str | None]] = []
    while len(found) < int(plan[1]):
        line = next(lines)
        if line == f"{pad}  KTAP version 1":
            read_ktap(lines, depth + 1)
            continue
        assert line.startswith(pad) and not line.startswith(f"{pad} ")
        if line.removeprefix(pad).startswith("# "):
            continue
        match = RESULT.fullmatch(line.removeprefix(pad))
        assert match is not None, line
        assert int(match[2]) == len(found) + 1
        found.append((match[1] == "ok", match[3], match[5]))
    return found


def test_ktap_follows_the_kernels_grammar() -> None:
    text = to_ktap(BOOK)
    assert text.isprintable() is False and all(line.isprintable() for line in text.splitlines())
    lines = iter(text.splitlines())
    assert read_ktap(lines) == [
        (True, "arm64/dimm-cycle", None),
        (False, "arm64/dimm-cycle.2", None),
        (False, "arm64/dimm-cycle.3", "ERROR"),
        (True, "arm64/dimm-cycle.4", "SKIP"),
        (False, "arm64/dimm-cycle.5", "ERROR"),
        (False, "arm64/never", "ERROR"),
    ]
    assert next(lines, None) is None
    assert "  #   expected offline\n  #   observed online\n" in text


def test_ktap_is_tap_for_who_reads_only_that() -> None:
    # Apart from its first line the top level is TAP, and TAP parsers ignore the indented subtests.
    top = [line for line in to_ktap(BOOK).splitlines() if not line.startswith(" ")]
    lines = list(Parser().parse_text("\n".join(["TAP version 13", *top[1:]])))
    assert not [line for line in lines if line.category == "unknown"]
    tests = [line for line in lines if line.category == "test"]
    assert [bool(test.ok) for test in tests] == [True, False, False, True, False, False]
    assert [bool(test.skip) for test in tests] == [False, False, False, True, False, False]


def test_a_name_with_a_hash_is_no_directive() -> None:
    odd = dataclasses.replace(GOOD, steps=(dataclasses.replace(step(0), title="a # SKIP b #1"),))
    text = to_ktap(book_of("x", NOW, [odd], {}))
    assert "ok 1 a  SKIP b 1\n" in text
    assert read_ktap(iter(text.splitlines())) == [(True, "arm64/dimm-cycle", None)]


def test_ktap_does_not_drown_in_diagnostics() -> None:
    many = dataclasses.replace(BAD.steps[1].checks[1], findings=BAD.steps[1].checks[1].findings * 500)
    bad = dataclasses.replace(BAD, steps=(step(0, Verdict.FAIL, many),))
    text = to_ktap(book_of("x", NOW, [bad], {}))
    assert text.count("\n") < MAX_DIAGNOSTICS + 20 and "more lines" in text


def test_kcidb_follows_the_published_schema() -> None:
    report = json.loads(to_kcidb(BOOK))
    kcidb_io.schema.LATEST.validate(report)
    assert (kcidb_io.schema.LATEST.major, kcidb_io.schema.LATEST.minor) == (5, 3)
    assert len(report["builds"]) == len(report["checkouts"]) == 1, "all runs have the same kernel"
    runs = [test for test in report["tests"] if test["path"] == "memhp.dimm-cycle"]
    assert [test["status"] for test in runs] == ["PASS", "FAIL", "ERROR", "SKIP", "MISS"]
    steps = [test for test in report["tests"] if ".step_" in test["path"]]
    assert len(steps) == sum(len(run.steps) for run in RUNS)
    assert len({test["id"] for test in report["tests"]}) == len(report["tests"])
    assert "expected offline, observed online" in runs[1]["log_excerpt"] and "\x00" not in runs[1]["log_excerpt"]
    other = json.loads(to_kcidb(dataclasses.replace(BOOK, origin="my_lab")))
    kcidb_io.schema.LATEST.validate(other)
    assert {test["origin"] for test in other["tests"]} == {"my_lab"}


KNOWNS = dataclasses.replace(BOOK, entries=book_of("memhp", NOW, [KNOWN, MISSED, GOOD], {}).entries, missing=())


def test_a_known_bug_is_an_expected_failure_in_ktap() -> None:
    text = to_ktap(KNOWNS)
    found = read_ktap(iter(text.splitlines()))
    assert [(ok, directive) for ok, _, directive in found] == [(True, "XFAIL"), (True, None), (True, None)]
    assert "  ok 2 step 1 # XFAIL known bug some-bug\n" in text
    assert "\nok 1 arm64/dimm-cycle # XFAIL step 1 (step 1): known bug some-bug; steps not done after it: 3\n" in text
    assert "\n# known bug other-bug not reproduced, though this kernel should have it: another title\n" in text


def test_a_known_bug_is_an_issue_with_incidents_in_kcidb() -> None:
    report = json.loads(to_kcidb(KNOWNS))
    kcidb_io.schema.LATEST.validate(report)
    assert [issue["id"] for issue in report["issues"]] == ["memhp:known-bug:some-bug", "memhp:known-bug:other-bug"]
    tests = {test["id"]: test for test in report["tests"]}
    told = [(one["issue_id"], one["present"], tests[one["test_id"]]["path"]) for one in report["incidents"]]
    assert told == [
        ("memhp:known-bug:some-bug", True, "memhp.dimm-cycle"),
        ("memhp:known-bug:some-bug", True, "memhp.dimm-cycle.step_001"),
        ("memhp:known-bug:other-bug", False, "memhp.dimm-cycle"),
        ("memhp:known-bug:other-bug", False, "memhp.dimm-cycle.step_001"),
    ]
    assert [test["status"] for test in report["tests"] if test["status"] != "PASS"] == ["FAIL", "FAIL"]
    assert len({one["id"] for one in report["incidents"]}) == 4
    assert "issues" not in json.loads(to_kcidb(BOOK))


def test_a_known_bug_is_skipped_in_junit_and_carries_its_id() -> None:
    suites = junitparser.JUnitXml.fromstring(to_junit([KNOWN, MISSED]).encode())
    assert (suites.tests, suites.failures, suites.errors, suites.skipped) == (4, 0, 0, 1)
    [skip] = [result for suite in suites for case in suite for result in case.result]
    assert skip.message == "known bug some-bug"
    known = [{one.name: one.value for one in suite.properties()} for suite in suites]
    assert known[0]["known_bugs"] == "some-bug" and known[1]["known_bugs_unseen"] == "other-bug"


def test_known_bugs_survive_a_way_through_json(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(dumps(results_to_json([KNOWN, MISSED])))
    known, missed = load_results(tmp_path / "r.json")
    assert (known.verdict, known.met, known.left) == (Verdict.KNOWN, ("some-bug",), 3)
    assert known.bugs == KNOWN.bugs and (missed.unseen, missed.met) == (("other-bug",), ())


def test_junit_is_read_by_another_parser() -> None:
    suites = junitparser.JUnitXml.fromstring(to_junit(RUNS, ["arm64/never"]).encode())
    assert (suites.tests, suites.failures, suites.errors, suites.skipped) == (10, 1, 3, 1)
    kinds = [type(result).__name__ for suite in suites for case in suite for result in case.result]
    assert sorted(kinds) == ["Error", "Error", "Error", "Failure", "Skipped"]
    [failure] = [
        result for suite in suites for case in suite for result in case.result if type(result).__name__ == "Failure"
    ]
    assert "expected: offline" in failure.text and "\x07" not in failure.text
    names = [suite.name for suite in suites]
    assert names[-1] == "never on arm64"


def mapped(*maps: MemoryMap | None) -> RunResult:
    return dataclasses.replace(GOOD, steps=tuple(dataclasses.replace(step(n), memory=m) for n, m in enumerate(maps)))


SMALL = MemoryMap(
    ((0, AddrRange(0x40000000, 0x80000000), "System RAM"),), ((AddrRange(0, 0x8000000), "online Normal"),)
)


@pytest.mark.parametrize(
    "run", [*RUNS, mapped(SMALL, None, SMALL, MemoryMap((), ()))], ids=lambda run: run.verdict.value
)
def test_results_come_back_from_json(tmp_path: Path, run: RunResult) -> None:
    path = tmp_path / "r.json"
    path.write_text(dumps(results_to_json([run])))
    [back] = load_results(path)
    assert dataclasses.replace(back, facts={}) == dataclasses.replace(run, facts={})
    assert dumps(results_to_json([back])) == path.read_text()


def test_a_map_is_written_once() -> None:
    [run] = results_to_json([mapped(SMALL, SMALL, None)])["runs"]  # type: ignore[misc]
    assert len(run["maps"]) == 1 and [one["map"] for one in run["steps"]] == [0, 0, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "contains no memhp results"),
        ('{"format": "memhp-results", "version": 99}', "was written by version 99 of the schema, this memhp reads 1"),
        ('{"format": "memhp-results", "version": 1}', "is damaged: KeyError: 'runs'"),
        ('{"format": "memhp-results", "version": 1, "runs": [5]}', "is damaged"),
        ('{"format": "memhp-results", "version": 1, "runs": [{"scenario": 5}]}', "5' is not of the type str"),
    ],
)
def test_results_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_results(path)
    assert message in caught.value.message and caught.value.hint
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        load_results(tmp_path / "none.json")


@pytest.mark.parametrize(
    "change",
    [{"map": 7}, {"map": -1}, {"map": True}, {"verdict": "maybe"}, {"seconds": "1"}, {"checks": [{"status": "odd"}]}],
    ids=str,
)
def test_a_step_that_is_none(tmp_path: Path, change: dict[str, object]) -> None:
    value = json.loads(dumps(results_to_json([mapped(SMALL)])))
    value["runs"][0]["steps"][0].update(change)
    (tmp_path / "r.json").write_text(json.dumps(value))
    with pytest.raises(UsageError, match="is damaged"):
        load_results(tmp_path / "r.json")


def test_what_a_book_ends_with() -> None:
    assert [status_of(book_of("x", NOW, [run], {})) for run in RUNS] == [0, 1, 3, 2, 3]
    assert status_of(Book("x", NOW, (Entry("a/b", GOOD),), (("a/c", {}),))) == 3
    assert status_of(Book("x", NOW, (Entry("a/b", BAD),), (("a/c", {}),))) == 1


def written(book: Book) -> dict[str, str]:
    """Every report of ``book``, and what a terminal shows of it."""
    out = io.StringIO()
    reporter = TerminalReporter(out, io.StringIO(), color="never")
    for run in book.runs:
        reporter.run_started(run.scenario, run.guest)
        for one in run.steps:
            reporter.step_finished(one)
        reporter.run_finished(run)
    reporter.summary(book.runs)
    return {name: write(book) for name, (write, _) in REPORTS.items()} | {"terminal": out.getvalue()}


def test_a_bug_that_showed_in_one_of_several_steps_is_nowhere_called_not_reproduced() -> None:
    first, later = (dataclasses.replace(step(number), unseen=("some-bug", "other-bug")) for number in (1, 3))
    met = dataclasses.replace(step(2, Verdict.KNOWN, PASSED, BROKEN), bugs=("some-bug",), unseen=("other-bug",))
    both = dataclasses.replace(KNOWN, steps=(step(0), first, met, later), bugs={"some-bug": "a", "other-bug": "b"})
    assert (both.met, both.unseen) == (("some-bug",), ("other-bug",))
    reports = written(book_of("memhp", NOW, [both], {}))
    wrong = re.compile("(?i)not reproduced[^.;<\n]{0,60}some-bug|some-bug[^.;<\n]{0,10}not reproduced")
    assert [name for name, text in reports.items() if wrong.search(text)] == []
    [told] = json.loads(reports["json"])["runs"]
    assert [one["known_bugs_unseen"] for one in told["steps"]] == [[], *3 * [["other-bug"]]]
    incidents = json.loads(reports["kcidb"])["incidents"]
    assert [one["present"] for one in incidents if one["issue_id"].endswith("some-bug")] == [True, True]
    assert [one["present"] for one in incidents if one["issue_id"].endswith("other-bug")] == [False] * 4


def test_a_bug_that_shows_on_one_of_two_guests_is_told_with_the_other_guest() -> None:
    missed = dataclasses.replace(
        MISSED, guest="riscv64", steps=(dataclasses.replace(step(1), unseen=("some-bug",)),), bugs={"some-bug": "a"}
    )
    text = written(book_of("memhp", NOW, [KNOWN, missed], {}))["terminal"]
    assert "known bugs: some-bug; known bugs not reproduced: some-bug (riscv64)\n" in text


def test_hostile_text_is_no_control_sequence_anywhere() -> None:
    for name, text in written(BOOK).items():
        assert not set(HOSTILE) & set(text) - set("[31m[bold]<x>&"), name


@pytest.mark.parametrize("command", COMMANDS)
def test_text_of_a_guest_is_no_command_of_a_ci_system(command: str) -> None:
    """GitHub's ``::`` counts after blanks at the start of a line; its ``##[`` and the others' count anywhere."""
    finding = Finding("BLK-1", command, command, command, command, command)
    check = CheckResult("BLK-1", "fail", (finding,), reason=command, note=command)
    unseen = CheckResult("LIN-1", "not-observed", reason=command)
    bad = dataclasses.replace(step(1, Verdict.FAIL, check, unseen, note=command), title=command, changes=(command,) * 2)
    run = dataclasses.replace(BAD, steps=(step(0), bad), reason=command, hint=command, guest=command)
    run = dataclasses.replace(run, scenario=command, facts={"kernel": command, command: command})
    for name, text in written(book_of("memhp", NOW, [run, run], {})).items():
        assert "forged" in text or "teamcity" in text or "tmp" in text or "DONE" in text, name
        found = re.findall(r"(?m)^\s*::.*$|.*##(?:vso|teamcity)?\[.*|.*\x1b.*|.*\r.*", text)
        assert not found, name


def test_what_is_said_on_stderr_is_no_command_either(capsys: pytest.CaptureFixture[str]) -> None:
    tell("QEMU died\n::error::forged\n ##[error]forged")
    assert capsys.readouterr().err == "memhp: QEMU died\n\\x3a:error::forged\n \\x23#[error]forged\n"


def test_the_memory_map_of_a_snapshot() -> None:
    from harness.parsers.blocks import parse_blocks
    from harness.parsers.iomem import parse_iomem

    folder = Path(__file__).parent / "fixtures" / "arm64-pmem-kmem"
    iomem = parse_iomem((folder / "iomem.txt").read_text())
    blocks = parse_blocks((folder / "blocks.txt").read_text())

    class State:
        pass

    state = State()
    state.resources, state.memory_blocks = iomem, blocks  # type: ignore[attr-defined]
    found = memory_map(state, 0x40000000, 128 << 20)  # type: ignore[arg-type]
    assert found is not None
    names = [(depth, name) for depth, _, name in found.iomem]
    assert (0, "System RAM") in names and any(name.startswith("dax") for _, name in names)
    assert not any("Kernel" in name or name.startswith("PCI") for _, name in names)
    assert all(one.end <= two.start for (one, _), (two, _) in zip(found.blocks, found.blocks[1:], strict=False))


def test_the_results_of_the_longest_run_are_read_again() -> None:
    """A matrix has the verdict of a cell only from its results."""
    run = recheck(Path(__file__).parent / "fixtures" / "bundles" / "arm64-story")
    text = dumps(results_to_json([run]))
    rounds = MAX_STEPS // len(run.steps) + 1
    assert rounds * sum(text.count(mark) for mark in ",[{") <= MAX_RESULT_VALUES
    assert rounds * len(text) <= MAX_BYTES


@pytest.mark.parametrize(
    ("book", "verdict"),
    [
        (Book("x", NOW, (Entry("a/b", GOOD),), (("a/c", {}),)), Verdict.INFRA),
        (Book("x", NOW, (Entry("a/b", SKIPPED),), (("a/c", {}),)), Verdict.INFRA),
        (Book("x", NOW, (Entry("a/b", BAD),), (("a/c", {}),)), Verdict.FAIL),
        (Book("x", NOW, (Entry("a/b", GOOD), Entry("a/c", SKIPPED)), named=True), Verdict.SKIPPED),
        (Book("x", NOW, (Entry("a/b", GOOD), Entry("a/c", SKIPPED))), Verdict.PASS),
    ],
    ids=["missing", "missing, else skipped", "missing, and broken", "named", "fine"],
)
def test_reports_have_the_verdict_of_their_command(book: Book, verdict: Verdict) -> None:
    found = json.loads(REPORTS["json"][0](book))
    assert (found["verdict"], found["exit_status"]) == (verdict.value, status_of(book))
    heading = re.search(r"<h1>.*?</h1>", REPORTS["html"][0](book), re.DOTALL)
    assert heading is not None and WORDS[verdict] in heading[0]
