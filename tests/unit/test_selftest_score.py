# SPDX-License-Identifier: GPL-2.0-or-later
"""The mutation score: output, files and exit status; and the command memhp selftest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.cli import main, selftest
from harness.config.guest import GuestSpec
from harness.progress import Progress
from harness.selftest.catalogue import CATALOGUE, chosen
from harness.selftest.corruption import Corruption
from harness.selftest.score import SelftestResult, exit_status, to_json, to_lines
from harness.selftest.trial import INAPPLICABLE, MISSED, NAMED, STUCK, Trial


def trial(name: str, status: str, named: Sequence[str] = (), where: str = "here", reason: str = "") -> Trial:
    [item] = chosen([name])
    return Trial(item, status, where, item.broken, frozenset(named), reason)


GOOD = trial("total-less", NAMED, ["MEM-1"])
LIVE = trial("linear-hot-gone", NAMED, ["LIN-1", "XCK-1"])
AWAY = trial("policy", INAPPLICABLE, reason="no policy")
GONE = trial("zone-start", INAPPLICABLE, reason="no policy")
BAD = trial("total-more", MISSED, reason="MEM-1 did not name it; nothing did")
LEFT = trial("table-twice", STUCK, ["PGT-2"], reason="still broken after undoing it: PGT-2")


def result(*trials: Trial) -> SelftestResult:
    return SelftestResult("arm64", "arm64", "6.12.107-hp", trials, {}, 12.34)


def test_perfect() -> None:
    assert list(to_lines(result(GOOD, AWAY, LIVE, GONE))) == [
        "arm64: not tried: policy, zone-start: no policy",
        "arm64: named by LIN-1 1, MEM-1 1, XCK-1 1",
        "arm64: 2/2 corruptions named (100 %), 1 of them in the memory of a live guest, 1 in text; 12.3 s",
    ]
    assert exit_status([result(GOOD, AWAY), result(LIVE)]) == 0


def test_missed_and_stuck() -> None:
    assert list(to_lines(result(GOOD, BAD, LEFT, LIVE))) == [
        "arm64: missed: total-more: here: MEM-1 did not name it; nothing did",
        "arm64: stuck: table-twice: here: still broken after undoing it: PGT-2",
        "arm64: named by LIN-1 1, MEM-1 1, PGT-2 1, XCK-1 1",
        "arm64: 2/4 corruptions named (50 %), 2 of them in the memory of a live guest, 2 in text; 12.3 s",
    ]
    assert exit_status([result(GOOD), result(GOOD, BAD)]) == 1
    assert exit_status([result(LEFT), result(AWAY)]) == 1


def test_a_share_is_never_rounded_up_to_all() -> None:
    *_, score = to_lines(result(*[GOOD] * 999, BAD))
    assert score.startswith("arm64: 999/1000 corruptions named (99 %)")


def test_nothing_could_be_corrupted() -> None:
    assert list(to_lines(result(AWAY)))[-1] == "arm64: nothing could be corrupted"
    assert exit_status([result(GOOD), result(AWAY)]) == 3


def test_json() -> None:
    found = json.loads(json.dumps(to_json([result(GOOD, BAD, AWAY)])))
    assert (found["format"], found["version"]) == ("memhp-selftest", 1)
    [guest] = found["guests"]
    trials = guest.pop("trials")
    assert guest == {
        "arch": "arm64",
        "guest": "arm64",
        "kernel": "6.12.107-hp",
        "lacks": {},
        "seconds": 12.34,
        "applied": 2,
        "named": 1,
        "score": 0.5,
    }
    assert trials[0] == {
        "name": "total-less",
        "kind": "text",
        "target": "meminfo",
        "summary": "MemTotal is one page too small",
        "broken": ["MEM-1"],
        "status": "named",
        "where": "here",
        "wanted": ["MEM-1"],
        "named": ["MEM-1"],
        "reason": "",
    }
    assert to_json([result(AWAY)])["guests"][0]["score"] is None  # type: ignore[index]


class Trials:
    """Stands in for the selftest, and records its calls."""

    def __init__(self) -> None:
        self.asked: list[tuple[GuestSpec, Sequence[Corruption], float]] = []
        self.trials: tuple[Trial, ...] = (GOOD,)

    def run(
        self, spec: GuestSpec, corruptions: Sequence[Corruption], timeout: float, progress: Progress, start: str
    ) -> SelftestResult:
        self.asked.append((spec, corruptions, timeout))
        return SelftestResult(spec.arch, spec.name, "6.12", self.trials)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Trials:
    stand_in = Trials()
    monkeypatch.setattr(selftest, "run_selftest", stand_in.run)
    return stand_in


def test_every_architecture_is_tested_unless_one_is_named(
    trials: Trials, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["selftest", "--timeout", "7"]) == 0
    assert [(spec.arch, items, timeout) for spec, items, timeout in trials.asked] == [
        ("arm64", CATALOGUE, 7.0),
        ("riscv64", CATALOGUE, 7.0),
    ]
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["arm64"] * 2 + ["riscv64"] * 2
    trials.asked.clear()
    target = tmp_path / "out.json"
    words = ["selftest", "-a", "riscv64", "--only", "zone-*", "--memory", "2G", "--json", str(target)]
    assert main(words) == 0
    [(spec, items, _)] = trials.asked
    assert (spec.arch, spec.memory) == ("riscv64", 2 << 30)
    assert items == tuple(item for item in CATALOGUE if item.name.startswith("zone-")) and items
    assert json.loads(target.read_text())["guests"][0]["arch"] == "riscv64"


def test_a_guest_file_says_its_architecture(trials: Trials, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("arch: riscv64\nmemory: 512M\n")
    assert main(["selftest", "--guest", str(file)]) == 0
    assert [(spec.arch, spec.memory) for spec, _, _ in trials.asked] == [("riscv64", 512 << 20)]


def test_a_missed_corruption_is_the_exit_status(trials: Trials) -> None:
    trials.trials = (GOOD, BAD)
    assert main(["selftest", "-a", "arm64"]) == 1


def test_json_on_standard_output_is_all_there_is(trials: Trials, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "-a", "arm64", "--json", "-"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["guests"][0]["named"] == 1
    assert "1/1 corruptions named (100 %)" in shown.err


def test_list(trials: Trials, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--list", "--only", "zone-managed"]) == 0
    assert capsys.readouterr().out == (
        "name          corrupts  named by  what is wrong\n"
        "zone-managed  zoneinfo  ZON-1     one managed page is missing\n"
    )
    assert main(["selftest", "--list", "--json", "-"]) == 0
    assert [item["name"] for item in json.loads(capsys.readouterr().out)] == [item.name for item in CATALOGUE]
    assert trials.asked == []


def test_an_unknown_corruption(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--only", "linear-hot-gon"]) == 2
    assert capsys.readouterr().err == (
        "memhp: --only: no corruption is called 'linear-hot-gon'\n  hint: did you mean linear-hot-gone?\n"
    )
