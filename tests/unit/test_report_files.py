# SPDX-License-Identifier: GPL-2.0-or-later
"""JSON, JUnit, and files that are written completely or not at all."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from report_samples import BAD, GOOD, INFRA, KNOWN, MISSED, REFUSED, SKIPPED, run, step

from harness.check import CATALOGUE, CheckResult, Verdict
from harness.errors import InfraError, UsageError
from harness.report.files import check_target, write_report
from harness.report.json import dumps, results_to_json, schema
from harness.report.junit import to_junit
from harness.report.terminal_report import TerminalReporter

ALL = [GOOD, BAD, REFUSED, SKIPPED, INFRA]
KNOWNS = [KNOWN, MISSED]
_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}


def validate(value: Any, rule: dict[str, Any], root: dict[str, Any], where: str = "$") -> None:
    """The part of JSON Schema that schema.json uses; fails for any other keyword."""
    if "$ref" in rule:
        target = root
        for part in rule["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        validate(value, target, root, where)
    for word, argument in rule.items():
        match word:
            case "$ref" | "$schema" | "$defs" | "title" | "description":
                pass
            case "type":
                kinds = [argument] if isinstance(argument, str) else argument
                fits = (value is None if kind == "null" else isinstance(value, _TYPES[kind]) for kind in kinds)
                assert any(fits), f"{where}: {value!r} is no {argument}"
            case "const":
                assert value == argument, where
            case "enum":
                assert value in argument, f"{where}: {value!r}"
            case "minimum":
                assert value >= argument, where
            case "required":
                assert set(argument) <= set(value), f"{where}: {set(argument) - set(value)} missing"
            case "properties":
                for name, inner in argument.items():
                    if name in value:
                        validate(value[name], inner, root, f"{where}.{name}")
                assert set(value) <= set(argument), f"{where}: {set(value) - set(argument)} not in the schema"
            case "additionalProperties":
                for name, inner in value.items():
                    validate(inner, argument, root, f"{where}.{name}")
            case "items":
                for number, inner in enumerate(value):
                    validate(inner, argument, root, f"{where}[{number}]")
            case _:
                raise AssertionError(f"the schema uses {word}")


@pytest.mark.parametrize("runs", [[run] for run in ALL] + [ALL, KNOWNS, []], ids=lambda runs: str(len(runs)))
def test_results_follow_the_schema(runs: list[Any]) -> None:
    text = dumps(results_to_json(runs))
    assert text.isascii() and text.endswith("}\n")
    validate(json.loads(text), schema(), schema())


def test_what_the_json_says() -> None:
    found = json.loads(dumps(results_to_json([BAD])))
    assert (found["format"], found["version"], found["verdict"], found["exit_status"]) == (
        "memhp-results",
        1,
        "fail",
        1,
    )
    assert found["invariants"]["BLK-1"] == {
        "statement": CATALOGUE["BLK-1"].statement,
        "pass": 0,
        "fail": 1,
        "known": 0,
        "not_observed": 0,
        "reasons": [],
        "notes": [],
    }
    assert found["invariants"]["LIN-1"]["reasons"] == ["the kernel has no CONFIG_PTDUMP_DEBUGFS"]
    [run] = found["runs"]
    assert run["bundle"] == "memhp-runs/1"
    assert run["facts"]["page_size"] == 4096
    assert run["facts"]["where"] == "/x"
    finding = run["steps"][1]["checks"][1]["findings"][0]
    assert (finding["invariant"], finding["expected"], finding["observed"]) == ("BLK-1", "offline", "online")


def test_what_the_json_says_of_known_bugs() -> None:
    found = json.loads(dumps(results_to_json(KNOWNS)))
    assert (found["verdict"], found["exit_status"]) == ("known-bug", 0)
    assert (found["invariants"]["BLK-1"]["fail"], found["invariants"]["BLK-1"]["known"]) == (0, 1)
    known, missed = found["runs"]
    assert known["known_bugs"]["some-bug"]["met"] and known["steps_left"] == 3
    assert known["steps"][1]["known_bugs"] == ["some-bug"] and known["steps"][1]["verdict"] == "known-bug"
    assert missed["known_bugs"] == {"other-bug": {"title": "another title", "met": False}}
    assert missed["steps"][1]["known_bugs_unseen"] == ["other-bug"]


def test_what_one_source_showed_alone_is_said_everywhere() -> None:
    why = "host walk alone: this kernel has no CONFIG_PTDUMP_DEBUGFS"
    alone = run(Verdict.PASS, step(0, Verdict.PASS, CheckResult("VMM-1", "pass", note=why)))
    found = results_to_json([alone])
    validate(found, schema(), schema())
    assert found["invariants"]["VMM-1"]["notes"] == [why]
    assert found["runs"][0]["steps"][0]["checks"][0]["note"] == why
    assert f"VMM-1: {why}" in to_junit([alone])
    out = io.StringIO()
    TerminalReporter(out, io.StringIO(), color="never").summary([alone])
    assert why in out.getvalue()


def test_junit() -> None:
    root = ET.fromstring(to_junit(ALL))
    assert (root.get("tests"), root.get("failures"), root.get("errors"), root.get("skipped")) == ("9", "1", "2", "1")
    good, bad, refused, skipped, infra = root
    assert [case.get("name") for case in good.findall("testcase")] == ["000 step 0", "001 step 1"]
    failure = bad.find("testcase/failure")
    assert failure is not None and failure.get("message") == "BLK-1 broken"
    assert "memory16 \\x1b[31m[bold]<x>&\\x07\\x00\\x9b\\u202e (sysfs)" in str(failure.text)
    error = refused.find("testcase/error")
    assert error is not None and (error.get("type"), error.get("message")) == ("refused", "the guest keeps d")
    [case] = skipped.findall("testcase")
    assert case.get("name") == "run" and case.find("skipped") is not None
    error = infra.find("testcase[@name='run']/error")
    assert error is not None and (error.get("type"), error.get("message")) == ("infra", "QEMU died")
    facts = {item.get("name"): item.get("value") for item in bad.iterfind("properties/property")}
    assert (facts["kernel"], facts["bundle"], facts["seed"]) == ("6.12.1", "memhp-runs/1", "7")
    assert "not observed: LIN-1" in str(good.findtext("testcase/system-out"))
    assert bad.findtext("system-err") == "1 finding; see memhp-runs/1"


def test_a_report_replaces_a_file_in_one_go(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    target.write_text("old")
    link = tmp_path / "link"
    link.symlink_to(target)
    write_report(str(link), "new")
    assert target.read_text() == "new" and link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out.json"]


def test_a_report_to_standard_output_and_to_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    write_report("-", "hello\n")
    write_report("/dev/null", "gone")
    assert capsys.readouterr().out == "hello\n"


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InfraError, match=r"cannot write .*: No such file .*\n  hint: the results above are complete"):
        write_report(str(tmp_path / "no" / "x"), "text")


def test_targets_are_checked_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_target("-", "--json")
    check_target(str(tmp_path / "x"), "--json")
    with pytest.raises(UsageError, match=r"--json: .* is a directory\n  hint: name a file, or -"):
        check_target(str(tmp_path), "--json")
    with pytest.raises(UsageError, match=r"--junit: no directory .*no\n  hint: create it first"):
        check_target(str(tmp_path / "no" / "x"), "--junit")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match=r"--json: .* is not writable\n  hint: choose another place"):
        check_target(str(tmp_path / "x"), "--json")
