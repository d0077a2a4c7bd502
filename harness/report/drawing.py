# SPDX-License-Identifier: GPL-2.0-or-later
"""Drawings for the HTML report: inline SVG of shapes and escaped text. Lengths are in SVG user units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from harness.report.text import clean, seconds
from harness.report.trends import Trend
from harness.scenarios.memorymap import MemoryMap
from harness.scenarios.result import RunResult
from harness.units import AddrRange, format_size, merge_ranges

WIDTH = 1000.0
#: width of a gap between two occupied ranges, and minimum width of a range
_GAP, _LEAST = 26.0, 14.0
_LANE, _ROOM = 18.0, 3.0
#: maximum number of occupied ranges drawn on one scale
_MAX_SPANS = 24


def safe(text: object, limit: int = 300) -> Markup:
    """``text`` escaped for HTML and SVG, also inside attributes, without control characters, cut to ``limit``.

    Markup is returned unchanged.
    """
    return text if isinstance(text, Markup) else Markup(escape(clean(text, limit=limit), quote=True))


def _rect(x: float, y: float, width: float, height: float, kind: str, title: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.8):.1f}" height="{height:.1f}" class="{kind}">'
        f"<title>{safe(title)}</title></rect>"
    )


def _label(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{safe(text)}</text>'


def _svg(height: float, parts: Iterable[str], label: str, kind: str) -> Markup:
    return Markup(
        f'<svg class="{kind}" viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{safe(label)}">'
        f"{''.join(parts)}</svg>"
    )


def timeline(run: RunResult) -> Markup:
    """A bar for the boot and each step, its width the duration; the dark part is the work of guest and QEMU."""
    total = run.boot_seconds + sum(step.seconds for step in run.steps)
    if total <= 0:
        return Markup()
    scale = WIDTH / total
    parts = []
    at = run.boot_seconds * scale
    if at:
        parts.append(_rect(0, 14, at, 26, "boot", f"boot, {seconds(run.boot_seconds)}"))
        if at > 50:
            parts.append(_label(4, 31, "boot"))
    for step in run.steps:
        width, worked = step.seconds * scale, min(step.guest_seconds, step.seconds) * scale
        title = f"{step.number} {step.title}: {step.verdict.value}, {seconds(step.seconds)}"
        title += f", {seconds(step.guest_seconds)} of it in the guest"
        parts.append(_rect(at, 14, width, 26, f"v-{step.verdict.value} rest", title))
        parts.append(_rect(at, 14, worked, 26, f"v-{step.verdict.value}", title))
        if width > 8 + 7 * len(str(step.number)):
            parts.append(_label(at + width / 2, 10, str(step.number), "middle"))
        at += width
    parts.append(_label(0, 54, "0 s"))
    parts.append(_label(WIDTH, 54, seconds(total), "end"))
    return _svg(58, parts, f"timeline of {run.scenario}", "timeline")


@dataclass(frozen=True, slots=True)
class Scale:
    """Positions of physical addresses: spans are as wide as they are large, gaps between them have a fixed width."""

    spans: tuple[tuple[AddrRange, float, float], ...]

    def place(self, where: AddrRange) -> tuple[float, float] | None:
        """(x, width) of a range, None if no span covers it."""
        for span, x, width in self.spans:
            if span.covers(where):
                start = x + (where.start - span.start) / span.size * width
                return start, where.size / span.size * width
        return None


def scale_of(maps: Sequence[MemoryMap]) -> Scale:
    """One scale for all maps of a run, so that equal addresses line up."""
    ranges = {where for found in maps for _, where, _ in found.iomem if where}
    ranges |= {where for found in maps for where, _ in found.blocks if where}
    merged = merge_ranges(ranges)[:_MAX_SPANS]
    if not merged:
        return Scale(())
    room = WIDTH - _GAP * (len(merged) - 1) - _LEAST * len(merged)
    total = sum(where.size for where in merged)
    spans = []
    at = 0.0
    for where in merged:
        width = _LEAST + room * where.size / total
        spans.append((where, at, width))
        at += width + _GAP
    return Scale(tuple(spans))


def axis(scale: Scale) -> str:
    """The start addresses of the spans, and a mark for each gap."""
    parts = []
    free = -1.0
    for number, (span, x, width) in enumerate(scale.spans):
        text = f"{span.start:#x}"
        if x >= free:
            parts.append(_label(x, 11, text))
            free = x + 7.0 * len(text) + 6
        end = f"{span.end:#x}"
        if number == len(scale.spans) - 1 and x + width - 7.0 * len(end) > free:
            parts.append(_label(x + width, 11, end, "end"))
        if number:
            parts.append(f'<path d="M{x - _GAP / 2 - 4:.1f} 16l4 -6l4 6" class="gap"/>')
    return "".join(parts)


def _iomem_kind(name: str) -> str:
    if name.startswith("System RAM"):
        return "ram"
    if "Persistent" in name or "namespace" in name or "dax" in name:
        return "pmem"
    return "device"


def _block_kind(text: str) -> str:
    if text.startswith("online"):
        return "movable" if "Movable" in text else "kernel"
    return "offline" if text.startswith("offline") else "going"


def memory(memory_map: MemoryMap, scale: Scale) -> str:
    """One map: /proc/iomem above, memory blocks below."""
    parts = []
    for depth, where, name in memory_map.iomem:
        at = scale.place(where)
        if at is not None:
            inset = min(depth, 3) * 3.0
            title = f"{where} {name}, {format_size(where.size)}"
            parts.append(_rect(at[0], inset, at[1], _LANE - inset, _iomem_kind(name), title))
    for where, text in memory_map.blocks:
        at = scale.place(where)
        if at is not None:
            title = f"memory blocks {where} {text}, {format_size(where.size)}"
            parts.append(_rect(at[0], _LANE + _ROOM, at[1], _LANE, _block_kind(text), title))
    return "".join(parts)


class Drawings:
    """The maps of one run on one scale. Steps share many maps: each is defined once and referenced.

    ``prefix`` makes the ids of this run's drawings unique on the page.
    """

    def __init__(self, maps: Sequence[MemoryMap], prefix: str) -> None:
        self.scale = scale_of(maps)
        self._names = {found: f"{prefix}m{number}" for number, found in enumerate(dict.fromkeys(maps))}
        self._axis = f"{prefix}a"

    def definitions(self) -> Markup:
        """The definitions that the drawings refer to; nothing is visible."""
        parts = [f'<g id="{name}">{memory(found, self.scale)}</g>' for found, name in self._names.items()]
        parts.append(f'<g id="{self._axis}">{axis(self.scale)}</g>')
        return Markup(f'<svg class="defs" aria-hidden="true"><defs>{"".join(parts)}</defs></svg>')

    def memory(self, memory_map: MemoryMap, label: str) -> Markup:
        """One map."""
        return _svg(2 * _LANE + _ROOM, [f'<use href="#{self._names[memory_map]}"/>'], label, "memory")

    def axis(self) -> Markup:
        """The addresses below a map."""
        return _svg(18, [f'<use href="#{self._axis}"/>'], "physical addresses", "axis")


def nights(trend: Trend) -> Markup:
    """A square per night, the latest on the right."""
    shown = trend.nights[-40:]
    parts = []
    for number, night in enumerate(shown):
        text = f"{night.started[:19]} {night.name or 'tonight'}: {night.verdict.value}"
        parts.append(_rect(number * 12.0, 1, 10, 12, f"v-{night.verdict.value}", text))
    width = 12 * len(shown)
    return Markup(
        f'<svg class="nights" width="{width}" height="14" viewBox="0 0 {width} 14" role="img">{"".join(parts)}</svg>'
    )
