# SPDX-License-Identifier: GPL-2.0-or-later
"""One run in the HTML report: its guest, its timeline, and its steps with their memory maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from harness.check import Verdict
from harness.parsers.notes import told
from harness.report.book import Entry
from harness.report.drawing import Drawings, timeline
from harness.scenarios.memorymap import MemoryMap
from harness.scenarios.result import StepResult

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
        unknown=tuple(told(run.unknown)),
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
