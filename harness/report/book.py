# SPDX-License-Identifier: GPL-2.0-or-later
"""The input of a report: runs, the places of their bundles, and the results of earlier nights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.report.tally import exit_status
from harness.report.trends import Night
from harness.scenarios.result import RunResult


@dataclass(frozen=True, slots=True)
class Entry:
    """One run. ``id`` is the same every night; ``axes`` are the settings of its guest, in order.

    ``links`` are (name, address) of files beside the report, addresses relative to it; ``replay`` is the command line
    that repeats the run, "" if there is none.
    """

    id: str
    run: RunResult
    axes: Mapping[str, str] = field(default_factory=dict)
    links: tuple[tuple[str, str], ...] = ()
    replay: str = ""


@dataclass(frozen=True, slots=True)
class Book:
    """The contents of one report. ``missing`` are (id, axes) of planned runs without a result; ``history`` are the
    earlier nights of each id; ``created`` is ISO 8601 in UTC; ``origin`` names the CI system in KCIDB data; ``named``:
    the user named each scenario."""

    title: str
    created: str
    entries: tuple[Entry, ...]
    missing: tuple[tuple[str, Mapping[str, str]], ...] = ()
    history: Mapping[str, tuple[Night, ...]] = field(default_factory=dict)
    origin: str = "memhp"
    named: bool = False

    @property
    def runs(self) -> list[RunResult]:
        """The results alone."""
        return [entry.run for entry in self.entries]


def status_of(book: Book) -> int:
    """The exit status of a command that shows ``book``."""
    return exit_status(book.runs, book.named, bool(book.missing))


def book_of(title: str, created: str, runs: Sequence[RunResult], history: Mapping[str, tuple[Night, ...]]) -> Book:
    """The book of runs outside a matrix. Their ids are GUEST/SCENARIO; repeated ones get a number."""
    entries: list[Entry] = []
    seen: dict[str, int] = {}
    for run in runs:
        id = f"{run.guest}/{run.scenario}"
        seen[id] = seen.get(id, 0) + 1
        id = id if seen[id] == 1 else f"{id}.{seen[id]}"
        links = () if run.bundle is None else (("bundle", str(run.bundle.absolute())),)
        entries.append(Entry(id, run, {"arch": run.arch, "scenario": run.scenario}, links))
    return Book(title, created, tuple(entries), (), history)
