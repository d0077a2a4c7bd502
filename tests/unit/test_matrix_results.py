# SPDX-License-Identifier: GPL-2.0-or-later
"""Workers, results on disk, merging, earlier nights. Cells are real processes that run a stand-in for memhp."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from report_samples import BAD, GOOD, INFRA

from harness.check import Verdict
from harness.cli import main
from harness.config.guest import GuestSpec
from harness.errors import InfraError, UsageError
from harness.matrix.cells import Cell, MatrixPlan, Unstarted
from harness.matrix.history import book_of_store, check_history, expected, read_history
from harness.matrix.results_store import Done, Store, merge, open_store, read_store
from harness.matrix.workers import Running, Workers, mismatch
from harness.report.book import status_of
from harness.report.json import dumps, results_to_json
from harness.report.trends import Night, trend
from harness.scenarios.memorybudget import MemoryBudget

NOW = "2026-11-21T00:00:00+00:00"
#: waits for the given time, or until a file of the given name exists, then writes the given result
FAKE = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
print("step 1 of 2", flush=True)
if len(sys.argv) > 4:
    while not pathlib.Path(sys.argv[4]).exists():
        time.sleep(0.01)
time.sleep(float(sys.argv[3]))
if sys.argv[2] == "crash":
    sys.exit("memhp: it went wrong")
(folder / "bundles" / "1").mkdir(parents=True)
(folder / "bundles" / "1" / "console.log").write_text("hello")
(folder / "result.json").write_text(pathlib.Path(sys.argv[2]).read_text())
"""


def cell(name: str, scenario: str = "dimm-cycle", **fields: object) -> Cell:
    spec = GuestSpec.default("arm64").with_fields({"name": name})
    made = Cell(
        f"{name}/{scenario}", {"arch": "arm64", "scenario": scenario}, scenario, spec, 2, 10.0, None, f"d-{name}"
    )
    return dataclasses.replace(made, **fields)  # type: ignore[arg-type]


def plan_of(*cells: Cell, name: str = "small") -> MatrixPlan:
    return MatrixPlan(name, cells, "-".join(one.digest for one in cells))


class Watch:
    def __init__(self) -> None:
        self.events: list[str] = []

    def kept(self, done: Done) -> None:
        self.events.append(f"kept {done.id}")

    def started(self, cell: Cell) -> None:
        self.events.append(f"started {cell.id}")

    def finished(self, done: Done) -> None:
        self.events.append(f"finished {done.id} {done.run.verdict.value}")

    def tick(self, running: Sequence[Running], waiting: int) -> None:
        pass


class Fakes:
    """Command lines for cells, by the name of the result that they produce."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kinds: dict[str, str] = {}
        self.seconds = 0.0
        self.until: list[str] = []
        bundle = Path("elsewhere/bundles/1")
        for name, run in {"good": GOOD, "bad": BAD, "infra": INFRA}.items():
            text = dumps(results_to_json([dataclasses.replace(run, bundle=bundle)]))
            (folder / f"{name}.json").write_text(text)

    def __call__(self, cell: Cell, folder: Path) -> list[str]:
        kind = self.kinds.get(cell.id, "good")
        what = kind if kind == "crash" else str(self.folder / f"{kind}.json")
        return [sys.executable, "-c", FAKE, str(folder), what, str(self.seconds), *self.until]


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    return Fakes(tmp_path)


def run(store: Store, plan: MatrixPlan, fakes: Fakes, jobs: int = 2) -> tuple[list[Done], Watch]:
    watch = Watch()
    return Workers(store, jobs, watch, fakes).run(plan.cells), watch


def test_cells_run_and_what_finished_is_not_repeated(tmp_path: Path, fakes: Fakes) -> None:
    plan = plan_of(cell("a"), cell("b"), cell("c"), cell("d"))
    fakes.kinds = {"b/dimm-cycle": "bad", "c/dimm-cycle": "infra", "d/dimm-cycle": "crash"}
    store = open_store(tmp_path / "r", plan, NOW)
    done, watch = run(store, plan, fakes)
    assert [one.run.verdict for one in done] == [Verdict.PASS, Verdict.FAIL, Verdict.INFRA, Verdict.INFRA]
    assert "memhp run exited with status 1" in done[3].run.reason and "it went wrong" in done[3].run.reason
    assert (tmp_path / "r/cells/a/dimm-cycle/scenario.yaml").read_text().startswith("# SPDX")
    # Cells without a verdict are run again, those with one are not.
    done, watch = run(open_store(tmp_path / "r", plan, "later"), plan, fakes)
    assert watch.events[:2] == ["kept a/dimm-cycle", "kept b/dimm-cycle"]
    assert sorted(word for word in watch.events if word.startswith("started")) == [
        "started c/dimm-cycle",
        "started d/dimm-cycle",
    ]
    assert read_store(tmp_path / "r").created == NOW


def test_no_more_cells_at_a_time_than_there_is_memory_for(tmp_path: Path, fakes: Fakes) -> None:
    plan = plan_of(*(cell(name, memory=2) for name in "abc"))
    watch = Watch()
    done = Workers(open_store(tmp_path / "r", plan, NOW), 3, watch, fakes, MemoryBudget(3)).run(plan.cells)
    assert [one.run.verdict for one in done] == [Verdict.PASS] * 3
    assert [event.split()[0] for event in watch.events] == ["started", "finished"] * 3


def test_a_cell_that_has_become_another_is_run_again(tmp_path: Path, fakes: Fakes) -> None:
    plan = plan_of(cell("a"))
    run(open_store(tmp_path / "r", plan, NOW), plan, fakes)
    changed = plan_of(cell("a", digest="other"))
    _, watch = run(open_store(tmp_path / "r", changed, NOW), changed, fakes)
    assert "started a/dimm-cycle" in watch.events


@pytest.mark.parametrize("verdict", [Verdict.INFRA, Verdict.SKIPPED])
def test_what_cannot_be_started_has_its_reason(tmp_path: Path, fakes: Fakes, verdict: Verdict) -> None:
    plan = plan_of(cell("a"))
    store = open_store(tmp_path / "r", plan, NOW)
    [done] = Workers(store, 1, Watch(), fakes).run(plan.cells, {"a/dimm-cycle": Unstarted(verdict, "no kernel for it")})
    assert (done.run.verdict, done.run.reason) == (verdict, "no kernel for it")


def test_what_a_run_found_on_another_guest_than_its_cells_stays_found(tmp_path: Path, fakes: Fakes) -> None:
    plan = plan_of(cell("a", va_bits=47, axes={"paging": "16k-47"}), cell("b", va_bits=47, axes={"paging": "16k-47"}))
    fakes.kinds = {"b/dimm-cycle": "bad"}
    done, _ = run(open_store(tmp_path / "r", plan, NOW), plan, fakes)
    assert [one.run.verdict for one in done] == [Verdict.INFRA, Verdict.FAIL]


def test_the_board_sees_the_last_line(tmp_path: Path, fakes: Fakes) -> None:
    fakes.until = [str(tmp_path / "seen")]

    class Onlooker(Watch):
        def tick(self, running: Sequence[Running], waiting: int) -> None:
            if "step 1 of 2" in {state.last for state in running}:
                (tmp_path / "seen").touch()

    plan = plan_of(cell("a"))
    [done] = Workers(open_store(tmp_path / "r", plan, NOW), 2, Onlooker(), fakes).run(plan.cells)
    assert done.run.verdict is Verdict.PASS


def test_a_cell_that_never_ends_is_ended(tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.matrix.workers._PATIENCE", 0.0)
    fakes.seconds = 60
    plan = plan_of(cell("a", timeout=1.0))
    done, _ = run(open_store(tmp_path / "r", plan, NOW), plan, fakes)
    assert done[0].run.reason.startswith("it had not ended after")


def test_an_interruption_leaves_no_process_and_keeps_what_ended(tmp_path: Path, fakes: Fakes) -> None:
    fakes.kinds = {"b/dimm-cycle": "bad"}
    plan = plan_of(cell("a", steps=1), cell("b", steps=9))
    store = open_store(tmp_path / "r", plan, NOW)

    class Impatient(Watch):
        def finished(self, done: Done) -> None:
            super().finished(done)
            fakes.seconds = 60
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Workers(store, 1, Impatient(), fakes).run(plan.cells)
    assert set(store.all_done()) == {"b/dimm-cycle"}


def test_a_killed_run_is_gone_on_with(tmp_path: Path, fakes: Fakes) -> None:
    """SIGKILL in the middle: the processes of the cells die, too, and the second start repeats no finished cell."""
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_matrix_results import Fakes, Watch, cell, plan_of
from harness.matrix.results_store import open_store
from harness.matrix.workers import Workers
fakes = Fakes(Path({str(tmp_path)!r}))
plan = plan_of(cell("a", steps=9), cell("b", steps=1))
class Slow(Watch):
    def finished(self, done):
        fakes.seconds = 60
        print("one is done", flush=True)
    def started(self, cell):
        print("pid of", cell.id, flush=True)
Workers(open_store(Path({str(tmp_path / "r")!r}), plan, "now"), 1, Slow(), fakes).run(plan.cells)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(3)]
        assert lines == ["pid of a/dimm-cycle\n", "one is done\n", "pid of b/dimm-cycle\n"]
        child.send_signal(signal.SIGKILL)
    mark = str(tmp_path / "r" / "cells" / "b").encode()
    limit = time.monotonic() + 60
    while any(mark in line for line in _command_lines()):
        assert time.monotonic() < limit, "the cell's process is still running"
    plan = plan_of(cell("a", steps=9), cell("b", steps=1))
    _, watch = run(open_store(tmp_path / "r", plan, NOW), plan, fakes)
    assert watch.events == ["kept a/dimm-cycle", "started b/dimm-cycle", "finished b/dimm-cycle pass"]


def _command_lines() -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:
            continue
    return [line for line in found if str(os.getpid()).encode() not in line]


def test_two_at_once_in_one_directory(tmp_path: Path) -> None:
    store = open_store(tmp_path / "r", plan_of(cell("a")), NOW)
    with store.lock(), pytest.raises(UsageError, match="another memhp is at work"), store.lock():
        pass
    with store.lock():
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "was written by version 2 of the schema, this memhp reads 1"),
        ({"format": "other"}, "was not written by memhp run --matrix"),
        ({"name": "weekly"}, "holds results of the matrix 'weekly', not of 'small'"),
        ({"cells": [{"id": "../x"}]}, "is damaged"),
        ({"cells": 5}, "is damaged"),
    ],
)
def test_a_directory_of_another_kind(tmp_path: Path, change: dict[str, object], message: str) -> None:
    plan = plan_of(cell("a"))
    open_store(tmp_path / "r", plan, NOW)
    path = tmp_path / "r" / "matrix.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UsageError) as caught:
        open_store(tmp_path / "r", plan, NOW)
    assert message in caught.value.message and caught.value.hint and caught.value.exit_status == 2


def test_a_directory_with_something_else_in_it(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="already exists and holds no results of a matrix"):
        open_store(tmp_path, plan_of(cell("a")), NOW)
    with pytest.raises(UsageError, match="holds no results of a matrix"):
        read_store(tmp_path)


def test_a_damaged_cell_is_named(tmp_path: Path, fakes: Fakes) -> None:
    plan = plan_of(cell("a"))
    store = open_store(tmp_path / "r", plan, NOW)
    run(store, plan, fakes)
    (store.cell_dir("a/dimm-cycle") / "result.json").write_text("{}")
    with pytest.raises(UsageError, match="contains no memhp results"):
        store.all_done()


def test_merging_shards(tmp_path: Path, fakes: Fakes) -> None:
    plan = plan_of(cell("a"), cell("b"), cell("c"))
    stores = []
    for number, name in enumerate("ab"):
        store = open_store(tmp_path / f"shard{number}", plan, f"2026-11-2{number}T00:00:00+00:00")
        fakes.kinds = {"b/dimm-cycle": "bad"}
        Workers(store, 1, Watch(), fakes).run([one for one in plan.cells if one.guest.name == name])
        stores.append(store.root)
    merged = merge(stores, tmp_path / "whole")
    assert merged.created == "2026-11-20T00:00:00+00:00"
    book = book_of_store(read_store(tmp_path / "whole"), {})
    assert [(entry.id, entry.run.verdict) for entry in book.entries] == [
        ("a/dimm-cycle", Verdict.PASS),
        ("b/dimm-cycle", Verdict.FAIL),
    ]
    assert [id for id, _ in book.missing] == ["c/dimm-cycle"] and status_of(book) == 1
    links = dict(book.entries[0].links)
    assert links["bundle"] == "cells/a/dimm-cycle/bundles/1/" and (tmp_path / "whole" / links["console.log"]).is_file()
    assert status_of(dataclasses.replace(book, entries=book.entries[:1])) == 3, "a missing cell has no verdict"
    with pytest.raises(UsageError, match="already exists"):
        merge(stores, tmp_path / "whole")
    with pytest.raises(UsageError, match=r"a/dimm-cycle is in .*shard0 and in .*shard0"):
        merge([stores[0], stores[0]], tmp_path / "twice")
    open_store(tmp_path / "other", plan_of(cell("z")), NOW)
    with pytest.raises(UsageError, match="are not shards of one matrix"):
        merge([stores[0], tmp_path / "other"], tmp_path / "mixed")
    with pytest.raises(UsageError, match="holds no results of a matrix"):
        merge([tmp_path / "nowhere"], tmp_path / "none")


def one_shard(tmp_path: Path, fakes: Fakes) -> Path:
    plan = plan_of(cell("a"))
    store = open_store(tmp_path / "shard", plan, NOW)
    run(store, plan, fakes)
    return store.root


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_a_merge_that_fails_leaves_its_target_as_it_was(
    tmp_path: Path, fakes: Fakes, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, target = one_shard(tmp_path, fakes), tmp_path / "whole"
    if there:
        target.mkdir()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", full)
        with pytest.raises(InfraError, match=r"cannot write .*whole: No space left"):
            merge([shard], target)
    assert target.exists() is there and not (there and list(target.iterdir()))
    assert merge([shard], target).name == "small"


def test_a_merge_without_its_history_writes_nothing(
    tmp_path: Path, fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    shard, target, nights = one_shard(tmp_path, fakes), tmp_path / "whole", tmp_path / "nights"
    nights.mkdir()
    (nights / "one.json").write_text("NaN")
    assert main(["merge", str(shard), "-o", str(target), "--history", str(nights)]) == 2
    assert "one.json" in capsys.readouterr().err
    assert not target.exists()


def test_a_guest_that_came_up_otherwise_is_no_result_of_its_cell() -> None:
    wanted = cell("a", page_size=16384, va_bits=47, axes={"paging": "16k-47"})
    right = dataclasses.replace(GOOD, facts={"page_size": 16384, "va_bits": 47})
    assert mismatch(wanted, right) == ""
    never = dataclasses.replace(GOOD, facts={}, verdict=Verdict.INFRA)
    assert mismatch(wanted, never) == "", "a guest that did not boot shows no mismatch"
    unseen = "nobody saw the guest's byte pages: 16384 are those of 16k-47"
    assert mismatch(wanted, dataclasses.replace(GOOD, facts={})) == unseen
    blind = dataclasses.replace(right, facts={**right.facts, "va_bits": None})
    assert mismatch(wanted, blind) == "nobody saw the guest's address bits: 47 are those of 16k-47"
    four = dataclasses.replace(GOOD, facts={"page_size": 4096, "va_bits": 47})
    assert mismatch(wanted, four) == "the guest booted with 4096 byte pages, not with the 16384 of 16k-47"
    wide = dataclasses.replace(GOOD, facts={"page_size": 16384, "va_bits": 52})
    assert mismatch(wanted, wide) == "the guest booted with 52 address bits, not with the 47 of 16k-47"


def test_earlier_nights_are_read_from_directories_and_files(tmp_path: Path, fakes: Fakes) -> None:
    plan = plan_of(cell("a"))
    nights = tmp_path / "nights"
    for number in range(2):
        store = open_store(nights / f"night{number}", plan, NOW)
        run(store, plan, fakes)
    (nights / "single.json").write_text(dumps(results_to_json([dataclasses.replace(GOOD, guest="a")])))
    (nights / "README").write_text("not a night")
    found = read_history(nights, name="small", but=nights / "night1")
    assert [night.name for night in found["a/dimm-cycle"]] == ["night0", "single"]
    assert set(read_history(nights, name="other")) == {"a/dimm-cycle"}, "a single run belongs to no matrix"
    assert expected(plan.cells, found) == [(100.0, True)]
    assert expected(plan.cells, {}) == [(plan.cells[0].weight, False)]
    path = nights / "night0/cells/a/dimm-cycle/cell.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 9}))
    with pytest.raises(UsageError, match="has another version"):
        read_history(nights)
    path.write_text("{")
    with pytest.raises(UsageError, match="is damaged"):
        read_history(nights)
    with pytest.raises(UsageError, match="--history: no directory"):
        check_history(str(tmp_path / "none"))


def night(day: int, verdict: Verdict = Verdict.PASS, seconds: float = 10.0, kernel: str = "k") -> Night:
    return Night(f"2026-11-{day:02d}T00:00:00+00:00", verdict, seconds, kernel, (), f"n{day}")


def test_the_first_bad_night_is_the_one_since_which_it_never_passed() -> None:
    found = trend(
        [night(1), night(2, Verdict.FAIL), night(3), night(4, Verdict.FAIL, kernel="k2"), night(5, Verdict.INFRA)]
    )
    assert found.first_bad is not None and found.first_bad.name == "n4"
    assert found.last_good is not None and found.last_good.name == "n3"
    assert (found.flips, found.turns, found.flaky) == (2, 2, True)
    assert trend([night(1, Verdict.FAIL), night(2)]).first_bad is None


def test_a_change_with_the_kernel_is_no_flake() -> None:
    found = trend([night(1), night(2, Verdict.FAIL, kernel="k2"), night(3, Verdict.FAIL, kernel="k2")])
    assert (found.flips, found.turns, found.flaky) == (0, 1, False)


def test_the_noise_band_is_what_earlier_nights_measured() -> None:
    nights = [night(day, seconds=10 + day / 10) for day in range(1, 10)]
    slow = trend([*nights, night(20, seconds=11.5)])
    assert slow.band == (10.1, 10.9) and slow.drift == "slower" and slow.chance == pytest.approx(0.2)
    assert trend([*nights, night(20, seconds=10.5)]).drift == ""
    assert trend([*nights, night(20, seconds=9)]).drift == "faster"
    few = trend([night(1), night(2), night(3, seconds=99)])
    assert (few.band, few.drift) == (None, "")
    assert trend([*nights, night(20, Verdict.FAIL, seconds=99)]).drift == "", "a run that stopped early is not faster"
