# SPDX-License-Identifier: GPL-2.0-or-later
"""Merges the results of shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.errors import InfraError, UsageError
from harness.matrix.results_store import Store, copy_cell, read_store, write_store


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
    created = min(store.created for store in stores)
    try:
        merged = write_store(Store(target, first.name, first.digest, first.planned, created))
        for id, store in owners.items():
            copy_cell(store.cell_dir(id), merged.cell_dir(id))
    except OSError as error:
        raise InfraError(f"cannot write {target}: {error.strerror}", hint="name another directory with -o") from error
    return merged
