# SPDX-License-Identifier: GPL-2.0-or-later
"""Earlier nights, read from a history directory: results directories, and output of ``memhp run --json``.

``book_of_store`` joins them with tonight's results for the reports.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from harness.bounded import MAX_SMALL, load_json, read_file
from harness.check import Verdict
from harness.errors import UsageError
from harness.matrix.cells import Cell
from harness.matrix.results_store import CODEC, FORMAT, VERSION, Done, Store, read_store
from harness.report.book import Book, Entry
from harness.report.json import load_results
from harness.report.trends import Night, night_of

History = Mapping[str, tuple[Night, ...]]


def check_history(folder: str) -> Path:
    """``folder`` if it is a directory; raises UsageError."""
    if not Path(folder).is_dir():
        raise UsageError(f"--history: no directory {folder}", hint="the directory that holds each night's results")
    return Path(folder)


def read_history(folder: Path, *, name: str | None = None, but: Path | None = None) -> History:
    """The nights below ``folder`` by cell id, each in chronological order.

    A night is a subdirectory with the results of a matrix (named ``name``, if given) or a ``*.json`` file of results.
    ``but`` is tonight's own directory. Raises UsageError for damaged results or those of another version.
    """
    found: dict[str, list[Night]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (path / "matrix.json").is_file():
            if but is None or path.resolve() != but.resolve():
                _add_store(found, path, name)
        elif path.suffix == ".json" and path.is_file():
            for run in load_results(path):
                night = night_of(run)
                _note(found, f"{run.guest}/{run.scenario}", night, path.stem)
    return {id: tuple(sorted(nights, key=lambda night: night.started)) for id, nights in found.items()}


def _note(found: dict[str, list[Night]], id: str, night: Night, name: str) -> None:
    found.setdefault(id, []).append(replace(night, name=name))


def _add_store(found: dict[str, list[Night]], path: Path, name: str | None) -> None:
    store = read_store(path)
    if name is not None and store.name != name:
        return
    for planned in store.planned:
        file = store.cell_dir(planned.id) / "cell.json"
        if not file.is_file():
            continue
        try:
            value = load_json(read_file(file, MAX_SMALL))
            if (value["format"], value["version"]) != (FORMAT, VERSION):
                raise UsageError(f"{file} has another version", hint="remove that night from --history")
            _note(found, planned.id, CODEC.load(value["night"], Night), path.name)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{file} is damaged: {error}", hint="remove that night from --history") from None


def expected(cells: Sequence[Cell], history: History) -> list[tuple[float, bool]]:
    """(seconds, measured) for each cell: the median of its passing nights, otherwise an estimate from its steps."""
    times = []
    for cell in cells:
        passed = [night.seconds for night in history.get(cell.id, ()) if night.verdict is Verdict.PASS]
        times.append((median(passed), True) if passed else (cell.weight, False))
    return times


def book_of_store(store: Store, history: History, *, only: Collection[str] | None = None) -> Book:
    """The book of all planned cells, or only those with ids in ``only`` (one shard)."""
    entries = []
    missing = []
    for planned in store.planned:
        if only is not None and planned.id not in only:
            continue
        done = store.done(planned.id)
        if done is None:
            missing.append((planned.id, planned.axes))
        else:
            entries.append(_entry(store, done, planned.axes))
    return Book(store.name, store.created, tuple(entries), tuple(missing), history)


def _entry(store: Store, done: Done, axes: Mapping[str, str]) -> Entry:
    base = f"cells/{done.id}"
    links = [("log", f"{base}/log.txt"), ("guest", f"{base}/guest.yaml"), ("scenario", f"{base}/scenario.yaml")]
    if done.run.bundle is not None:
        # Results are moved and merged: only the bundle's name is stable.
        bundle = f"{base}/bundles/{done.run.bundle.name}"
        if (store.root / bundle).is_dir():
            links.insert(0, ("bundle", f"{bundle}/"))
            for name in ("console.log", "qmp.jsonl"):
                if (store.root / bundle / name).is_file():
                    links.append((name, f"{bundle}/{name}"))
    replay = shlex.join(["memhp", "run", f"{base}/scenario.yaml", "--guest", f"{base}/guest.yaml"])
    return Entry(done.id, done.run, axes, tuple(links), replay)
