# SPDX-License-Identifier: GPL-2.0-or-later
"""Terminal output: complete, plain if it is not a terminal, and never controlled by guest output."""

from __future__ import annotations

import dataclasses
import io
import sys

import pytest
from report_samples import BAD, BROKEN, GOOD, HOSTILE, INFRA, KNOWN, MISSED, PASSED, REFUSED, SKIPPED, UNSEEN, run, step

from harness.check import CheckResult, Finding, Verdict
from harness.report.tally import exit_status, overall, tally
from harness.report.terminal_report import TerminalReporter, findings_text
from harness.report.text import clean, invariants_line, plural, seconds
from harness.scenarios.result import RunResult, StepResult


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(*runs: RunResult, out: io.StringIO | None = None, color: str = "auto") -> str:
    stream = io.StringIO() if out is None else out
    reporter = TerminalReporter(stream, io.StringIO(), color=color)
    for one in runs:
        reporter.run_started(one.scenario, one.guest)
        reporter.phase("booting")
        for number, each in enumerate(one.steps):
            reporter.step_started(number, len(one.steps), each.title)
            reporter.step_finished(each)
        reporter.run_finished(one)
    reporter.summary(runs)
    return stream.getvalue()


def test_a_passed_run() -> None:
    text = shown(GOOD)
    assert text.startswith("dimm-cycle on arm64\n")
    assert "  pass         0  step 0" in text
    assert "1.0 s   1/1 invariants, 1 not observed\n" in text
    assert "        iomem + 80000000-bfffffff : System RAM\n" in text
    assert "pass dimm-cycle on arm64: 2 steps in 1 min 40 s, 4.4 s of it booting\n" in text
    assert "PASSED  1 scenario: 1 passed; 2 checks passed; 2 not observed\n" in text


def test_a_broken_invariant_shows_expected_and_observed_and_the_bundle() -> None:
    text = shown(BAD)
    assert "        BLK-1 broken  memory blocks are exactly those the ranges cover" in text
    assert "          at memory16 \\x1b[31m[bold]<x>&\\x07\\x00\\x9b\\u202e, seen in sysfs\n" in text
    assert "            expected  offline\n            observed  online\n" in text
    assert "  step 1 (step 1): BLK-1 broken\n  bundle: memhp-runs/1\n" in text
    assert "FAILED  1 scenario: 1 FAIL; 2 checks passed; 2 not observed; broken: BLK-1\n" in text


def test_the_table_of_runs_has_the_first_line_of_a_long_reason() -> None:
    log = "building the kernel: make exited with status 2:\n  CC init/main.o\n*** C compiler is too old."
    text = shown(dataclasses.replace(INFRA, reason=log), GOOD)
    assert "  *** C compiler is too old.\n" in text
    assert text.count("too old") == 1
    assert "  building the kernel: make exited with status 2" in text


def test_the_table_counts_each_invariant_and_says_why_one_was_not_observed() -> None:
    lines = [line.split() for line in shown(BAD).splitlines()]
    assert ["IOM-1", "2", "-", "-"] in lines
    assert ["BLK-1", "-", "1", "-"] in lines
    assert [*["LIN-1", "-", "-", "2"], *UNSEEN.reason.split()] in lines


def test_known_bugs_are_told_and_nothing_is_red() -> None:
    text = shown(KNOWN, MISSED)
    assert "  known bug    1  step 1" in text and "        BLK-1 1: all known\n" in text
    assert (
        "  step 1 (step 1): known bug some-bug; steps not done after it: 3\n  known bug some-bug: a title \\x1b" in text
    )
    assert "  not reproduced, though this kernel should have it: known bug other-bug: another title\n" in text
    told = "known bugs: some-bug; known bugs not reproduced: other-bug"
    assert f"PASSED  2 scenarios: 1 passed, 1 known bug; 4 checks passed; 3 not observed; {told}\n" in text
    assert "FAIL" not in text.replace("  FAIL  ", "") and "broken" not in text
    assert ["BLK-1", "-", "-", "1", "-"] in [line.split() for line in text.splitlines()]


def test_other_verdicts_say_why_and_what_to_do() -> None:
    text = shown(REFUSED, SKIPPED, INFRA)
    assert "  refused      1  step 1" in text
    assert "        the guest keeps d\n" in text
    assert "skipped dimm-cycle on arm64\n  debian has no CONFIG_X\n  hint: build the kernel with it\n" in text
    assert "no verdict dimm-cycle on arm64: 1 step in" in text
    assert "  QEMU died\n  hint: see qemu.stderr\n  bundle: memhp-runs/2\n" in text
    assert "NO VERDICT  3 scenarios: 1 refused, 1 skipped, 1 no verdict" in text


def test_a_pipe_gets_neither_escapes_nor_folded_tables() -> None:
    long = CheckResult("LIN-1", "not-observed", reason="because " * 30)
    text = shown(run(Verdict.PASS, step(0, Verdict.PASS, long)))
    assert "\x1b" not in text
    assert ("because " * 30).strip() in text


def test_colour_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32m" in shown(GOOD, out=Terminal())
    assert "\x1b[" not in shown(GOOD, out=Terminal(), color="never")
    assert "\x1b[32m" in shown(GOOD, color="always")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in shown(GOOD, out=Terminal())
    assert "\x1b[32m" in shown(GOOD, color="always")


def test_a_guest_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    hostile = dataclasses.replace(BAD, reason=HOSTILE, hint=HOSTILE, scenario=HOSTILE, guest=HOSTILE)
    for color in ("always", "never"):
        text = shown(hostile, color=color)
        assert "\x07" not in text and "\x9b" not in text and "\u202e" not in text and "\x00" not in text
        assert "\\x1b[31m[bold]<x>&" in text


def test_long_lists_are_cut_and_say_so() -> None:
    finding = Finding("BLK-1", "memory1", "a", "b", "sysfs")
    many = StepResult(
        1, "t", Verdict.FAIL, 1, 1, (CheckResult("BLK-1", "fail", (finding,) * 14),), "", ("change",) * 15
    )
    text = shown(run(Verdict.FAIL, many))
    assert text.count("at memory1, seen in sysfs") == 10
    assert "… and 4 more findings" in text
    assert text.count("        change\n") == 12
    assert "… and 3 more changes" in text


def test_the_moving_line_is_on_the_other_stream_and_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out, err = io.StringIO(), Terminal()
    reporter = TerminalReporter(out, err)
    reporter.run_started("s", "g")
    reporter.phase("booting \x1b[31m")
    reporter.rest()
    reporter.step_started(1, 3, "plug [bold]")
    reporter.rest()
    reporter.rest()
    assert "booting" not in out.getvalue()
    assert "s: booting \\x1b[31m" in err.getvalue()
    assert "s: step 1 of 3: plug [bold]" in err.getvalue()
    assert err.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")


def test_progress_puts_the_moving_line_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setenv("TERM", "xterm")
    reporter = TerminalReporter(io.StringIO(), Terminal())
    reporter.phase("booting")
    assert reporter._status is not None
    with reporter.progress.task("fetching", 10) as task:
        task.advance()
        assert reporter._status is None
    reporter.phase("booting")
    reporter.progress.say("told")
    assert reporter._status is None


def test_findings_as_plain_text_for_a_failing_test() -> None:
    text = findings_text(BAD)
    assert text.startswith("FAIL dimm-cycle on arm64: 2 steps")
    assert "BLK-1 broken" in text and "memhp-runs/1" in text and "\x1b" not in text


@pytest.mark.parametrize(
    ("runs", "status", "verdict"),
    [
        ([GOOD], 0, Verdict.PASS),
        ([GOOD, SKIPPED], 0, Verdict.PASS),
        ([SKIPPED, SKIPPED], 2, Verdict.SKIPPED),
        ([GOOD, REFUSED], 3, Verdict.REFUSED),
        ([GOOD, INFRA, SKIPPED], 3, Verdict.INFRA),
        ([REFUSED, INFRA], 3, Verdict.INFRA),
        ([INFRA, BAD, REFUSED, SKIPPED], 1, Verdict.FAIL),
        ([KNOWN, GOOD, SKIPPED], 0, Verdict.KNOWN),
        ([KNOWN, BAD], 1, Verdict.FAIL),
        ([KNOWN, REFUSED], 3, Verdict.REFUSED),
        ([], 3, Verdict.INFRA),
    ],
)
def test_exit_status(runs: list[RunResult], status: int, verdict: Verdict) -> None:
    assert (exit_status(runs), overall(runs)) == (status, verdict)


@pytest.mark.parametrize(
    ("runs", "status", "verdict"),
    [
        ([GOOD], 0, Verdict.PASS),
        ([GOOD, SKIPPED], 2, Verdict.SKIPPED),
        ([KNOWN, SKIPPED], 2, Verdict.SKIPPED),
        ([GOOD, INFRA, SKIPPED], 3, Verdict.INFRA),
        ([BAD, SKIPPED], 1, Verdict.FAIL),
    ],
)
def test_exit_status_of_named_scenarios(runs: list[RunResult], status: int, verdict: Verdict) -> None:
    assert (exit_status(runs, named=True), overall(runs, named=True)) == (status, verdict)


def test_tally_is_in_the_catalogues_order_and_collects_reasons_once() -> None:
    stray = CheckResult("ZZZ-9", "pass")
    counts = tally([run(Verdict.FAIL, step(0, Verdict.FAIL, stray, UNSEEN, BROKEN, PASSED, UNSEEN))])
    assert list(counts)[-1] == "ZZZ-9"
    assert counts["LIN-1"].not_observed == 2
    assert counts["LIN-1"].reasons == [UNSEEN.reason]


def test_words() -> None:
    assert clean("a\tb\n" + "x" * 10, limit=8) == "a\\tb\\nxxxx…"
    assert clean("a\nb", newlines=True) == "a\nb"
    assert (seconds(4.44), seconds(99.97), seconds(3601)) == ("4.4 s", "1 min 40 s", "60 min 01 s")
    assert (plural(1, "step"), plural(0, "step")) == ("1 step", "0 steps")
    assert invariants_line(()) == "not checked"
    assert invariants_line((PASSED, PASSED)) == "2/2 invariants"


def test_what_memhp_does_not_know_is_told_once_for_all_runs() -> None:
    lines = shown(GOOD, BAD, BAD).splitlines()
    told = [line for line in lines if "does not know" in line]
    assert told == [
        f"/proc/zoneinfo: 3 lines that memhp does not know: 'borrowed: 0', '{clean(HOSTILE)}'",
        "/proc/slabinfo: 1 column that memhp does not know: '<align>'",
    ]
    assert lines[-1].startswith("FAILED") and lines[-2] == told[-1]
    assert "does not know" not in shown(GOOD)
