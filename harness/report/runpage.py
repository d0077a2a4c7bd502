# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of the HTML report: what it ran on, its timeline, and step by step what changed and what broke."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

from harness.check import CATALOGUE, CheckResult, Verdict
from harness.parsers.notes import told
from harness.report.book import Entry
from harness.report.drawing import Drawings, safe, timeline
from harness.report.text import WORDS, invariants_line, plural, seconds
from harness.scenarios.memorymap import MemoryMap
from harness.scenarios.result import FINE, RunResult, StepResult

#: what one page shows of a run; results.json and the bundle have it all
MAX_STEPS = 120
MAX_CHANGES = 40
MAX_FINDINGS = 25
_FACTS = ("kernel", "kernel_origin", "qemu", "qemu_origin", "boot", "page_size", "va_bits", "cmdline", "host_load")


def run_section(entry: Entry, number: int) -> str:
    """The section of one run; it is open if the run did not pass."""
    run = entry.run
    bad = run.verdict not in FINE
    size = f"{plural(len(run.steps), 'step')}, {seconds(run.seconds)}"
    parts = [
        f'<details class="run" id="run-{number}"{" open" if bad else ""}>',
        f'<summary><span class="b b-{run.verdict.value}">{safe(WORDS[run.verdict])}</span> {safe(entry.id)} ',
        f'<span class="dim">{safe(size)}</span></summary>',
        *_about(entry),
        timeline(run),
        *_steps(run, f"r{number}"),
        "</details>",
    ]
    return "".join(parts)


def _about(entry: Entry) -> Iterator[str]:
    run = entry.run
    if run.reason:
        yield f"<pre>{safe(run.reason, 4000)}</pre>"
    for id, title in run.bugs.items():
        what = "known bug" if id in run.met else "did not show, though this kernel should have it: known bug"
        yield f"<p>{what} <b>{safe(id)}</b>: {safe(title, 1000)}</p>"
    if run.hint:
        yield f'<p class="dim">hint: {safe(run.hint, 1000)}</p>'
    if entry.links:
        links = " · ".join(f'<a href="{quote(address)}">{safe(name)}</a>' for name, address in entry.links)
        yield f"<p>{links}</p>"
    if entry.replay:
        yield f"<pre>{safe(entry.replay, 1000)}</pre>"
    facts = {**entry.axes, **{name: run.facts[name] for name in _FACTS if run.facts.get(name) not in (None, "")}}
    yield f'<p class="dim">{safe(" · ".join(f"{name} {value}" for name, value in facts.items()), 2000)}</p>'
    for line in told(run.unknown):
        yield f'<p class="dim">{safe(line, 1000)}</p>'


def _steps(run: RunResult, prefix: str) -> Iterator[str]:
    maps = [step.memory for step in run.steps if step.memory is not None]
    drawings = Drawings(maps, prefix)
    before: MemoryMap | None = None
    if maps:
        yield _key()
        yield drawings.definitions()
    for step in run.steps[:MAX_STEPS]:
        yield _step(step, before, drawings)
        before = step.memory or before
    if len(run.steps) > MAX_STEPS:
        rest = run.steps[MAX_STEPS:]
        yield f'<p class="dim">… and {safe(plural(len(rest), "more step"))}, in results.json</p>'
        for step in rest:
            if step.verdict is not Verdict.PASS:
                yield _step(step, None, drawings)


def _key() -> str:
    kinds = (
        ("ram", "System RAM"),
        ("pmem", "persistent memory, dax"),
        ("device", "other device memory"),
        ("kernel", "blocks online"),
        ("movable", "blocks online in Movable"),
        ("offline", "blocks offline"),
        ("going", "blocks on their way"),
    )
    keys = "".join(f'<span class="key {kind}"></span>{safe(text)}' for kind, text in kinds)
    return f'<p class="dim">above /proc/iomem, below memory blocks:{keys}</p>'


def _step(step: StepResult, before: MemoryMap | None, drawings: Drawings) -> str:
    bad = step.verdict is not Verdict.PASS
    head = f"{step.number:>3} {step.title}"
    tail = f"{seconds(step.seconds)}, {invariants_line(step.checks)}"
    parts = [
        f'<details class="step"{" open" if bad else ""}><summary><span class="b b-{step.verdict.value}">',
        f'{safe(WORDS[step.verdict])}</span> <span class="mono">{safe(head)}</span> ',
        f'<span class="dim">{safe(tail)}</span></summary>',
    ]
    if step.note:
        parts.append(f"<p>{safe(step.note, 2000)}</p>")
    parts += _maps(step.memory, before, drawings)
    parts += [f'<div class="change">{safe(line, 500)}</div>' for line in step.changes[:MAX_CHANGES]]
    if len(step.changes) > MAX_CHANGES:
        parts.append(f'<p class="dim">… and {len(step.changes) - MAX_CHANGES} more changes</p>')
    for check in step.checks:
        if check.status == "fail":
            parts += _findings(check)
        elif check.status == "not-observed":
            parts.append(f'<div class="dim">{safe(check.invariant)} not observed: {safe(check.reason, 500)}</div>')
    return "".join([*parts, "</details>"])


def _maps(after: MemoryMap | None, before: MemoryMap | None, drawings: Drawings) -> Iterator[str]:
    if after is None or not drawings.scale.spans:
        return
    changed = before is not None and before != after
    for name, found in (("before", before), ("after", after)) if changed else (("memory", after),):
        if found is not None:
            drawn = drawings.memory(found, f"physical memory {name}")
            yield f'<div class="strip"><span class="dim">{name}</span>{drawn}</div>'
    yield f'<div class="strip"><span></span>{drawings.axis()}</div>'


def _findings(check: CheckResult) -> Iterator[str]:
    known = CATALOGUE.get(check.invariant)
    statement = f" {known.statement}" if known else ""
    yield f"<h3>{safe(check.invariant)} broken.{safe(statement, 500)}</h3>"
    for found in check.findings[:MAX_FINDINGS]:
        yield (
            f'<dl class="finding"><dt>at</dt><dd>{safe(found.where, 1000)}, seen in {safe(found.source)}</dd>'
            f"<dt>expected</dt><dd>{safe(found.expected, 1000)}</dd>"
            f"<dt>observed</dt><dd>{safe(found.observed, 1000)}</dd></dl>"
        )
    if len(check.findings) > MAX_FINDINGS:
        yield f'<p class="dim">… and {len(check.findings) - MAX_FINDINGS} more findings</p>'
