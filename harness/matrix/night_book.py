# SPDX-License-Identifier: GPL-2.0-or-later
"""From the results on disk to the book that reports use."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from harness.matrix.history import History
from harness.matrix.results_store import Done, Store
from harness.report.book import Book, Entry


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
    replay = f"memhp run {base}/scenario.yaml --guest {base}/guest.yaml"
    return Entry(done.id, done.run, axes, tuple(links), replay)
