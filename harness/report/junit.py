# SPDX-License-Identifier: GPL-2.0-or-later
"""Results as JUnit XML: a test suite for each run, a test case for each step.

FAIL is a failure, INFRA an error, REFUSED an error of the type ``refused``; SKIPPED and a known bug (with its id) are
skips. A run whose verdict none of its steps has (QEMU died, a requirement is missing) has an additional test case
``run``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from harness.check import CheckResult, Verdict
from harness.report.tally import findings
from harness.report.text import clean, plural
from harness.scenarios.result import RunResult, StepResult

#: longer text is cut
_MAX_TEXT = 1 << 20

_ELEMENT = {
    Verdict.KNOWN: "skipped",
    Verdict.FAIL: "failure",
    Verdict.INFRA: "error",
    Verdict.REFUSED: "error",
    Verdict.SKIPPED: "skipped",
}


def to_junit(runs: Sequence[RunResult], missing: Sequence[str] = ()) -> str:
    """The XML document of all runs of one command; ``missing`` are the ids (GUEST/SCENARIO) of runs without result."""
    root = ET.Element("testsuites", name="memhp")
    for run in runs:
        root.append(_suite(run))
    for id in missing:
        root.append(_missing(id))
    for name in ("tests", "failures", "errors", "skipped"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    root.set("time", f"{sum(run.seconds for run in runs):.3f}")
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _safe(text: object) -> str:
    return clean(text, limit=_MAX_TEXT, newlines=True)


def _suite(run: RunResult) -> ET.Element:
    suite = ET.Element("testsuite", name=_safe(f"{run.scenario} on {run.guest}"), timestamp=_safe(run.started))
    suite.set("time", f"{run.seconds:.3f}")
    properties = ET.SubElement(suite, "properties")
    facts = {**run.facts, "arch": run.arch, "seed": run.seed, "bundle": str(run.bundle or "")}
    facts |= {"known_bugs": ", ".join(run.met)} if run.met else {}
    facts |= {"known_bugs_unseen": ", ".join(run.unseen)} if run.unseen else {}
    for name, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        ET.SubElement(properties, "property", name=_safe(name), value=_safe(text))
    class_name = _safe(f"memhp.{run.arch}.{run.scenario}")
    for step in run.steps:
        suite.append(_step(step, class_name))
    if run.verdict is not Verdict.PASS and run.verdict not in {step.verdict for step in run.steps}:
        case = ET.SubElement(suite, "testcase", classname=class_name, name="run", time="0.000")
        _mark(case, run.verdict, run.reason, run.hint or "")
    suite.set("tests", str(len(suite.findall("testcase"))))
    for name, element in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(len(suite.findall(f"testcase/{element}"))))
    if run.verdict is Verdict.FAIL:
        ET.SubElement(suite, "system-err").text = _safe(f"{plural(len(findings(run)), 'finding')}; see {run.bundle}")
    return suite


def _missing(id: str) -> ET.Element:
    guest, _, scenario = id.rpartition("/")
    counts = {"tests": "1", "failures": "0", "errors": "1", "skipped": "0"}
    suite = ET.Element("testsuite", {"name": _safe(f"{scenario} on {guest}"), **counts})
    suite.set("time", "0.000")
    case = ET.SubElement(suite, "testcase", classname=_safe(f"memhp.{scenario}"), name="run", time="0.000")
    _mark(case, Verdict.INFRA, "not run", "")
    return suite


def _step(step: StepResult, class_name: str) -> ET.Element:
    case = ET.Element("testcase", classname=class_name, name=_safe(f"{step.number:03d} {step.title}"))
    case.set("time", f"{step.seconds:.3f}")
    if step.verdict is not Verdict.PASS:
        broken = [check for check in step.checks if check.status == "fail"]
        names = ", ".join(check.invariant for check in broken)
        why = f"{names} broken" if broken else step.note
        if step.verdict is Verdict.KNOWN:
            why = f"known bug {', '.join(step.bugs)}"
        _mark(case, step.verdict, why, _body(broken))
    unseen = [f"{check.invariant}: {check.reason}" for check in step.checks if check.status == "not-observed"]
    noted = [f"{check.invariant}: {check.note}" for check in step.checks if check.note]
    lines = [*step.changes, *(f"not observed: {line}" for line in unseen), *noted]
    if lines:
        ET.SubElement(case, "system-out").text = _safe("\n".join(lines))
    return case


def _mark(case: ET.Element, verdict: Verdict, message: str, body: str) -> None:
    element = ET.SubElement(case, _ELEMENT[verdict], message=_safe(message))
    if element.tag != "skipped":
        element.set("type", "invariant" if verdict is Verdict.FAIL else verdict.value)
    element.text = _safe(body) or None


def _body(broken: Sequence[CheckResult]) -> str:
    return "\n".join(
        f"{finding.invariant} {finding.where} ({finding.source})\n"
        f"  expected: {finding.expected}\n  observed: {finding.observed}"
        for check in broken
        for finding in check.findings
    )
