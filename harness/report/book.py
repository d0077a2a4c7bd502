# SPDX-License-Identifier: GPL-2.0-or-later
"""What a report is made from: runs, where their bundles are, and how the same ended on earlier nights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.report.tally import exit_status
from harness.report.trends import Night
from harness.scenarios.result import RunResult


@dataclass(frozen=True, slots=True)
class Entry:
    """One run. ``id`` names it night after night; ``axes`` are the settings that make its guest, in order.

    ``links`` are (name, address) of what lies beside the report, addresses relative to it; ``replay`` is the command
    line that runs it again, "" where there is none.
    """

    id: str
    run: RunResult
    axes: Mapping[str, str] = field(default_factory=dict)
    links: tuple[tuple[str, str], ...] = ()
    replay: str = ""


@dataclass(frozen=True, slots=True)
class Book:
    """All that one report tells. ``missing`` are (id, axes) of what was planned and has no result;
    ``history`` are the earlier nights of each id; ``created`` is ISO 8601 in UTC;
    ``origin`` is the CI system that a database of results is told."""

    title: str
    created: str
    entries: tuple[Entry, ...]
    missing: tuple[tuple[str, Mapping[str, str]], ...] = ()
    history: Mapping[str, tuple[Night, ...]] = field(default_factory=dict)
    origin: str = "memhp"

    @property
    def runs(self) -> list[RunResult]:
        """The results alone."""
        return [entry.run for entry in self.entries]


def status_of(book: Book) -> int:
    """What a command that shows ``book`` ends with: ``tally.exit_status``, 3 if all is well but something missing."""
    status = exit_status(book.runs)
    return 3 if book.missing and status in (0, 2) else status


def book_of(title: str, created: str, runs: Sequence[RunResult], history: Mapping[str, tuple[Night, ...]]) -> Book:
    """The book of runs that belong to no matrix: each is named by its guest and scenario, a second one numbered."""
    entries: list[Entry] = []
    seen: dict[str, int] = {}
    for run in runs:
        id = f"{run.guest}/{run.scenario}"
        seen[id] = seen.get(id, 0) + 1
        id = id if seen[id] == 1 else f"{id}.{seen[id]}"
        links = () if run.bundle is None else (("bundle", str(run.bundle.absolute())),)
        entries.append(Entry(id, run, {"arch": run.arch, "scenario": run.scenario}, links))
    return Book(title, created, tuple(entries), (), history)
