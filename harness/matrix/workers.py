# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs cells, each as a separate ``memhp run``, several at a time; the results stay on disk.

A cell's process knows nothing of the matrix, and this module nothing of guests: running the same command line in the
same folder (``command``) by other means gives the same files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import selectors
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import harness
from harness import proc
from harness.check import Verdict
from harness.check.required import Demand
from harness.deadline import Deadline
from harness.errors import DeadlineExpired, UsageError
from harness.matrix.cells import Cell, Unstarted
from harness.matrix.results_store import Done, Store
from harness.report.files import write_report
from harness.report.json import dumps, load_results, results_to_json
from harness.scenarios.file import load_scenario
from harness.scenarios.memorybudget import MemoryBudget
from harness.scenarios.result import RunResult
from harness.scenarios.run_options import Look, Start

#: seconds between two polls of the running cells
_TICK = 1.0
#: seconds that a cell's process has to end its guest after SIGTERM
_FAREWELL = 20.0
#: a cell is killed after this multiple of its expected duration plus its boot timeout: its own deadlines have failed
_PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class Running:
    """A running cell: for how many seconds, and the last line of its output."""

    cell: Cell
    seconds: float
    last: str


class Board(Protocol):
    """An observer of the running cells."""

    def kept(self, done: Done) -> None:
        """An earlier start already has this result."""

    def started(self, cell: Cell) -> None:
        """A cell's process has been started."""

    def finished(self, done: Done) -> None:
        """A cell has ended."""

    def tick(self, running: Sequence[Running], waiting: int) -> None:
        """Called about once a second with the running cells and the number of cells still to start."""


def command(
    cell: Cell,
    folder: Path,
    start: Start = "auto",
    known_bugs: bool = True,
    demand: Demand | None = None,
    look: Look = "full",
) -> list[str]:
    """The command line that runs ``cell`` in ``folder``, as prepared by ``Store.begin``; the rest as in RunOptions."""
    words = [sys.executable, "-P", "-m", "harness", "--color", "never", "run", str(folder / "scenario.yaml")]
    words += ["--guest", str(folder / "guest.yaml"), "--bundle-dir", str(folder / "bundles")]
    words += ["--json", str(folder / "result.json"), "--timeout", f"{cell.timeout:g}"]
    words += [] if start == "auto" else ["--boot", start]
    words += [] if known_bugs else ["--no-known-bugs"]
    words += [] if look == "full" else ["--look", look]
    words += ["--require", ",".join(sorted(demand.require))] if demand and demand.require else []
    words += ["--allow-unobserved", ",".join(sorted(demand.allowed))] if demand and demand.allowed else []
    return [*words, "--rounds", str(cell.rounds)] if cell.rounds is not None else words


@dataclass(slots=True)
class _CellJob:
    cell: Cell
    folder: Path
    child: proc.Child
    clock: float
    started: str
    deadline: Deadline


class Workers:
    """Runs cells of one store, ``jobs`` at a time as far as there is ``room`` for their guests."""

    def __init__(
        self,
        store: Store,
        jobs: int,
        board: Board,
        argv: Callable[[Cell, Path], list[str]] = command,
        room: MemoryBudget | None = None,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._board = board
        self._argv = argv
        self._room = room or MemoryBudget(None)
        self._running: list[_CellJob] = []

    def run(self, cells: Sequence[Cell], broken: Mapping[str, Unstarted] | None = None) -> list[Done]:
        """Run every cell that has no verdict yet, the longest first; the results are in the order of ``cells``.

        ``broken`` are the cells that cannot be started, by id. If this ends early, no process is left
        running, and every result so far is on disk.
        """
        results = {}
        waiting = []
        for cell in cells:
            kept = self._store.finished(cell)
            if kept is None:
                waiting.append(cell)
            else:
                results[cell.id] = kept
                self._board.kept(kept)
        waiting.sort(key=lambda cell: cell.weight)
        try:
            while waiting or self._running:
                while waiting and len(self._running) < self._jobs:
                    cell = waiting[-1]
                    if broken and cell.id in broken:
                        results[cell.id] = self._give_up(cell, broken[cell.id])
                    elif self._room.enter(cell.memory):
                        self._start(cell)
                    else:
                        break
                    waiting.pop()
                for done in self._wait():
                    results[done.id] = done
                self._board.tick([self._state(job) for job in self._running], len(waiting))
        finally:
            self._end_all()
        return [results[cell.id] for cell in cells]

    def _begin(self, cell: Cell) -> Path:
        return self._store.begin(cell, load_scenario(cell.source).text)

    def _start(self, cell: Cell) -> None:
        folder = self._begin(cell)
        log = folder / "log.txt"
        deadline = Deadline(cell.timeout + _PATIENCE * cell.weight)
        child = proc.spawn(self._argv(cell, folder), stdout=log, stderr=log, env=_environment())
        self._running.append(_CellJob(cell, folder, child, time.monotonic(), _now(), deadline))
        self._board.started(cell)

    def _wait(self) -> list[Done]:
        """Cells that have ended, after at most a second."""
        with selectors.DefaultSelector() as selector:
            for job in self._running:
                selector.register(job.child, selectors.EVENT_READ, job)
            ready = [key.data for key, _ in selector.select(_TICK)] if self._running else []
        late = [job for job in self._running if job not in ready and job.deadline.expired]
        return [self._finish(job, late=job in late) for job in [*ready, *late]]

    def _finish(self, job: _CellJob, *, late: bool) -> Done:
        self._running.remove(job)
        self._room.leave(job.cell.memory)
        status = job.child.reap()
        seconds = time.monotonic() - job.clock
        if late:
            result = failed(job.cell, f"it had not ended after {seconds:.0f} s", seconds, job.started)
            _write(job.folder, result)
        else:
            _settle(job.cell, job.folder, status, seconds, job.started)
        done = self._store.end(job.cell, seconds, job.started)
        self._board.finished(done)
        return done

    def _give_up(self, cell: Cell, why: Unstarted) -> Done:
        started = _now()
        result = failed(cell, why.reason, 0.0, started)
        if why.verdict is Verdict.SKIPPED:
            hint = "another kernel may be built for it; exclude: leaves the cell out"
            result = dataclasses.replace(result, verdict=why.verdict, hint=hint)
        _write(self._begin(cell), result)
        done = self._store.end(cell, 0.0, started)
        self._board.finished(done)
        return done

    def _state(self, job: _CellJob) -> Running:
        last = proc.tail_file(job.folder / "log.txt", lines=1, limit=400).strip()
        return Running(job.cell, time.monotonic() - job.clock, last)

    def _end_all(self) -> None:
        """Let every process end its guest, then kill the rest."""
        for job in self._running:
            job.child.terminate()
        limit = Deadline(_FAREWELL)
        for job in self._running:
            with contextlib.suppress(DeadlineExpired):
                job.child.wait(limit)
            job.child.reap()
        self._running.clear()


def _environment() -> dict[str, str]:
    """The interpreter with our own code first: modules in the current directory are ignored (-P)."""
    root = str(Path(harness.__file__).parents[1])
    rest = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, rest] if rest else [root])}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat()


def _settle(cell: Cell, folder: Path, status: int, seconds: float, started: str) -> None:
    """Ensure that ``result.json`` has exactly one run, and that it belongs to the cell."""
    try:
        [run] = load_results(folder / "result.json")
    except (UsageError, ValueError):
        said = proc.tail_file(folder / "log.txt", lines=12)
        reason = f"memhp run {proc.describe_status(status)}" + (f": {said}" if said else "")
        _write(folder, failed(cell, reason, seconds, started))
        return
    wrong = mismatch(cell, run)
    # What was found stays found, whatever guest it was.
    if wrong and run.verdict is not Verdict.FAIL:
        _write(folder, dataclasses.replace(run, verdict=Verdict.INFRA, reason=wrong))


def mismatch(cell: Cell, run: RunResult) -> str:
    """Why a run does not belong to ``cell``: another page size or address space, or none seen. "" if it does."""
    for wanted, fact, unit in ((cell.page_size, "page_size", "byte pages"), (cell.va_bits, "va_bits", "address bits")):
        booted = run.facts.get(fact)
        if wanted is not None and booted is None and run.verdict in (Verdict.PASS, Verdict.KNOWN):
            return f"nobody saw the guest's {unit}: {wanted} are those of {cell.axes['paging']}"
        if wanted is not None and booted is not None and booted != wanted:
            return f"the guest booted with {booted} {unit}, not with the {wanted} of {cell.axes['paging']}"
    return ""


def failed(cell: Cell, reason: str, seconds: float, started: str) -> RunResult:
    """The result of a cell without a verdict."""
    return RunResult(
        scenario=cell.id.rpartition("/")[2],
        guest=cell.guest.name,
        arch=cell.guest.arch,
        verdict=Verdict.INFRA,
        reason=reason,
        hint="see log.txt of the cell",
        seconds=seconds,
        boot_seconds=0.0,
        steps=(),
        facts={},
        bundle=None,
        started=started,
        seed=0,
    )


def _write(folder: Path, run: RunResult) -> None:
    write_report(str(folder / "result.json"), dumps(results_to_json([run])))
