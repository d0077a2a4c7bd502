# SPDX-License-Identifier: GPL-2.0-or-later
"""Corruptions outside of the linear map and vmemmap, which only a second witness reveals."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from harness.check.code import moving
from harness.selftest.corruption import MemoryCorruption, memory
from harness.selftest.entries import Place
from harness.selftest.live import Live
from harness.selftest.scene import Inapplicable
from harness.selftest.strokes import gone
from harness.state import HostMapping, NotObserved

TARGET = "kernel image"
_TOP = 1 << 64


def _image(live: Live) -> Iterator[HostMapping]:
    """The mappings of the kernel's own code and data."""
    layout, kernel = live.scene.evidence.layout, live.view.kernel
    note, rules = layout.facts.vmcoreinfo, layout.machine.arch.table_rules
    if isinstance(note, NotObserved) or rules.image_offset not in note:
        raise Inapplicable("the address of the kernel's image is unknown")
    offset = int(note[rules.image_offset], 0)
    for leaf in live.leaves():
        known = kernel.linear_window.overlaps(leaf.range) or kernel.vmemmap_window.overlaps(leaf.range)
        if not known and (leaf.range.start - leaf.physical - offset) % _TOP == 0:
            yield leaf


def _code(live: Live) -> Place:
    executable = live.scene.evidence.layout.machine.arch.executable_word
    return _first(live, lambda leaf: executable in leaf.attrs, "code")


def _constants(live: Live) -> Place:
    arch = live.scene.evidence.layout.machine.arch
    words = {arch.executable_word, arch.writable_word}
    return _first(live, lambda leaf: not words & set(leaf.attrs), "read-only data")


def _data(live: Live) -> Place:
    writable = live.scene.evidence.layout.machine.arch.writable_word
    return _first(live, lambda leaf: writable in leaf.attrs, "data")


def _first(live: Live, wanted: Callable[[HostMapping], bool], what: str) -> Place:
    for leaf in _image(live):
        if wanted(leaf):
            return live.leaf(leaf.range.start + leaf.range.size // 2)
    raise Inapplicable(f"the kernel's image has no {what}")


def _other(live: Live) -> Place:
    """A mapping outside of the linear map, vmemmap, vmalloc, modules and the image: fixmap, PCI I/O, …"""
    kernel, layout = live.view.kernel, live.scene.evidence.layout
    taken = [kernel.linear_window, kernel.vmemmap_window, *(moving(layout) or ())]
    for leaf in live.leaves():
        if not any(window.overlaps(leaf.range) for window in taken):
            return live.leaf(leaf.range.start)
    raise Inapplicable("no other mapping")


def _change(name: str, find: Callable[[Live], Place]) -> Callable[[Live], str]:
    def apply(live: Live) -> str:
        place = find(live)
        live.put(place, live.bits.leaf[name].of(place.entry))
        return str(place)

    return apply


CORRUPTIONS: tuple[MemoryCorruption, ...] = (
    memory(
        "image-not-executable",
        TARGET,
        "the kernel's code cannot be executed",
        "XCK-1",
        apply=_change("not-executable", _code),
    ),
    memory(
        "image-writable", TARGET, "the kernel's constants are writable", "XCK-1", apply=_change("writable", _constants)
    ),
    memory(
        "image-code-writable",
        TARGET,
        "the kernel's code is writable",
        "LIN-2",
        "XCK-1",
        apply=_change("writable", _code),
    ),
    memory("image-data-gone", TARGET, "a mapping of the kernel's data is gone", "XCK-1", apply=gone(_data)),
    memory(
        "other-mapping-gone",
        "other mappings",
        "a mapping of fixmap, PCI I/O or the like is gone",
        "XCK-1",
        apply=gone(_other),
    ),
)
