# SPDX-License-Identifier: GPL-2.0-or-later
"""Results as one HTML page that needs nothing else: no script, no font, no picture from anywhere.

All text from a guest is escaped; the page's own content policy forbids everything but its style.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files

from harness import __version__
from harness.check import CATALOGUE, Verdict
from harness.report.book import Book, Entry
from harness.report.drawing import nights, safe
from harness.report.runpage import run_section
from harness.report.tally import findings, overall, tally
from harness.report.text import WORDS, plural, seconds
from harness.report.trends import Trend, night_of, trend

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def to_html(book: Book) -> str:
    """The page for all runs of ``book``."""
    style = files("harness.report").joinpath("style.css").read_text("utf-8")
    numbers = {entry.id: number for number, entry in enumerate(book.entries)}
    parts = [
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{safe(book.title)}</title>',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f'<meta name="viewport" content="width=device-width"><style>{style}</style></head><body>',
        *_head(book),
        *_grid(book, numbers),
        *_broken(book, numbers),
        *_known(book, numbers),
        *_trends(book, numbers),
        *_invariants(book),
        "<h2>Runs</h2>",
        *(run_section(entry, number) for number, entry in enumerate(book.entries)),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def badge(verdict: Verdict) -> str:
    """The verdict's word on its colour."""
    return f'<span class="b b-{verdict.value}">{safe(WORDS[verdict])}</span>'


def _head(book: Book) -> Iterator[str]:
    runs = book.runs
    yield f"<h1>{safe(book.title)} {badge(overall(runs)) if runs else ''}</h1>"
    counts = [
        f"{count} {WORDS[kind] if kind is not Verdict.PASS else 'passed'}"
        for kind in Verdict
        if (count := sum(run.verdict is kind for run in runs))
    ]
    if book.missing:
        counts.append(f"{len(book.missing)} not run")
    kernels = sorted({str(run.facts["kernel"]) for run in runs if "kernel" in run.facts})
    spent = seconds(sum(run.seconds for run in runs))
    yield f"<p>{plural(len(runs), 'run')}: {safe(', '.join(counts) or 'none')}; {safe(spent)} of guests.</p>"
    told = [f"kernel {kernel}" for kernel in kernels] + [f"memhp {__version__}", f"began {book.created[:19]}Z"]
    yield f'<p class="dim">{safe(" · ".join(told), 2000)}</p>'


def _grid(book: Book, numbers: Mapping[str, int]) -> Iterator[str]:
    """A table for guests that run the same scenarios, so that hardly a cell is empty; the longer side goes down."""
    cells: dict[str, dict[str, list[str]]] = {}
    for entry in book.entries:
        told = " ".join([*map(safe, entry.run.met), safe(seconds(entry.run.seconds))])
        text = f'<a href="#run-{numbers[entry.id]}">{badge(entry.run.verdict)} {told}</a>'
        cells.setdefault(entry.run.guest, {}).setdefault(entry.run.scenario, []).append(text)
    for id, _ in book.missing:
        guest, _, scenario = id.rpartition("/")
        cells.setdefault(guest, {}).setdefault(scenario, []).append('<span class="b b-missing">not run</span>')
    groups: dict[frozenset[str], list[str]] = {}
    for guest, row in cells.items():
        groups.setdefault(frozenset(row), []).append(guest)
    yield '<h2>Matrix</h2><div id="grid">'
    for guests in groups.values():
        scenarios = list(cells[guests[0]])
        if len(scenarios) > len(guests):
            rows = {name: [cells[guest][name] for guest in guests] for name in scenarios}
            yield from _grid_table("scenario", guests, rows)
        else:
            rows = {guest: [cells[guest][name] for name in scenarios] for guest in guests}
            yield from _grid_table("guest", scenarios, rows)
    yield "</div>"


def _grid_table(corner: str, across: Sequence[str], rows: Mapping[str, Sequence[Sequence[str]]]) -> Iterator[str]:
    head = "".join(f"<th>{safe(name)}</th>" for name in across)
    yield f'<div class="wide"><table class="grid"><tr><th>{corner}</th>{head}</tr>'
    for name, row in rows.items():
        cells = "".join(f"<td>{''.join(cell)}</td>" for cell in row)
        yield f'<tr><th class="mono">{safe(name)}</th>{cells}</tr>'
    yield "</table></div>"


def _broken(book: Book, numbers: Mapping[str, int]) -> Iterator[str]:
    """Which invariants are broken, and where."""
    where: dict[str, list[Entry]] = {}
    for entry in book.entries:
        for name in sorted({found.invariant for found in findings(entry.run)}):
            where.setdefault(name, []).append(entry)
    if not where:
        return
    yield '<h2>Broken invariants</h2><table id="broken"><tr><th>invariant</th><th>statement</th><th>where</th></tr>'
    for name, entries in sorted(where.items()):
        statement = CATALOGUE[name].statement if name in CATALOGUE else ""
        links = ", ".join(f'<a href="#run-{numbers[entry.id]}">{safe(entry.id)}</a>' for entry in entries)
        yield f"<tr><td>{safe(name)}</td><td>{safe(statement)}</td><td>{links}</td></tr>"
    yield "</table>"


def _known(book: Book, numbers: Mapping[str, int]) -> Iterator[str]:
    """Which known bugs were met, which did not show, and where."""
    titles = {id: title for entry in book.entries for id, title in entry.run.bugs.items()}
    if not titles:
        return
    yield '<h2>Known bugs</h2><table id="known"><tr><th>bug</th><th></th><th>met in</th><th>did not show in</th></tr>'
    for id, title in sorted(titles.items()):
        met = [entry for entry in book.entries if id in entry.run.met]
        unseen = [entry for entry in book.entries if id in entry.run.unseen]
        cells = (
            ", ".join(f'<a href="#run-{numbers[entry.id]}">{safe(entry.id)}</a>' for entry in found)
            for found in (met, unseen)
        )
        yield f"<tr><td>{safe(id)}</td><td>{safe(title, 500)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    yield "</table>"


def _trends(book: Book, numbers: Mapping[str, int]) -> Iterator[str]:
    """Each cell over the nights; nothing without earlier ones."""
    if not book.history:
        return
    yield '<h2>Trends</h2><div class="wide"><table id="trends"><tr><th>cell</th><th>nights</th><th>bad since</th>'
    yield "<th>changes of mind</th><th>time</th><th>earlier nights</th><th></th></tr>"
    for entry in book.entries:
        tonight = night_of(entry.run)
        # What was merged may lie among the earlier nights as well.
        earlier = [night for night in book.history.get(entry.id, ()) if night.started != tonight.started]
        found = trend([*earlier, tonight])
        link = f'<a href="#run-{numbers[entry.id]}">{safe(entry.id)}</a>'
        yield f"<tr><td>{link}</td><td>{nights(found)}</td>{_trend_cells(found)}</tr>"
    yield "</table></div>"
    yield (
        '<p class="dim">Changes of mind: passed and failed in turn with the same kernel, of so many pairs of nights. '
        "Earlier nights: the least and the greatest time of those that passed, with how likely one more night of the "
        "same kind falls outside by chance.</p>"
    )


def _trend_cells(found: Trend) -> str:
    since = ""
    if found.first_bad is not None:
        last = "" if found.last_good is None else f"; last good {found.last_good.started[:10]} {found.last_good.kernel}"
        night = found.first_bad
        day = "" if night.name.startswith(night.started[:10]) else f"{night.started[:10]} "
        since = f"{day}{night.name or 'tonight'}, {', '.join(night.broken)}, {night.kernel}{last}"
    flips = f"{found.flips} of {found.turns}" if found.turns else ""
    flips = f"<b>{flips}</b>" if found.flaky else flips
    band = "too few"
    if found.band is not None:
        band = f"{found.band[0]:.1f} to {found.band[1]:.1f} s ({found.chance:.0%})"
    tonight = seconds(found.nights[-1].seconds)
    return (
        f'<td>{safe(since, 600)}</td><td>{flips}</td><td class="num">{safe(tonight)}</td>'
        f'<td class="num">{safe(band)}</td><td>{safe(found.drift)}</td>'
    )


def _invariants(book: Book) -> Iterator[str]:
    counts = tally(book.runs)
    if not counts:
        return
    yield "<h2>Invariants</h2><details><summary>how often each was checked</summary>"
    rows: list[Sequence[object]] = []
    for name, count in counts.items():
        statement = CATALOGUE[name].statement if name in CATALOGUE else ""
        why = "; ".join([*count.reasons, *count.notes])
        rows.append((name, statement, count.passed, count.failed, count.known, count.not_observed, why))
    head = ("invariant", "statement", "pass", "fail", "known bug", "not observed", "why not; what served alone")
    yield _table(head, rows)
    yield "</details>"


def _table(head: Iterable[str], rows: Iterable[Sequence[object]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{safe(cell, 2000)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{safe(name)}</th>' for name in head)}</tr>{body}</table>"
