# SPDX-License-Identifier: GPL-2.0-or-later
"""Results as KTAP version 1 (Documentation/dev-tools/ktap.rst): a test for each run, a subtest for each step.

FAIL is ``not ok``; a known bug is ``ok … # XFAIL known bug ID``; INFRA and REFUSED are ``not ok … # ERROR``, SKIPPED is
``ok … # SKIP``. A run whose verdict none of its steps has gets an additional subtest ``run``.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.check import Verdict
from harness.report.book import Book, Entry
from harness.report.text import clean, plural
from harness.scenarios.result import FINE, RunResult, StepResult

#: lines of diagnostics for one step
MAX_DIAGNOSTICS = 200


def to_ktap(book: Book) -> str:
    """The KTAP document of all runs, including planned runs without a result."""
    total = len(book.entries) + len(book.missing)
    lines = ["KTAP version 1", f"1..{total}"]
    for number, entry in enumerate(book.entries, 1):
        lines += _run(number, entry)
    for number, (id, _) in enumerate(book.missing, len(book.entries) + 1):
        lines.append(_line(number, id, Verdict.INFRA, "not run"))
    return "\n".join(lines) + "\n"


def _words(text: object) -> str:
    # A # starts a directive anywhere in the line.
    return clean(text).replace("#", "").strip()


_DIRECTIVES = {
    Verdict.KNOWN: "XFAIL",
    Verdict.SKIPPED: "SKIP",
    Verdict.INFRA: "ERROR",
    Verdict.REFUSED: "ERROR refused:",
}


def _line(number: int, name: object, verdict: Verdict, why: object = "") -> str:
    ok = "ok" if verdict in FINE else "not ok"
    directive = _DIRECTIVES.get(verdict)
    suffix = "" if directive is None else f" # {directive} {_words(why)}".rstrip()
    return f"{ok} {number} {_words(name)}{suffix}"


def _diagnostic(text: object) -> str:
    return f"# {clean(text)}"


def _run(number: int, entry: Entry) -> Iterator[str]:
    run = entry.run
    extra = run.verdict is not Verdict.PASS and run.verdict not in {step.verdict for step in run.steps}
    if run.steps or extra:
        yield "  KTAP version 1"
        yield f"  1..{len(run.steps) + extra}"
        for place, step in enumerate(run.steps, 1):
            yield from (f"  {line}" for line in _step(place, step))
        if extra:
            yield f"  {_line(len(run.steps) + 1, 'run', run.verdict, run.reason)}"
    for line in _about(run):
        yield _diagnostic(line)
    yield _line(number, entry.id, run.verdict, run.reason)


def _about(run: RunResult) -> Iterator[str]:
    yield f"{run.seconds:.1f} s, {plural(len(run.steps), 'step')}, kernel {run.facts.get('kernel', 'unknown')}"
    if run.reason:
        yield run.reason
    for id, title in run.bugs.items():
        suffix = "" if id in run.met else " not reproduced, though this kernel should have it"
        yield f"known bug {id}{suffix}: {title}"
    if run.bundle is not None:
        yield f"bundle: {run.bundle}"


def _step(number: int, step: StepResult) -> Iterator[str]:
    lines = []
    for check in step.checks:
        if check.status == "not-observed":
            lines.append(f"{check.invariant} not observed: {check.reason}")
        for finding in check.findings:
            lines.append(f"{check.invariant} broken at {finding.where}, seen in {finding.source}")
            lines += [f"  expected {finding.expected}", f"  observed {finding.observed}"]
    for line in lines[:MAX_DIAGNOSTICS]:
        yield _diagnostic(line)
    if len(lines) > MAX_DIAGNOSTICS:
        yield _diagnostic(f"and {plural(len(lines) - MAX_DIAGNOSTICS, 'more line')}")
    why = f"known bug {', '.join(step.bugs)}" if step.verdict is Verdict.KNOWN else step.note
    yield _line(number, step.title, step.verdict, why)
