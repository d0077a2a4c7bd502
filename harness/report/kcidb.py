# SPDX-License-Identifier: GPL-2.0-or-later
"""Results as KCIDB I/O data, schema 5.3 (package ``kcidb-io``): one build per kernel, one test per run and per step.

A known bug is an issue. A test that reproduced it is FAIL and has an incident; one that should have reproduced it has
an incident with ``present`` false. This is how KCIDB marks failures that need no attention.

memhp knows a kernel's release and origin but no commit; the checkout has both in its comment. Add ``git_commit_hash``
and the related fields before a submission, if you know them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

from harness.check import Verdict
from harness.report.book import Book, Entry
from harness.report.json import dumps
from harness.report.tally import findings
from harness.report.text import clean
from harness.scenarios.result import RunResult, StepResult

MAJOR, MINOR = 5, 3
#: maximum characters of a test's log excerpt (the schema allows 16384)
MAX_EXCERPT = 16_000

_STATUS = {
    Verdict.PASS: "PASS",
    Verdict.KNOWN: "FAIL",
    Verdict.FAIL: "FAIL",
    Verdict.REFUSED: "ERROR",
    Verdict.SKIPPED: "SKIP",
    Verdict.INFRA: "MISS",
}


def to_kcidb(book: Book) -> str:
    """The JSON document of all runs."""
    origin = book.origin
    checkouts: dict[str, dict[str, object]] = {}
    builds: dict[str, dict[str, object]] = {}
    tests: list[dict[str, object]] = []
    issues: dict[str, dict[str, object]] = {}
    incidents: list[dict[str, object]] = []
    for entry in book.entries:
        run = entry.run
        checkout, build = _kernel(run, origin)
        checkouts.setdefault(str(checkout["id"]), checkout)
        builds.setdefault(str(build["id"]), build)
        tests += _tests(entry, str(build["id"]), book.created, origin)
        for id, title in run.bugs.items():
            issues.setdefault(id, _issue(id, title, origin))
        incidents += _incidents(entry, book.created, origin)
    report = {
        "version": {"major": MAJOR, "minor": MINOR},
        "checkouts": list(checkouts.values()),
        "builds": list(builds.values()),
        "tests": tests,
        **({"issues": list(issues.values()), "incidents": incidents} if issues else {}),
    }
    return dumps(report)


def _id(origin: str, *parts: str) -> str:
    return f"{origin}:{hashlib.sha256(chr(0).join(parts).encode('utf-8', 'replace')).hexdigest()[:32]}"


def _kernel(run: RunResult, origin: str) -> tuple[dict[str, object], dict[str, object]]:
    release = clean(run.facts.get("kernel", "unknown"), limit=200)
    came_from = clean(run.facts.get("kernel_origin", "unknown"), limit=500)
    checkout: dict[str, object] = {
        "id": _id(origin, "checkout", release, came_from),
        "origin": origin,
        "comment": f"{release}, {came_from}",
    }
    # A kernel that booted was built; for one that did not, the state of the build is unknown.
    status: dict[str, object] = {"status": "PASS"} if run.steps else {}
    build: dict[str, object] = {
        "id": _id(origin, "build", release, came_from, run.arch),
        "origin": origin,
        "checkout_id": checkout["id"],
        "architecture": re.sub(r"[^a-z0-9_]", "_", run.arch.lower()),
        "comment": came_from,
        **status,
    }
    return checkout, build


def _test_id(entry: Entry, created: str, origin: str, step: StepResult | None = None) -> str:
    return _id(origin, "test", created, entry.run.started, entry.id, *([] if step is None else [str(step.number)]))


def _issue(id: str, title: str, origin: str) -> dict[str, object]:
    return {
        "id": f"{origin}:known-bug:{id}",
        "version": 1,
        "origin": origin,
        "report_subject": clean(title),
        "culprit": {"code": True, "tool": False, "harness": False},
        "comment": f"{clean(id)}: {clean(title)}",
        "misc": {"known_bug": id},
    }


def _incidents(entry: Entry, created: str, origin: str) -> Iterator[dict[str, object]]:
    """An incident for each known bug that a test reproduced or should have reproduced."""
    places: list[tuple[StepResult | None, tuple[str, ...], tuple[str, ...]]] = [(None, entry.run.met, entry.run.unseen)]
    places += [(step, step.bugs, step.unseen) for step in entry.run.steps]
    for step, met, unseen in places:
        test = _test_id(entry, created, origin, step)
        for id, present in [*((id, True) for id in met), *((id, False) for id in unseen if id not in met)]:
            yield {
                "id": _id(origin, "incident", test, id),
                "origin": origin,
                "issue_id": f"{origin}:known-bug:{id}",
                "issue_version": 1,
                "test_id": test,
                "present": present,
            }


def _path(*parts: str) -> str:
    return ".".join(re.sub(r"[^A-Za-z0-9_-]+", "_", part) or "_" for part in parts)


def _tests(entry: Entry, build: str, created: str, origin: str) -> Iterator[dict[str, object]]:
    run = entry.run
    guest = clean(run.guest, limit=500)
    environment: dict[str, object] = {
        "comment": f"QEMU {clean(run.facts.get('qemu', 'unknown'), limit=200)}, {guest}",
        "misc": {
            "guest": guest,
            **{axis: clean(text, limit=500) for axis, text in entry.axes.items()},
            **{fact: run.facts[fact] for fact in ("page_size", "va_bits", "boot") if fact in run.facts},
        },
    }
    common: dict[str, object] = {"build_id": build, "origin": origin, "environment": environment}
    yield {
        "id": _test_id(entry, created, origin),
        **common,
        "path": _path("memhp", run.scenario),
        "comment": clean(f"{entry.id}: {run.reason}" if run.reason else entry.id),
        "status": _STATUS[run.verdict],
        "start_time": run.started,
        "duration": round(run.seconds, 3),
        **_excerpt(run),
        "misc": {"bundle": "" if run.bundle is None else str(run.bundle), "seed": run.seed},
    }
    for step in run.steps:
        yield _step(entry, step, common, created, origin)


def _step(entry: Entry, step: StepResult, common: dict[str, object], created: str, origin: str) -> dict[str, object]:
    run = entry.run
    return {
        "id": _test_id(entry, created, origin, step),
        **common,
        "path": _path("memhp", run.scenario, f"step_{step.number:03d}"),
        "comment": clean(step.title),
        "status": _STATUS[step.verdict],
        "duration": round(step.seconds, 3),
        "misc": {
            "guest_seconds": round(step.guest_seconds, 3),
            "broken": [check.invariant for check in step.checks if check.status == "fail"],
            "not_observed": [check.invariant for check in step.checks if check.status == "not-observed"],
            "known_bugs": list(step.bugs),
        },
    }


def _excerpt(run: RunResult) -> dict[str, object]:
    lines = [
        f"{found.invariant} {clean(found.where)}: expected {clean(found.expected)}, observed {clean(found.observed)}"
        for found in findings(run)
    ]
    return {"log_excerpt": "\n".join(lines)[:MAX_EXCERPT]} if lines else {}
