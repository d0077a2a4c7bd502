# SPDX-License-Identifier: GPL-2.0-or-later
"""Output, files and exit status of benchmarks; and the command memhp bench."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from harness import __version__
from harness.bench import BENCHES, BenchOptions
from harness.bench.figures import BenchResult, Figure, FigureSection, Host, Target, to_json, to_lines
from harness.bench.measure import Spread
from harness.cli import bench, main
from harness.config.guest import GuestSpec
from harness.progress import Progress
from harness.units import GIB

RESULT = BenchResult(
    benchmark="walk",
    rounds=3,
    host=Host("Some CPU", 4, (0.25, 0.5, 1.0), "6.1.0", "3.12.1", "2.1.0"),
    guest={"arch": "arm64", "memory": "5G", "page size": 4096, "nothing": None},
    sections=(
        FigureSection(
            "paired",
            "host against guest",
            {"table pages": 2719},
            (
                Figure("copy", "copy", Spread((0.001, 0.002, 0.0035)), cpu=Spread((0.001, 0.0011, 0.0012))),
                Figure("ssh", "dump over SSH", Spread((1.2, 1.1, 1.0))),
                Figure("ratio", "ratio", Spread((1200.0, 550.0, 285.71)), unit="x"),
                Figure("page", "each page", Spread((2e-6, 2e-6, 3e-6)), unit="us"),
            ),
        ),
        FigureSection("growth", "growing", notes=("not measured: no reason",)),
    ),
    targets=(
        Target("walk", "walk", 0.025, "ms", 0.002),
        Target("pause", "pause", 0.001, "ms", 0.002),
        Target("ratio", "faster", 30.0, "x", 550.0, floor=True),
        Target("slow", "faster still", 600.0, "x", 550.0, floor=True),
        Target("grown", "more memory", 0.35, "ms", None, "not measured"),
    ),
    mismatches=(),
)

TEXT = """\
bench walk: medians of 3 rounds
host   Some CPU, 4 CPUs, load before 0.25 0.50 1.00, Linux 6.1.0, NumPy 2.1.0
guest  arch arm64, memory 5G, page size 4,096, nothing -

host against guest
  table pages 2,719
                   median       min       max       CPU
  copy               2.00      1.00      3.50  ms  1.10
  dump over SSH  1,100.00  1,000.00  1,200.00  ms
  ratio            550.00    285.71  1,200.00  x
  each page         2.000     2.000     3.000  us

growing
  not measured: no reason

  target: walk            2.00  at most    25.00  ms  met
  target: pause           2.00  at most     1.00  ms  NOT MET
  target: faster        550.00  at least   30.00  x   met
  target: faster still  550.00  at least  600.00  x   NOT MET
  target: more memory        -  at most   350.00  ms  not judged: not measured

the results agree in every round
"""


def test_for_people() -> None:
    assert "".join(f"{line}\n" for line in to_lines(RESULT)) == TEXT


def test_a_busy_host_is_told() -> None:
    busy = dataclasses.replace(RESULT, host=dataclasses.replace(RESULT.host, load=(3.0, 1.0, 1.0)))
    lines = list(to_lines(busy))
    assert "note   the host was busy: the times are too long" in lines
    assert sum(line.endswith("NOT MET, on a busy host") for line in lines) == 2


def test_no_agreement() -> None:
    wrong = dataclasses.replace(RESULT, mismatches=tuple(f"at {number}" for number in range(12)))
    lines = list(to_lines(wrong))
    assert lines[-12:] == ["THE RESULTS DIFFER", *(f"  at {number}" for number in range(10)), "  … and 2 more"]
    assert (wrong.agreed, wrong.exit_status) == (False, 1)


def test_nothing_to_compare_with() -> None:
    alone = dataclasses.replace(RESULT, mismatches=None, reason="no dump")
    assert list(to_lines(alone))[-1] == "not compared: no dump"
    assert (alone.agreed, alone.exit_status) == (None, 0)


def test_slow_is_not_wrong() -> None:
    assert [target.met for target in RESULT.targets] == [True, False, True, False, None]
    assert (RESULT.agreed, RESULT.exit_status) == (True, 0)


def test_json() -> None:
    found = json.loads(json.dumps(to_json(RESULT)))
    assert {name: found[name] for name in ("format", "version", "memhp", "benchmark", "rounds", "exit_status")} == {
        "format": "memhp-bench",
        "version": 1,
        "memhp": __version__,
        "benchmark": "walk",
        "rounds": 3,
        "exit_status": 0,
    }
    assert found["host"] == {
        "cpu": "Some CPU",
        "cpus": 4,
        "load": [0.25, 0.5, 1.0],
        "kernel": "6.1.0",
        "python": "3.12.1",
        "numpy": "2.1.0",
        "busy": False,
    }
    assert found["guest"] == {"arch": "arm64", "memory": "5G", "page size": 4096, "nothing": None}
    paired = found["sections"]["paired"]
    assert paired["facts"] == {"table pages": 2719}
    assert paired["figures"]["copy"] == {
        "label": "copy",
        "unit": "s",
        "median": 0.002,
        "min": 0.001,
        "max": 0.0035,
        "values": [0.001, 0.002, 0.0035],
        "cpu": {"median": 0.0011, "min": 0.001, "max": 0.0012, "values": [0.001, 0.0011, 0.0012]},
    }
    assert paired["figures"]["ssh"]["cpu"] is None
    assert [paired["figures"][name]["unit"] for name in ("ratio", "page")] == ["x", "s"]
    assert found["sections"]["growth"]["notes"] == ["not measured: no reason"]
    assert found["targets"]["slow"] == {
        "label": "faster still",
        "unit": "x",
        "at_least": 600.0,
        "measured": 550.0,
        "met": False,
        "reason": "",
    }
    assert found["targets"]["grown"]["at_most"] == 0.35 and found["targets"]["grown"]["met"] is None
    assert found["agreement"] == {"agreed": True, "mismatches": [], "reason": ""}


class Stand:
    """Stands in for a benchmark: returns a result and records the calls."""

    def __init__(self) -> None:
        self.result = RESULT
        self.asked: list[tuple[GuestSpec, BenchOptions]] = []

    def run(self, spec: GuestSpec, options: BenchOptions, progress: Progress) -> BenchResult:
        self.asked.append((spec, options))
        return self.result


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    stand = Stand()
    monkeypatch.setattr(bench, "find_bench", lambda name: stand.run)
    return stand


def test_every_benchmark_is_there() -> None:
    assert all(callable(bench.find_bench(name)) for name in BENCHES)


def test_memhp_bench(stand: Stand, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "walk.json"
    words = ["bench", "walk", "-a", "riscv64", "--rounds", "3", "--timeout", "7", "--memory", "2G", "--json"]
    assert main([*words, str(target)]) == 0
    assert capsys.readouterr().out == TEXT
    assert json.loads(target.read_text()) == json.loads(json.dumps(to_json(RESULT)))
    [(spec, options)] = stand.asked
    assert (spec.arch, spec.memory, options) == ("riscv64", 2 * GIB, BenchOptions(3, 7.0))


def test_json_on_standard_output(stand: Stand, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "walk", "-a", "arm64", "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["benchmark"] == "walk"
    assert captured.err == TEXT


def test_every_architecture_is_measured_unless_one_is_named(stand: Stand, capsys: pytest.CaptureFixture[str]) -> None:
    stand.result = dataclasses.replace(RESULT, benchmark="speed")
    assert main(["bench", "--json", "-", "--boot", "cold"]) == 0
    assert [found["benchmark"] for found in json.loads(capsys.readouterr().out)] == ["speed", "speed"]
    assert [(spec.arch, options.start) for spec, options in stand.asked] == [("arm64", "cold"), ("riscv64", "cold")]


def test_wrong_results_end_with_1(stand: Stand, capsys: pytest.CaptureFixture[str]) -> None:
    stand.result = dataclasses.replace(RESULT, mismatches=("there",))
    assert main(["bench", "walk", "-a", "arm64"]) == 1
    assert capsys.readouterr().out.endswith("THE RESULTS DIFFER\n  there\n")


@pytest.mark.parametrize(("mismatches", "status"), [((), 3), (("there",), 1)])
def test_a_report_that_cannot_be_written_does_not_hide_wrong_results(
    stand: Stand, capsys: pytest.CaptureFixture[str], mismatches: tuple[str, ...], status: int
) -> None:
    stand.result = dataclasses.replace(RESULT, mismatches=mismatches)
    assert main(["bench", "walk", "-a", "arm64", "--json", "/dev/full"]) == status
    assert "memhp: cannot write /dev/full: No space left on device\n" in capsys.readouterr().err


def test_a_guests_text_does_not_steer_the_terminal(stand: Stand, capsys: pytest.CaptureFixture[str]) -> None:
    stand.result = dataclasses.replace(RESULT, guest={"kernel": "6.12\x1b[2J\nforged"})
    assert main(["bench", "walk", "-a", "arm64"]) == 0
    assert "guest  kernel 6.12\\x1b[2J\\nforged\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["wlak"], "memhp: NAME: 'wlak' is not known\n  hint: did you mean walk?\n"),
        (
            ["walk", "--rounds", "0"],
            "memhp: --rounds: invalid number of rounds: 0\n  hint: 1 to 1000; the default is 10\n",
        ),
        (["walk", "--rounds", "1001"], "memhp: --rounds: invalid number of rounds: 1001\n"),
        (["walk", "--rounds", "many"], "memhp: --rounds: 'many' is not a whole number\n"),
        (["walk", "--timeout", "-1"], "memhp: --timeout: '-1' is not a number of seconds\n"),
        (["walk", "--json", "/no/x"], "memhp: --json: no directory /no\n  hint: create it first\n"),
        (["walk", "-a", "x86"], "memhp: unknown architecture 'x86'\n"),
    ],
)
def test_usage_errors(stand: Stand, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["bench", *words]) == 2
    assert message in capsys.readouterr().err
    assert stand.asked == []
