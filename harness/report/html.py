# SPDX-License-Identifier: GPL-2.0-or-later
"""Results as one self-contained HTML page, without scripts and external resources.

``templates/`` has the layout. All printed values are cleaned and escaped; the page's content security policy allows
only its own style.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from urllib.parse import quote

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from harness import __version__
from harness.check import CATALOGUE, Verdict
from harness.parsers.notes import note_lines
from harness.report.book import Book, Entry
from harness.report.drawing import Drawings, nights, safe, timeline
from harness.report.tally import findings, overall, tally, verdict_counts
from harness.report.text import WORDS, invariants_line, plural, seconds
from harness.report.trends import Trend, night_of, trend
from harness.scenarios.memorymap import MemoryMap
from harness.scenarios.result import FINE, StepResult

#: the legend of the drawings, by CSS class
_KINDS = {
    "ram": "System RAM",
    "pmem": "persistent memory, dax",
    "device": "other device memory",
    "kernel": "blocks online",
    "movable": "blocks online in Movable",
    "offline": "blocks offline",
    "going": "blocks changing state",
}


def to_html(book: Book) -> str:
    """The page for all runs of ``book``."""
    return (
        _templates()
        .get_template("report.html")
        .render(
            book=book,
            style=Markup(_read("style.css")),
            numbers={entry.id: number for number, entry in enumerate(book.entries)},
            counts=_counts(book),
            about=_about(book),
            grids=list(_grids(book)),
            broken=_broken(book),
            bugs=_bugs(book),
            trends=list(_trends(book)),
            tallies=tally(book.runs),
            pages=[run_page(entry, number) for number, entry in enumerate(book.entries)],
        )
    )


def _read(name: str) -> str:
    return files("harness.report").joinpath(name).read_text("utf-8")


@functools.cache
def _templates() -> Environment:
    environment = Environment(
        loader=FunctionLoader(lambda name: _read(f"templates/{name}")),
        autoescape=True,
        # Runs before Jinja escapes: removes control characters from a guest's text and limits its length.
        finalize=safe,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cut"] = safe
    functions = (invariants_line, nights, overall, plural, quote, seconds)
    environment.globals |= {function.__name__: function for function in functions}
    environment.globals |= {"statement": _statement, "since": _since, "words": WORDS, "fine": FINE, "kinds": _KINDS}
    environment.globals |= {"max_changes": MAX_CHANGES, "max_findings": MAX_FINDINGS}
    return environment


def _statement(invariant: str) -> str:
    return CATALOGUE[invariant].statement if invariant in CATALOGUE else ""


def _counts(book: Book) -> list[str]:
    counts = verdict_counts(book.runs)
    return [*counts, f"{len(book.missing)} not run"] if book.missing else counts


def _about(book: Book) -> list[str]:
    kernels = sorted({str(run.facts["kernel"]) for run in book.runs if "kernel" in run.facts})
    return [f"kernel {kernel}" for kernel in kernels] + [f"memhp {__version__}", f"started {book.created[:19]}Z"]


@dataclass(frozen=True, slots=True)
class _Grid:
    """A table of results with the columns ``across``; a cell has a list of entries, None for a run without result."""

    corner: str
    across: Sequence[str]
    rows: Mapping[str, Sequence[Sequence[Entry | None]]]


def _grids(book: Book) -> Iterator[_Grid]:
    """One table per group of guests with equal scenarios, so that few cells are empty; the longer axis is vertical."""
    cells: dict[str, dict[str, list[Entry | None]]] = {}
    for entry in book.entries:
        cells.setdefault(entry.run.guest, {}).setdefault(entry.run.scenario, []).append(entry)
    for id, _ in book.missing:
        guest, _, scenario = id.rpartition("/")
        cells.setdefault(guest, {}).setdefault(scenario, []).append(None)
    groups: dict[frozenset[str], list[str]] = {}
    for guest, row in cells.items():
        groups.setdefault(frozenset(row), []).append(guest)
    for guests in groups.values():
        scenarios = list(cells[guests[0]])
        if len(scenarios) > len(guests):
            yield _Grid("scenario", guests, {name: [cells[guest][name] for guest in guests] for name in scenarios})
        else:
            yield _Grid("guest", scenarios, {guest: [cells[guest][name] for name in scenarios] for guest in guests})


def _broken(book: Book) -> dict[str, list[Entry]]:
    """The broken invariants with the runs that broke them."""
    where: dict[str, list[Entry]] = {}
    for entry in book.entries:
        for name in {found.invariant for found in findings(entry.run)}:
            where.setdefault(name, []).append(entry)
    return dict(sorted(where.items()))


@dataclass(frozen=True, slots=True)
class _MetBug:
    id: str
    title: str
    met: list[Entry]
    unseen: list[Entry]


def _bugs(book: Book) -> list[_MetBug]:
    """The known bugs with the runs that did and did not reproduce them."""
    titles = {id: title for entry in book.entries for id, title in entry.run.bugs.items()}
    return [
        _MetBug(
            id,
            title,
            [entry for entry in book.entries if id in entry.run.met],
            [entry for entry in book.entries if id in entry.run.unseen],
        )
        for id, title in sorted(titles.items())
    ]


def _trends(book: Book) -> Iterator[tuple[Entry, Trend]]:
    """Each cell over the nights; empty without earlier nights."""
    for entry in book.entries if book.history else ():
        tonight = night_of(entry.run)
        # A merged result may also be among the earlier nights.
        earlier = [night for night in book.history.get(entry.id, ()) if night.started != tonight.started]
        yield entry, trend([*earlier, tonight])


def _since(trend: Trend) -> str:
    if trend.first_bad is None:
        return ""
    last = "" if trend.last_good is None else f"; last good {trend.last_good.started[:10]} {trend.last_good.kernel}"
    night = trend.first_bad
    day = "" if night.name.startswith(night.started[:10]) else f"{night.started[:10]} "
    return f"{day}{night.name or 'tonight'}, {', '.join(night.broken)}, {night.kernel}{last}"


#: limits of the page; results.json and the bundle are complete
MAX_STEPS = 120
MAX_CHANGES = 40
MAX_FINDINGS = 25
_FACTS = ("kernel", "kernel_origin", "qemu", "qemu_origin", "boot", "page_size", "va_bits", "cmdline", "host_load")


@dataclass(frozen=True, slots=True)
class StepPage:
    """A step with its ``maps``: (name, drawing) of the memory before and after it, and the address axis."""

    step: StepResult
    maps: tuple[tuple[str, Markup], ...]


@dataclass(frozen=True, slots=True)
class RunPage:
    """A run: its first ``steps``, and those of the ``more`` further steps that did not pass (``bad``).

    ``drawings`` has the definitions that the maps refer to, "" without maps.
    """

    entry: Entry
    number: int
    facts: str
    unknown: tuple[str, ...]
    timeline: Markup
    drawings: Markup
    steps: tuple[StepPage, ...]
    more: int
    bad: tuple[StepPage, ...]


def run_page(entry: Entry, number: int) -> RunPage:
    """The run of ``entry``, which is number ``number`` on the page."""
    run = entry.run
    maps = [step.memory for step in run.steps if step.memory is not None]
    drawings = Drawings(maps, f"r{number}")
    facts = {**entry.axes, **{name: run.facts[name] for name in _FACTS if run.facts.get(name) not in (None, "")}}
    steps = []
    before: MemoryMap | None = None
    for step in run.steps[:MAX_STEPS]:
        steps.append(StepPage(step, tuple(_maps(step.memory, before, drawings))))
        before = step.memory or before
    rest = run.steps[MAX_STEPS:]
    return RunPage(
        entry=entry,
        number=number,
        facts=" · ".join(f"{name} {value}" for name, value in facts.items()),
        unknown=tuple(note_lines(run.unknown)),
        timeline=timeline(run),
        drawings=drawings.definitions() if maps else Markup(),
        steps=tuple(steps),
        more=len(rest),
        bad=tuple(
            StepPage(step, tuple(_maps(step.memory, None, drawings)))
            for step in rest
            if step.verdict is not Verdict.PASS
        ),
    )


def _maps(after: MemoryMap | None, before: MemoryMap | None, drawings: Drawings) -> Iterator[tuple[str, Markup]]:
    if after is None or not drawings.scale.spans:
        return
    if before is None or before == after:
        yield "memory", drawings.memory(after, "physical memory")
    else:
        yield "before", drawings.memory(before, "physical memory before")
        yield "after", drawings.memory(after, "physical memory after")
    yield "", drawings.axis()
