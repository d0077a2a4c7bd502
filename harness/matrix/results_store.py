# SPDX-License-Identifier: GPL-2.0-or-later
"""Results of a matrix on disk: they are resumed, merged and compared night by night.

::

    matrix.json                     format, version, name, planned cells (of all shards) and start time
    cells/GUEST/SCENARIO/           one cell
        guest.yaml  scenario.yaml   run it again: memhp run scenario.yaml --guest guest.yaml
        log.txt  bundles/           its output, and the bundles of its runs
        result.json                 written by memhp run --json
        cell.json                   written last: how it ended

A cell without ``cell.json`` has not ended, whatever other files exist.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.bounded import MAX_SMALL, load_json, read_file, write_file
from harness.check import Verdict
from harness.codec import Codec, override
from harness.errors import InfraError, UsageError
from harness.matrix.cells import Cell, MatrixPlan
from harness.report.json import load_results
from harness.report.trends import Night, night_of
from harness.scenarios.record import write_json
from harness.scenarios.result import RunResult

FORMAT = "memhp-matrix"
#: increased when the meaning of a directory's content changes; other versions are rejected
VERSION = 1
_HEAD = {"format": FORMAT, "version": VERSION}
_HINT = "name another directory with --results"


@dataclass(frozen=True, slots=True)
class Planned:
    """A cell as recorded in a results directory."""

    id: str
    axes: Mapping[str, str]
    digest: str
    weight: float


@dataclass(frozen=True, slots=True)
class _Matrix:
    """What ``matrix.json`` holds."""

    name: str
    digest: str
    created: str
    cells: tuple[Planned, ...]


@dataclass(frozen=True, slots=True)
class _Ended:
    """What ``cell.json`` holds; ``night`` is what trends take of the result: many nights are read at once."""

    id: str
    digest: str
    seconds: float
    started: str
    night: Night


@dataclass(frozen=True, slots=True)
class Done:
    """A cell that has ended: ``seconds`` is its process's duration, ``started`` ISO 8601 in UTC."""

    id: str
    digest: str
    seconds: float
    started: str
    run: RunResult


@dataclass(frozen=True, slots=True)
class Store:
    """A results directory. ``open_store`` creates one for a plan, ``read_store`` reads an existing one."""

    root: Path
    name: str
    digest: str
    planned: tuple[Planned, ...]
    created: str

    def cell_dir(self, id: str) -> Path:
        """The folder of the cell with this id."""
        return self.root / "cells" / id

    def done(self, id: str) -> Done | None:
        """How the cell ended, None if it has not; raises UsageError if damaged or of another version."""
        folder = self.cell_dir(id)
        if not (folder / "cell.json").is_file():
            return None
        value = _read(folder / "cell.json")
        _check(value, folder / "cell.json")
        try:
            ended = CODEC.load(value, _Ended)
            [run] = load_results(folder / "result.json")
            return Done(id, ended.digest, ended.seconds, ended.started, run)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{folder} is damaged: {error}", hint="remove it: the next run repeats the cell") from None

    def all_done(self) -> dict[str, Done]:
        """Every planned cell that has ended."""
        found = ((planned.id, self.done(planned.id)) for planned in self.planned)
        return {id: done for id, done in found if done is not None}

    def finished(self, cell: Cell) -> Done | None:
        """The cell's result if it need not be run again: it ended with a verdict, and it is the same cell."""
        done = self.done(cell.id)
        if done is None or done.digest != cell.digest or done.run.verdict is Verdict.INFRA:
            return None
        return done

    def begin(self, cell: Cell, scenario_text: str) -> Path:
        """An empty folder for the cell, with the input files of its process."""
        folder = self.cell_dir(cell.id)
        try:
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
            write_file(folder / "guest.yaml", cell.guest_text())
            write_file(folder / "scenario.yaml", scenario_text)
        except OSError as error:
            raise InfraError(f"cannot write {folder}: {error.strerror}", hint=_HINT) from error
        return folder

    def end(self, cell: Cell, seconds: float, started: str) -> Done:
        """Record that the cell has ended and return its result from ``result.json``."""
        folder = self.cell_dir(cell.id)
        [run] = load_results(folder / "result.json")
        ended = _Ended(cell.id, cell.digest, seconds, started, night_of(run))
        write_json(folder / "cell.json", _HEAD | CODEC.dump(ended))
        return Done(cell.id, cell.digest, seconds, started, run)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the directory for running and writing cells; raises UsageError if another process holds the lock."""
        with (self.root / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UsageError(f"another memhp is at work in {self.root}", hint=_HINT) from None
            yield


def _read(path: Path) -> Any:
    try:
        return load_json(read_file(path, MAX_SMALL))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint=_HINT) from None
    except ValueError as error:
        raise UsageError(f"{path} is damaged: {error}", hint=_HINT) from None


def _check(value: Any, path: Path) -> None:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UsageError(f"{path} was not written by memhp run --matrix", hint=_HINT)
    if value.get("version") != VERSION:
        shown = repr(value.get("version"))[:20]
        raise UsageError(
            f"{path.parent} was written by version {shown} of the schema, this memhp reads {VERSION}",
            hint="use the memhp that wrote it, or name another directory",
        )


def read_store(root: Path) -> Store:
    """The results in ``root``; raises UsageError if there are none, or they are damaged or of another version."""
    path = root / "matrix.json"
    if not path.is_file():
        raise UsageError(
            f"{root} holds no results of a matrix", hint="name a directory written by memhp run --matrix or memhp merge"
        )
    value = _read(path)
    _check(value, path)
    try:
        found = CODEC.load(value, _Matrix)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged: {type(error).__name__}: {error}", hint=_HINT) from None
    return Store(root, found.name, found.digest, found.cells, found.created)


def _codec() -> Codec:
    codec = Codec()
    codec.register_unstructure_hook(float, lambda seconds: round(seconds, 3))
    codec.describe(Night, since=("name",), name=override(omit=True))
    codec.describe(_Ended)
    codec.describe(Planned, id=override(struct_hook=_safe_id))
    codec.describe(_Matrix)
    return codec


def _safe_id(text: Any, _: type) -> str:
    # It becomes a path: a foreign file must not lead out of the directory.
    if not isinstance(text, str) or any(part in ("", ".", "..") for part in text.split("/")) or not text.isprintable():
        raise ValueError(f"invalid cell id {str(text)[:80]!r}")
    return text


#: what reads and writes the files of a results directory
CODEC = _codec()


def open_store(root: Path, plan: MatrixPlan, created: str) -> Store:
    """The results directory ``root`` for ``plan``: a new one, or that of an earlier start of the same matrix.

    Raises UsageError for a directory that holds something else, another matrix's results or another version's.
    """
    path = root / "matrix.json"
    if path.is_file():
        store = read_store(root)
        if store.name != plan.name:
            raise UsageError(f"{root} holds results of the matrix {store.name!r}, not of {plan.name!r}", hint=_HINT)
        created = store.created
    elif root.exists() and (not root.is_dir() or any(entry.name != ".lock" for entry in root.iterdir())):
        raise UsageError(f"{root} already exists and holds no results of a matrix", hint=_HINT)
    planned = tuple(Planned(cell.id, cell.axes, cell.digest, cell.weight) for cell in plan.cells)
    return write_store(Store(root, plan.name, plan.digest, planned, created))


def write_store(store: Store) -> Store:
    """Write ``matrix.json``; raises UsageError if the directory cannot be written."""
    value = _HEAD | CODEC.dump(_Matrix(store.name, store.digest, store.created, store.planned))
    try:
        store.root.mkdir(parents=True, exist_ok=True)
        (store.root / "cells").mkdir(exist_ok=True)
        write_json(store.root / "matrix.json", value)
    except OSError as error:
        raise UsageError(f"cannot write {store.root}: {error.strerror}", hint=_HINT) from None
    return store


def copy_cell(source: Path, target: Path) -> None:
    """Copy a cell's folder: by hard links where possible, otherwise byte by byte."""

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:
            shutil.copy2(one, other)

    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target, copy_function=link, symlinks=True)


def merge(sources: Sequence[Path], target: Path) -> Store:
    """Merge the results in ``sources``, shards of one matrix, into the new directory ``target``.

    Raises UsageError if their plans differ, if a cell is in two of them, or if ``target`` exists; nothing is written
    then.
    """
    stores = [read_store(source) for source in sources]
    if not stores:
        raise UsageError("nothing to merge", hint="memhp merge DIR DIR -o DIR")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"--output: {target} already exists", hint="name a directory that does not exist yet")
    first = stores[0]
    for store in stores[1:]:
        if (store.name, store.digest) != (first.name, first.digest):
            raise UsageError(
                f"{first.root} and {store.root} are not shards of one matrix: "
                f"{first.name} {first.digest[:8]}, {store.name} {store.digest[:8]}",
                hint="all shards need the same matrix file, scenarios and kernels",
            )
    owners: dict[str, Store] = {}
    for store in stores:
        for id in store.all_done():
            if id in owners:
                raise UsageError(f"{id} is in {owners[id].root} and in {store.root}", hint="omit one of them")
            owners[id] = store
    merged = Store(target, first.name, first.digest, first.planned, min(store.created for store in stores))
    existed = target.exists()
    try:
        for id, store in owners.items():
            copy_cell(store.cell_dir(id), merged.cell_dir(id))
        # Last: it is what makes the directory one of results.
        return write_store(merged)
    except BaseException as error:
        for path in target.iterdir() if existed else [target]:
            shutil.rmtree(path, ignore_errors=True)
        if isinstance(error, OSError):
            hint = "name another directory with -o"
            raise InfraError(f"cannot write {target}: {error.strerror}", hint=hint) from error
        raise
