# SPDX-License-Identifier: GPL-2.0-or-later
"""The matrix on the command line: plans, messages, bisecting, merging, and the examples for CI."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from report_samples import BAD, GOOD, INFRA, REFUSED, SKIPPED
from test_cli_commands import Runs, complaint
from test_cli_commands import runs as runs

from harness.check import Verdict
from harness.cli import main
from harness.cli.command_arguments import RunArguments
from harness.cli.parser import parse_arguments
from harness.errors import ArtefactError, UsageError
from harness.matrix.cells import Unstarted, make_plan
from harness.matrix.matrix_file import load_matrix
from harness.matrix.results_store import open_store
from harness.report.board import CellBoard
from harness.report.json import dumps, results_to_json
from harness.scenarios.result import RunResult

ROOT = Path(__file__).resolve().parents[2]
MATRIX = "name: small\ngrids:\n  - axes: {arch: [arm64, riscv64], scenario: dimm-cycle}\n"


@pytest.fixture
def matrix(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(MATRIX)
    return str(path)


def test_the_plan_is_shown_without_running_anything(
    runs: Runs, matrix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--matrix", matrix, "--list", "-j", "2"]) == 0
    out = capsys.readouterr().out
    assert "arm64/dimm-cycle" in out and "guess" in out and "2 cells" in out and "with 2 jobs" in out
    assert main(["run", "--matrix", matrix, "--list", "--shard", "2/2", "--json", "-"]) == 0
    plan = json.loads(capsys.readouterr().out)
    [cell] = plan["cells"]
    assert (plan["format"], cell["id"]) == ("memhp-plan", "riscv64/dimm-cycle")
    words = shlex.split(cell["command"])
    assert words[:2] == ["memhp", "run"]
    command, run = parse_arguments(words[1:])
    assert command == "run" and isinstance(run, RunArguments)
    assert run.json == "cells/riscv64/dimm-cycle/result.json", "the command must be valid"
    assert runs.asked == [] and not (tmp_path / "memhp-results").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--shard 3/2", "memhp: --shard 3/2: no such part\n  hint: 1/2 is the first, 2/2 the last"),
        ("--shard 0/2", "memhp: --shard 0/2: no such part"),
        ("--shard half", "memhp: --shard: 'half' is not I/N\n  hint: for example 1/3"),
        ("-j 0", "memhp: --jobs: invalid job count: 0\n  hint: from 1 to 64"),
        ("-j two", "memhp: --jobs: 'two' is not a whole number"),
        ("dimm-cycle", "memhp: SCENARIO and --matrix exclude each other\n  hint: the matrix file sets"),
        ("-a arm64", "memhp: --arch and --matrix exclude each other"),
        ("--boot dt", "memhp: --boot and --matrix exclude each other\n  hint: but for --boot auto|restore|cold"),
        ("--kernel debian", "memhp: --kernel and --matrix exclude each other"),
        ("--bisect", "memhp: --bisect and --matrix exclude each other"),
        ("--keep", "memhp: --keep and --matrix exclude each other"),
        ("--history /no/such", "memhp: --history: no directory /no/such"),
        ("--html /", "memhp: --html: / is a directory"),
        ("--kcidb-origin My-Lab", "memhp: --kcidb-origin: invalid origin 'My-Lab'\n  hint: use lower-case letters"),
        ("--ktap - --kcidb -", "memhp: --ktap and --kcidb both write to standard output"),
        ("--results /etc", "memhp: /etc already exists and holds no results of a matrix\n  hint: name another"),
    ],
)
def test_usage_errors_of_a_matrix(
    runs: Runs, matrix: str, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    assert message in complaint(capsys, "run", "--matrix", matrix, *words.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--shard 1/2", "memhp: --shard needs --matrix"),
        ("--results x", "memhp: --results needs --matrix"),
        ("--list", "memhp: --list needs --matrix"),
        ("--history /no/such", "memhp: --history: no directory /no/such"),
        ("--rounds 0", "memhp: --rounds: invalid number of rounds: 0"),
        ("--random-seed -1", "memhp: --random-seed: invalid seed -1\n  hint: from 0"),
    ],
)
def test_options_that_only_a_matrix_takes(
    runs: Runs, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    assert message in complaint(capsys, "run", *words.split())
    assert runs.asked == []


def test_a_wrong_matrix_is_one_message(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text("name: m\ngrids:\n  - axes: {arch: riscv64, paging: 16k-52, scenario: dimm-cycle}\n")
    said = complaint(capsys, "run", "--matrix", str(path))
    assert said.startswith(f"memhp: {path}:3: riscv64 has no paging mode 16k-52\n  hint: it has sv57, sv48, sv39")
    assert said.count("memhp:") == 1


def test_another_schema_is_one_message(capsys: pytest.CaptureFixture[str], matrix: str, tmp_path: Path) -> None:
    root = tmp_path / "results"
    open_store(root, make_plan(load_matrix(matrix)), "2026")
    (root / "matrix.json").write_text((root / "matrix.json").read_text().replace('"version": 1', '"version": 7'))
    said = complaint(capsys, "run", "--matrix", matrix, "--results", str(root))
    assert said.startswith(f"memhp: {root} was written by version 7 of the schema, this memhp reads 1\n  hint: use the")


def test_every_report_of_an_ordinary_run(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.results = [GOOD, BAD]
    nights = tmp_path / "nights"
    nights.mkdir()
    (nights / "monday.json").write_text(dumps(results_to_json([GOOD])))
    words = [f"--{name}={tmp_path / name}" for name in ("json", "junit", "ktap", "kcidb", "html")]
    assert main(["run", *words, "--history", str(nights)]) == 1
    assert (tmp_path / "ktap").read_text().startswith("KTAP version 1\n1..2\n")
    assert json.loads((tmp_path / "kcidb").read_text())["version"] == {"major": 5, "minor": 3}
    assert "Trends" in (tmp_path / "html").read_text()


def test_rounds_and_the_seed_reach_the_runner(runs: Runs) -> None:
    assert main(["run", "add-remove-soak", "--rounds", "5", "--random-seed", "0x10"]) == 2
    assert main(["run", "add-remove-soak", "--rounds", "5", "--random-seed", "16"]) == 0
    [(_, guest, options)] = runs.asked
    assert (options.rounds, guest.random_seed) == (5, 16)


@pytest.mark.parametrize(
    ("results", "status"), [([GOOD], 0), ([BAD, INFRA], 1), ([SKIPPED], 125), ([REFUSED], 125), ([INFRA, GOOD], 125)]
)
def test_bisecting_tells_git_what_it_understands(runs: Runs, results: list[RunResult], status: int) -> None:
    runs.results = results
    assert main(["run", "dimm-cycle", "--bisect"]) == status
    assert main(["run", "dimm-cycle", "--bisect", "--boot", "restore", "--boot", "dt"]) == status
    assert [(guest.boot, options.start) for _, guest, options in runs.asked] == [("acpi", "cold"), ("dt", "restore")]


def test_a_kernel_that_cannot_be_had_is_skipped_by_a_bisection(
    runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["run", "dimm-cycle", "--bisect", "--kernel", str(tmp_path / "Image")]) == 125
    assert "no such kernel: " in capsys.readouterr().err and runs.asked == []
    (tmp_path / "Image").write_text("half a kernel")
    for error in (UsageError("it is no kernel"), ArtefactError("it does not build")):
        runs.error = error
        assert main(["run", "dimm-cycle", "--bisect", "--kernel", str(tmp_path / "Image")]) == 125
        assert error.message in capsys.readouterr().err


def test_a_bisection_keeps_no_guest(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--bisect", "--keep"]) == 128
    assert "--keep and --bisect exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "dimm-cycel --bisect",
        "--bisect --cpus two",
        "dimm-cycle --bisect --require LIN-9",
        "--bisect --cpu",
        "--kernell x --bisect",
        "--bisect --memory 3G --node 1G",
    ],
)
def test_a_wrong_request_stops_a_bisection(runs: Runs, capsys: pytest.CaptureFixture[str], words: str) -> None:
    assert main(["run", *words.split()]) == 128
    assert "memhp: " in capsys.readouterr().err and runs.asked == []


def test_without_a_directory_the_latest_is_gone_on_with_until_it_is_whole(
    matrix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    no_parts = Unstarted(Verdict.INFRA, "no parts")
    monkeypatch.setattr("harness.cli.matrix.prepare", lambda cells, progress: {cell.id: no_parts for cell in cells})
    plan = make_plan(load_matrix(matrix))
    root = tmp_path / "memhp-results" / "small-20260101-000000"
    store = open_store(root, plan, "2026-01-01T00:00:00+00:00")
    for cell in plan.cells:
        assert (root / "report.html").exists() is False
        (store.begin(cell, "name: x\n") / "result.json").write_text(dumps(results_to_json([GOOD])))
        if cell is plan.cells[0]:
            store.end(cell, 5.0, "2026-01-01T00:00:00+00:00")
    assert main(["run", "--matrix", matrix]) == 3
    assert "kept from an earlier start" in capsys.readouterr().out and (root / "report.html").exists()
    assert main(["run", "--matrix", matrix]) == 3
    assert "kept" not in capsys.readouterr().out
    assert len(list(root.parent.iterdir())) == 2, "the first night is complete, so this starts another"
    store.begin(plan.cells[1], "name: x\n")
    (store.cell_dir(plan.cells[1].id) / "result.json").write_text(dumps(results_to_json([GOOD])))
    store.end(plan.cells[1], 5.0, "2026-01-01T00:00:00+00:00")
    assert main(["run", "--matrix", matrix, "--results", str(root)]) == 0
    assert f"nothing to run: every cell in {root}, started 2026-01-01T00:00, has a verdict" in capsys.readouterr().err


def test_merging_writes_every_report(
    matrix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(load_matrix(matrix))
    for cell, run in zip(plan.cells, (GOOD, BAD), strict=True):
        store = open_store(tmp_path / cell.guest.arch, plan, "2026-11-21T00:00:00+00:00")
        folder = store.begin(cell, "name: x\n")
        named = dataclasses.replace(run, guest=cell.guest.name, bundle=None)
        (folder / "result.json").write_text(dumps(results_to_json([named])))
        store.end(cell, 5.0, "2026-11-21T00:00:00+00:00")
    whole = tmp_path / "whole"
    assert main(["merge", str(tmp_path / "arm64"), str(tmp_path / "riscv64"), "-o", str(whole)]) == 1
    assert "FAILED  2 scenarios: 1 passed, 1 FAIL" in capsys.readouterr().out
    names = {path.name for path in whole.iterdir() if path.is_file()}
    assert names == {"matrix.json", "results.json", "junit.xml", "results.ktap", "kcidb.json", "report.html"}
    assert main(["merge", str(tmp_path / "arm64"), "-o", str(tmp_path / "half")]) == 3
    assert "no result: riscv64/dimm-cycle" in capsys.readouterr().out
    assert "already exists" in complaint(capsys, "merge", str(tmp_path / "arm64"), "-o", str(whole))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_board_has_a_line_for_each_cell_and_a_moving_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out, err = io.StringIO(), Terminal()
    with CellBoard(out, err, 12) as board:
        board.ended("arm64/dimm-cycle", GOOD, kept=True)
        board.moving([("riscv64/numa", 12.0, "  pass  3 \x1b[2J online")], 4, 100.0)
        board.ended("riscv64/dimm-cycle", BAD)
    assert "[ 1/12] pass       arm64/dimm-cycle  1 min 40 s  kept from an earlier start" in out.getvalue()
    assert "[ 2/12] FAIL       riscv64/dimm-cycle  1 min 40 s  BLK-1 broken" in out.getvalue()
    assert "riscv64/numa" in err.getvalue() and "\x1b[2J" not in err.getvalue()
    assert "1 of 12 done; 4 waiting; about 1 min 40 s to go" in err.getvalue()
    quiet = io.StringIO()
    with CellBoard(io.StringIO(), quiet, 1) as board:
        board.moving([("a/b", 1.0, "x")], 0, 1.0)
    assert quiet.getvalue() == "", "no moving table in a log"


def commands_in(value: object) -> Iterator[str]:
    """All shell lines below ``run``, ``script`` and ``before_script``."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key in ("run", "script", "before_script"):
                yield from [part] if isinstance(part, str) else part
            else:
                yield from commands_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from commands_in(part)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "ci").glob("*.yml")), ids=lambda path: path.name)
def test_the_examples_for_ci_say_what_there_is(path: Path) -> None:
    lines = list(commands_in(yaml.safe_load(path.read_text())))
    ours = [line for line in lines if "memhp" in line]
    assert any("--matrix configs/nightly.yaml --shard" in line for line in ours) and any(
        "merge" in line for line in ours
    )
    for line in ours:
        plain = re.sub(r"\$\{\{.*?\}\}|\$[A-Z_]+", "1", line)
        words = shlex.split(plain)
        if words[0] == ".venv/bin/pytest":
            collected = [sys.executable, "-m", "pytest", *words[1:], "--collect-only", "-q", "-p", "no:cacheprovider"]
            done = subprocess.run(collected, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0 and "ended_at_any_moment[riscv64]" in done.stdout, done.stdout + done.stderr
            continue
        assert words[0] == ".venv/bin/memhp"
        command, arguments = parse_arguments(words[1:])
        assert command in ("run", "merge", "selftest")
        if isinstance(arguments, RunArguments):
            assert arguments.matrix is not None and (ROOT / arguments.matrix).is_file()
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    used = [words.split()[1] for line in lines for words in line.split("&&") if words.split()[0] == "make"]
    assert used and set(used) <= set(targets)
