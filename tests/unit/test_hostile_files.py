# SPDX-License-Identifier: GPL-2.0-or-later
"""Bundles, results and configuration from somebody else: no file of theirs hangs, fills or crashes a command.

Each case runs within ten seconds and one more gigabyte, and must end with a message about the file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from host_limits import bounded
from report_samples import GOOD

from harness.cli import main
from harness.report.json import dumps, results_to_json

BUNDLES = Path(__file__).parent / "fixtures" / "bundles"
HUGE = "1" + "0" * 400


def fails_kindly(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The message of a command that must fail, but not by an internal error."""
    with bounded():
        status = main(words)
    said = capsys.readouterr().err
    assert status in (2, 3), said
    assert "internal error" not in said and "MemoryError" not in said and said.startswith("memhp: "), said
    return said


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


STRANGE = (fifo, endless, folder, loop, large)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return shutil.copytree(BUNDLES / "arm64-ends", tmp_path / "bundle")


@pytest.mark.parametrize("make", STRANGE, ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    "name",
    [
        *("run.json", "machine.json", "verdict.json", "known-bugs.yaml", "facts/meta.json", "facts/config.txt"),
        *("states/000/meta.json", "states/000/iomem.txt", "states/000/devices.json", "states/001/step.json"),
        "states/001/meminfo.txt",
    ],
)
def test_check_of_a_strange_file(
    bundle: Path, name: str, make: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    path = bundle / name
    path.unlink(missing_ok=True)
    make(path)
    assert path.name in fails_kindly(capsys, ["check", str(bundle)])


@pytest.mark.parametrize("make", STRANGE, ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    ("command", "name"), [("replay", "run.json"), ("replay", "scenario.yaml"), ("ptdump", "facts/meta.json")]
)
def test_replay_and_tables_of_a_strange_file(
    bundle: Path, command: str, name: str, make: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    path = bundle / name
    path.unlink()
    make(path)
    fails_kindly(capsys, [command, str(bundle)])


@pytest.mark.parametrize("make", STRANGE, ids=lambda make: make.__name__)
def test_strange_configuration(
    tmp_path: Path, make: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.yaml"
    make(path)
    fails_kindly(capsys, ["run", str(path)])
    fails_kindly(capsys, ["run", "dimm-cycle", "--guest", str(path)])
    fails_kindly(capsys, ["run", "--matrix", str(path), "--list"])


KNOWN = """bugs:
  their-bug:
    title: t
    source: s
    since: {version: "6.1"}
    checked: 7.3.4
    breaks: [{invariant: SEC-1, where: '.*', says: 'PATTERN'}]
    scenario: s
"""


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("([ -~]+)+!", "known-bugs.yaml takes too long: its regular expressions"),
        ("((a?){1000}){1000}([ -~]*)*!", "known-bugs.yaml takes too long: its regular expressions"),
        ("(" * 5000 + ")" * 5000, "says: not a regular expression: "),
        ("a{99999999999}", "says: not a regular expression: "),
    ],
    ids=["nested", "counted", "deep", "many"],
)
def test_known_bugs_of_a_bundle_that_never_match(
    bundle: Path, pattern: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for iomem in bundle.glob("states/*/iomem.txt"):
        iomem.write_text(iomem.read_text().replace(" : System RAM", " : System RAM which is none", 1))
    (bundle / "known-bugs.yaml").write_text(KNOWN.replace("PATTERN", pattern))
    assert said in fails_kindly(capsys, ["check", str(bundle)])


def edited(bundle: Path, name: str, key: str, value: str) -> None:
    """The JSON file with the value at ``key`` (names and indices with dots between) replaced by JSON text."""
    path = bundle / name
    text = json.loads(path.read_text())
    at: Any = text
    *way, last = (int(part) if part.isdecimal() else part for part in key.split("."))
    for part in way:
        at = at[part]
    at[last] = "@@"
    path.write_text(json.dumps(text).replace('"@@"', value))


NUMBERS = (HUGE, "NaN", "Infinity", "-Infinity", "1e999", "-1", str(2**64 + 1), "[" * 5000 + "]" * 5000, str(2**63))


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: value[:20])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("machine.json", "node_memory.0"),
        ("machine.json", "max_memory"),
        ("machine.json", "slots"),
        ("machine.json", "virtio_devices"),
        ("facts/meta.json", "page_size"),
        ("facts/meta.json", "memory_block_size"),
        ("states/000/devices.json", "0"),
        ("run.json", "seed"),
    ],
)
def test_check_of_a_strange_number(
    bundle: Path, name: str, key: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if key == "0":
        (bundle / name).write_text("[0]")
    if key == "seed" and value in ("-1", str(2**63)):
        return
    edited(bundle, name, key, value)
    fails_kindly(capsys, ["check", str(bundle)])


@pytest.mark.parametrize("size", [2**50, 2**46, 2**63])
def test_check_of_much_boot_memory(bundle: Path, size: int, capsys: pytest.CaptureFixture[str]) -> None:
    edited(bundle, "machine.json", "node_memory.0", str(size))
    edited(bundle, "machine.json", "max_memory", str(size))
    fails_kindly(capsys, ["check", str(bundle)])


@pytest.mark.parametrize(
    "text",
    ["1e99999999", "1E9999999", HUGE, f"1/{HUGE}", "1/0", "nan", "inf", "1_000", " 1", "", "1/2/3"],
    ids=lambda text: text[:20],
)
def test_check_of_a_strange_slope(bundle: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    edited(bundle, "states/001/step.json", "outcome.slopes", json.dumps([["nr_memmap_pages", text, "bytes"]]))
    assert "step.json is damaged" in fails_kindly(capsys, ["check", str(bundle)])


@pytest.mark.parametrize(
    "action",
    [
        {"action": "PlugDimm", "id": "x", "size": 2**63},
        {"action": "PlugDimm", "id": "x", "size": 2**50},
        {"action": "PlugDimm", "id": "x", "size": -1},
        {"action": "PlugDimm", "id": ["x"], "size": 1 << 30},
        {"action": "PlugDimm", "id": "x", "size": "1G"},
        {"action": "PlugDimm", "id": "x", "size": 1 << 30, "address": 2**63},
        {"action": "PlugDimm", "id": "x", "size": 1 << 30, "more": 1},
        {"action": "PlugDimm", "id": "x"},
        {"action": "PlugVirtioMem", "id": "x", "max_size": 2**62, "block_size": 1, "port": "rp0"},
        {"action": "Unplug", "id": "nobody"},
        {"action": "SetBlock", "index": 2**60, "state": "online"},
        {"action": "SetBlock", "index": 16, "state": "strange"},
        {"action": "Reboot"},
        {"action": "Resize", "id": "nobody", "requested": 0},
    ],
    ids=lambda action: "-".join(map(str, action.values())),
)
def test_check_of_a_strange_action(bundle: Path, action: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    edited(bundle, "states/001/step.json", "actions", json.dumps([action]))
    fails_kindly(capsys, ["check", str(bundle)])


@pytest.mark.parametrize(
    "action",
    [
        {"action": "PlugDimm", "id": "x", "size": 60 << 40},
        {"action": "PlugVirtioPmem", "id": "x", "size": 60 << 40, "port": "rp0"},
        {"action": "PlugVirtioMem", "id": "x", "max_size": 60 << 40, "block_size": 1, "requested": 60 << 40},
        {"action": "PlugVirtioMem", "id": "x", "max_size": 60 << 40, "block_size": 1, "requested": 7 << 40},
    ],
    ids=lambda action: f"{action['action']}-{action.get('requested')}",
)
def test_check_of_a_device_of_60_TB(bundle: Path, action: dict[str, object]) -> None:
    edited(bundle, "machine.json", "max_memory", str(64 << 40))
    edited(bundle, "states/001/step.json", "actions", json.dumps([action]))
    with bounded():
        assert main(["check", str(bundle)]) in (1, 2, 3)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "results.json"
    path.write_text(dumps(results_to_json([GOOD])))
    return path


@pytest.mark.parametrize("value", [*NUMBERS[:5], NUMBERS[7]], ids=lambda value: value[:20])
@pytest.mark.parametrize("key", ["runs.0.seconds", "runs.0.steps.0.seconds", "runs.0.seed", "runs.0.facts.page_size"])
def test_strange_numbers_in_results(
    tmp_path: Path, results: Path, key: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edited(tmp_path, "results.json", key, value)
    nights = tmp_path / "nights"
    nights.mkdir()
    results.rename(nights / "one.json")
    matrix = tmp_path / "m.yaml"
    matrix.write_text("{name: m, grids: [{axes: {arch: arm64, scenario: dimm-cycle}}]}")
    words = ["run", "--matrix", str(matrix), "--list", "--history", str(nights)]
    assert "one.json" in fails_kindly(capsys, words)


def test_results_of_many_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nights = tmp_path / "nights"
    nights.mkdir()
    (nights / "one.json").write_text("[" + "[]," * (20 << 20) + "[]]")
    matrix = tmp_path / "m.yaml"
    matrix.write_text("{name: m, grids: [{axes: {arch: arm64, scenario: dimm-cycle}}]}")
    words = ["run", "--matrix", str(matrix), "--list", "--history", str(nights)]
    assert "values" in fails_kindly(capsys, words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timeout: 1e999", "timeout: 1e999 is too large"),
        ("timeout: 1e300", "timeout: 1e300 is too large"),
        ("rounds: 99999999999999999999", "rounds: 99999999999999999999 is too large"),
        ("axes: {arch: arm64, scenario: [" + "dimm-cycle, " * 18_000 + "dimm-cycle]}", "duplicate value 'dimm-cycle'"),
        (
            "axes: {arch: arm64, scenario: all, kaslr: [" + ", ".join(map(str, range(30_000))) + "]}",
            "more than 10000 values",
        ),
        (
            "axes: {arch: arm64, scenario: all, cmdline: {" + ", ".join(f"k{i}: a" for i in range(18_000)) + "}}",
            "more than 10000 values",
        ),
    ],
    ids=lambda text: text[:30],
)
def test_large_numbers_in_a_matrix(tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    grid = text if text.startswith("axes") else f"axes: {{arch: arm64, scenario: dimm-cycle}}, {text}"
    path = tmp_path / "m.yaml"
    path.write_text(f"name: m\ngrids: [{{{grid}}}]\n")
    assert re.search(message, fails_kindly(capsys, ["run", "--matrix", str(path), "--list"]))


def test_thousands_of_grids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.yaml"
    grids = ", ".join(f"{{name: g{i}, axes: {{arch: arm64, scenario: dimm-cycle}}}}" for i in range(3000))
    path.write_text(f"name: m\ngrids: [{grids}]\n")
    assert "more than 256 grids" in fails_kindly(capsys, ["run", "--matrix", str(path), "--list"])


@pytest.mark.parametrize("size", ["9" * 70 + "T", "0x" + "f" * 60, "16777217T"])
def test_a_size_beyond_every_address(tmp_path: Path, size: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"name: s\nsteps:\n- fill: {{leave: {size}}}\n")
    assert "is larger than 16777216T" in fails_kindly(capsys, ["run", str(path)])
    assert "is larger than 16777216T" in fails_kindly(capsys, ["run", "dimm-cycle", "--memory", size])


@pytest.mark.parametrize("key", ["initrd", "modules"])
@pytest.mark.parametrize("make", [fifo, endless, loop], ids=lambda make: make.__name__)
def test_a_guest_file_that_names_no_file(
    tmp_path: Path, key: str, make: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "odd")
    path = tmp_path / "g.yaml"
    path.write_text(f"arch: arm64\n{key}: odd\n")
    assert f"{key}: " in fails_kindly(capsys, ["run", "dimm-cycle", "--guest", str(path)])
