# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp run --matrix``."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from harness.cli.command_arguments import GUEST_OPTIONS, ReportArguments, RunArguments, is_given
from harness.cli.guest_options import demand_of, start_of
from harness.cli.results import all_reports, check_reports, finish_reports, results_stream
from harness.errors import UsageError
from harness.matrix.cells import Cell, MatrixPlan, expected_seconds, make_plan, prepare, shard_of
from harness.matrix.history import History, book_of_store, check_history, expected, read_history
from harness.matrix.matrix_file import load_matrix
from harness.matrix.results_store import Done, open_store, read_store
from harness.matrix.workers import Running, Workers, command
from harness.progress import default_progress
from harness.report.board import CellBoard, plan_line, plan_table
from harness.report.book import Book, status_of
from harness.report.files import write_report
from harness.report.terminal_report import make_console, overall_line
from harness.report.text import pasted, plural, tell
from harness.scenarios.memorybudget import MemoryBudget
from harness.scenarios.run_options import STARTS

#: the default folder for results
DEFAULT_RESULTS = Path("memhp-results")
_SHARD = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")
#: options that the matrix file replaces
_NOT_HERE = {
    **{name: option for name, option in GUEST_OPTIONS.items() if name != "boot"},
    **{"arches": "--arch", "guest": "--guest", "bundle_dir": "--bundle-dir", "rounds": "--rounds", "all": "--all"},
    **{"scenarios": "SCENARIO", "bisect": "--bisect", "fail_fast": "--fail-fast", "keep": "--keep"},
}


def run_matrix(arguments: RunArguments, file: str) -> int:
    """memhp run --matrix ``file``."""
    for name, option in _NOT_HERE.items():
        if is_given(getattr(arguments, name)):
            hint = "the matrix file sets the scenarios and the guests"
            raise UsageError(f"{option} and --matrix exclude each other", hint=hint)
    if set(arguments.boot) - set(STARTS):
        raise UsageError("--boot and --matrix exclude each other", hint=f"but for --boot {'|'.join(STARTS)}")
    check_reports(arguments)
    # A guest has two CPUs but rarely keeps both busy.
    jobs = arguments.jobs or os.cpu_count() or 1
    plan = make_plan(load_matrix(file))
    cells = _chosen(plan, arguments.shard)
    root = arguments.results or _default_results(plan, cells)
    history = earlier_nights(arguments.history, plan.name, root)
    times = {cell.id: time for cell, time in zip(cells, expected(cells, history), strict=True)}
    if arguments.list:
        return _show_plan(arguments, cells, times, jobs)
    return _run(arguments, plan, cells, root, history, {id: seconds for id, (seconds, _) in times.items()}, jobs)


def _default_results(plan: MatrixPlan, cells: Sequence[Cell]) -> Path:
    """The latest results directory of this matrix if it is unfinished, else a new one."""
    for root in sorted(DEFAULT_RESULTS.glob(f"{plan.name}-*"), reverse=True)[:1]:
        store = read_store(root)
        if store.digest == plan.digest and any(store.done(cell.id) is None for cell in cells):
            return root
    return DEFAULT_RESULTS / f"{plan.name}-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}"


def _chosen(plan: MatrixPlan, shard: str | None) -> tuple[Cell, ...]:
    if shard is None:
        return plan.cells
    match = _SHARD.fullmatch(shard)
    if match is None:
        raise UsageError(f"--shard: {shard[:40]!r} is not I/N", hint="for example 1/3, 2/3 and 3/3 for three CI jobs")
    return shard_of(plan, int(match[1]), int(match[2]))


def earlier_nights(folder: str | None, name: str, root: Path) -> History:
    """The results of the matrix ``name`` below ``folder``, except those in ``root``; raises UsageError."""
    return {} if folder is None else read_history(check_history(folder), name=name, but=root)


def _show_plan(
    arguments: RunArguments, cells: Sequence[Cell], times: Mapping[str, tuple[float, bool]], jobs: int
) -> int:
    seconds = [times[cell.id][0] for cell in cells]
    line = plan_line(len(cells), sum(seconds), expected_seconds(seconds, jobs), jobs)
    if arguments.json is not None:
        rows = [
            {
                "id": cell.id,
                "axes": dict(cell.axes),
                "steps": cell.steps,
                "expected_seconds": round(times[cell.id][0], 1),
                "measured": times[cell.id][1],
                "guest": cell.guest_text(),
                "command": shlex.join(["memhp", *command(cell, Path("cells") / cell.id, start_of(arguments))[6:]]),
            }
            for cell in cells
        ]
        plan = {"format": "memhp-plan", "version": 1, "expected": line, "cells": rows}
        write_report(arguments.json, json.dumps(plan, indent=1) + "\n")
        return 0
    console = make_console(sys.stdout, arguments.color)
    console.print(plan_table([(cell.id, cell.steps, *times[cell.id]) for cell in cells]))
    console.print(line)
    return 0


class _Board:
    """Shows the workers' progress on the board, with the remaining time."""

    def __init__(self, board: CellBoard, cells: Sequence[Cell], times: Mapping[str, float], jobs: int) -> None:
        self._board = board
        self._times = times
        self._jobs = jobs
        self._left = {cell.id for cell in cells}

    def kept(self, done: Done) -> None:
        """See ``Board``."""
        self._left.discard(done.id)
        self._board.ended(done.id, done.run, kept=True)

    def started(self, cell: Cell) -> None:
        """See ``Board``."""

    def finished(self, done: Done) -> None:
        """See ``Board``."""
        self._left.discard(done.id)
        self._board.ended(done.id, done.run)

    def tick(self, running: Sequence[Running], waiting: int) -> None:
        """See ``Board``."""
        since = {state.cell.id: state.seconds for state in running}
        rest = [max(1.0, self._times[id] - since.get(id, 0.0)) for id in self._left]
        left = expected_seconds(rest or [0.0], self._jobs)
        self._board.moving([(state.cell.id, state.seconds, state.last) for state in running], waiting, left)


def _run(
    arguments: RunArguments,
    plan: MatrixPlan,
    cells: Sequence[Cell],
    root: Path,
    history: History,
    times: Mapping[str, float],
    jobs: int,
) -> int:
    demand = demand_of(arguments)
    store = open_store(root, plan, datetime.datetime.now(datetime.UTC).isoformat())
    out = results_stream(arguments)
    with store.lock(), MemoryBudget.of_host() as room:
        waiting = [cell for cell in cells if store.finished(cell) is None]
        if not waiting:
            tell(f"nothing to run: every cell in {root}, started {store.created[:16]}, has a verdict")
        progress = default_progress()
        broken = prepare(waiting, progress)
        lack = room.lack([cell.memory for cell in waiting], jobs)
        if lack is not None:
            progress.say(lack)
        known, look = arguments.known_bugs, arguments.look
        argv = functools.partial(command, start=start_of(arguments), known_bugs=known, demand=demand, look=look)
        with CellBoard(out, sys.stderr, len(cells), color=arguments.color) as board:
            try:
                Workers(store, jobs, _Board(board, cells, times, jobs), argv, room).run(cells, broken)
            except BaseException:
                board.rest()
                tell(_progress_line(store.all_done(), cells, root))
                raise
        planned = {cell.id for cell in cells}
        return finish_matrix(arguments, book_of_store(store, history, only=planned), root, out)


def _progress_line(done: Mapping[str, Done], cells: Sequence[Cell], root: Path) -> str:
    count = sum(cell.id in done for cell in cells)
    return f"{count} of {plural(len(cells), 'cell')} done, results in {root}; the same command continues there"


def finish_matrix(arguments: ReportArguments, book: Book, root: Path, out: TextIO) -> int:
    """Print the summary, write the reports, and return the exit status."""
    console = make_console(out, arguments.color)
    for id, _ in book.missing:
        console.print(f"no result: {id}")
    if book.runs:
        console.print(overall_line(book.runs, missing=bool(book.missing)))
    targets = [*all_reports(root), *arguments.reports.items()]
    status = finish_reports(targets, dataclasses.replace(book, origin=arguments.kcidb_origin), status_of(book))
    console.print(f"results: {root}; open {pasted(root / 'report.html')}")
    return status
