# SPDX-License-Identifier: GPL-2.0-or-later
"""Results of a benchmark, as text and as JSON."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness import __version__
from harness.bench.measure import Spread, Timing

FORMAT = "memhp-bench"
VERSION = 1

Fact = str | int | float | None
#: displayed unit -> (factor from seconds or a plain number, decimals)
_UNITS = {
    "s": (1.0, 2),
    "ms": (1e3, 2),
    "us": (1e6, 3),
    "x": (1.0, 2),
    "/min": (1.0, 1),
    "/s": (1.0, 2),
    "MiB": (2.0**-20, 0),
}
#: displayed unit -> unit in JSON, for figures that are not times
_JSON_UNITS = {"x": "x", "/min": "1/min", "/s": "1/s", "MiB": "B"}
#: maximum number of displayed mismatches; JSON has all
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a table: ``name`` for scripts, ``label`` for people.

    ``spread`` is in seconds (``unit`` s, ms or us), a ratio (x), a rate (/min, /s), or bytes (MiB). ``cpu`` is as in
    ``Timing``.
    """

    name: str
    label: str
    spread: Spread
    unit: str = "ms"
    cpu: Spread | None = None

    @classmethod
    def timed(cls, name: str, label: str, timing: Timing) -> Figure:
        """A figure in milliseconds."""
        return cls(name, label, timing.wall, cpu=timing.cpu)


@dataclass(frozen=True, slots=True)
class FigureSection:
    """Related figures; ``facts`` describe the measured object, ``notes`` say what could not be measured."""

    name: str
    title: str
    facts: Mapping[str, Fact] = dataclasses.field(default_factory=dict)
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a median: at most ``limit``, or at least ``limit`` with ``floor``; units as in ``Figure``.

    ``measured`` is None if it was not measured, or on a guest for which the target is not meant (see ``reason``).
    """

    name: str
    label: str
    limit: float
    unit: str
    measured: float | None
    reason: str = ""
    floor: bool = False

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.limit if self.floor else self.measured <= self.limit


@dataclass(frozen=True, slots=True)
class BenchResult:
    """One benchmark on one guest.

    ``agreed`` is True if the timed readers gave equal results: ``mismatches`` are the differences, None if there was
    nothing to compare with (see ``reason``).
    """

    benchmark: str
    rounds: int
    host: Host
    guest: Mapping[str, Fact]
    sections: tuple[FigureSection, ...]
    targets: tuple[Target, ...]
    mismatches: tuple[str, ...] | None
    reason: str = ""

    @property
    def agreed(self) -> bool | None:
        return None if self.mismatches is None else not self.mismatches

    @property
    def exit_status(self) -> int:
        """1 for wrong results; slow ones do not count."""
        return 1 if self.mismatches else 0


def to_json(result: BenchResult) -> dict[str, object]:
    """``result`` as a JSON object; all times are in seconds."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "memhp": __version__,
        "benchmark": result.benchmark,
        "rounds": result.rounds,
        "exit_status": result.exit_status,
        "host": dataclasses.asdict(result.host) | {"busy": result.host.busy},
        "guest": dict(result.guest),
        "sections": {section.name: _section_json(section) for section in result.sections},
        "targets": {target.name: _target_json(target) for target in result.targets},
        "agreement": {
            "agreed": result.agreed,
            "mismatches": list(result.mismatches or ()),
            "reason": result.reason,
        },
    }


def _section_json(section: FigureSection) -> dict[str, object]:
    return {
        "title": section.title,
        "facts": dict(section.facts),
        "figures": {
            figure.name: {
                "label": figure.label,
                "unit": _JSON_UNITS.get(figure.unit, "s"),
                **_spread_json(figure.spread),
                "cpu": None if figure.cpu is None else _spread_json(figure.cpu),
            }
            for figure in section.figures
        },
        "notes": list(section.notes),
    }


def _spread_json(spread: Spread) -> dict[str, object]:
    return {"median": spread.median, "min": spread.low, "max": spread.high, "values": list(spread.values)}


def _target_json(target: Target) -> dict[str, object]:
    return {
        "label": target.label,
        "unit": "x" if target.unit == "x" else "s",
        "at_least" if target.floor else "at_most": target.limit,
        "measured": target.measured,
        "met": target.met,
        "reason": target.reason,
    }


def to_lines(result: BenchResult) -> Iterator[str]:
    """``result`` as lines of text. They contain text from the guest and must be cleaned before display."""
    host = result.host
    yield f"bench {result.benchmark}: medians of {result.rounds} rounds"
    load = " ".join(f"{part:.2f}" for part in host.load)
    yield f"host   {host.cpu}, {host.cpus} CPUs, load before {load}, Linux {host.kernel}, NumPy {host.numpy}"
    yield "guest  " + ", ".join(f"{name} {_fact(value)}" for name, value in result.guest.items())
    if host.busy:
        yield "note   the host was busy: the times are too long"
    for section in result.sections:
        yield ""
        yield from _section_lines(section)
    if result.targets:
        yield ""
        yield from _columns([_target_cells(target, host) for target in result.targets], "<><><<")
    yield ""
    yield from _agreement_lines(result)


def _section_lines(section: FigureSection) -> Iterator[str]:
    yield section.title
    if section.facts:
        yield "  " + ", ".join(f"{name} {_fact(value)}" for name, value in section.facts.items())
    if section.figures:
        head = ("", "median", "min", "max", "", "CPU")
        yield from _columns([head, *(_figure_cells(figure) for figure in section.figures)], "<>>><>")
    for note in section.notes:
        yield f"  {note}"


def _figure_cells(figure: Figure) -> tuple[str, ...]:
    spread = figure.spread
    times = (_number(value, figure.unit) for value in (spread.median, spread.low, spread.high))
    cpu = "" if figure.cpu is None else _number(figure.cpu.median, figure.unit)
    return (figure.label, *times, figure.unit, cpu)


def _target_cells(target: Target, host: Host) -> tuple[str, ...]:
    missed = "NOT MET, on a busy host" if host.busy else "NOT MET"
    word = {True: "met", False: missed, None: f"not judged: {target.reason}"}[target.met]
    measured = "-" if target.measured is None else _number(target.measured, target.unit)
    bound = "at least" if target.floor else "at most"
    return (f"target: {target.label}", measured, bound, _number(target.limit, target.unit), target.unit, word)


def _agreement_lines(result: BenchResult) -> Iterator[str]:
    if result.mismatches is None:
        yield f"not compared: {result.reason}"
    elif not result.mismatches:
        yield "the results agree in every round"
    else:
        yield "THE RESULTS DIFFER"
        for mismatch in result.mismatches[:_SHOWN]:
            yield f"  {mismatch}"
        if len(result.mismatches) > _SHOWN:
            yield f"  … and {len(result.mismatches) - _SHOWN} more"


def _number(value: float, unit: str) -> str:
    factor, decimals = _UNITS[unit]
    return f"{value * factor:,.{decimals}f}"


def _fact(value: Fact) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _columns(rows: list[tuple[str, ...]], align: str) -> Iterator[str]:
    """Aligned columns; ``align`` has ``<`` or ``>`` for each."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True))
        yield ("  " + "  ".join(cells)).rstrip()


#: load beside a measurement, as a fraction of the CPUs, up to which figures are trusted
_QUIET = 0.25


@dataclass(frozen=True, slots=True)
class Host:
    """``cpus`` is the number that this process may use; ``load`` has the averages of 1, 5 and 15 minutes before."""

    cpu: str
    cpus: int
    load: tuple[float, float, float]
    kernel: str
    python: str
    numpy: str

    @property
    def busy(self) -> bool:
        """True if the host was in use: the figures are then too high."""
        return self.load[0] > _QUIET * self.cpus


def look_at_host() -> Host:
    """The current host."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    return Host(
        cpu=cpu_model(text) or platform.machine(),
        cpus=len(os.sched_getaffinity(0)),
        load=os.getloadavg(),
        kernel=platform.release(),
        python=platform.python_version(),
        numpy=np.__version__,
    )


def cpu_model(cpuinfo: str) -> str | None:
    """The CPU's name in /proc/cpuinfo; None if the architecture does not print one (arm64)."""
    for line in cpuinfo.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() in ("model name", "uarch") and value.strip():
            return value.strip()
    return None
