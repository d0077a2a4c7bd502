# SPDX-License-Identifier: GPL-2.0-or-later
"""The changes of a step in the kernel's state, as text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from harness.arch.kernel_layout import KernelLayout
from harness.check.backtrace import describe_backtrace, first_backtrace
from harness.check.iomem_invariants import paths
from harness.check.known import bare
from harness.state import GuestState, HostTables, MemoryBlock, NotObserved, PageTables
from harness.units import AddrRange, format_size, merge_ranges, subtract_ranges

_AFTERWARDS = "read from its memory afterwards"
#: a process that died of a signal: kernel/signal.c, print_fatal_signal; arch/{arm64,riscv}/kernel/traps.c
_FATAL = re.compile(r"potentially unexpected fatal signal|\]: unhandled (?:exception|signal)")
#: maximum number of such lines
_DEATHS = 3
#: without what only a live guest tells
_NO_TEXT: dict[str, Any] = dict.fromkeys(
    ("iomem", "blocks", "meminfo", "page_tables"), NotObserved("the guest is lost")
)


def describe_changes(before: GuestState, after: GuestState, kernel: KernelLayout | None = None) -> tuple[str, ...]:
    """Lines such as ``iomem + 80000000-bfffffff : System RAM`` and ``memory16-23 offline → online Movable``.

    ``kernel`` tells the linear map from vmemmap where a fast look left the guest's own dump out.
    """
    tables = _tables(before, after, kernel)
    return (*_iomem(before, after), *_blocks(before, after), *_mem_total(before, after), *tables)


def describe_lost(
    before: GuestState, lost: GuestState | NotObserved, kernel: KernelLayout | None = None
) -> tuple[str, ...]:
    """What the host read of a guest that was lost, in one line, and the changes since the snapshot ``before``.

    Both are compared as the host reads them.
    """
    if isinstance(lost, NotObserved):
        return (f"{_AFTERWARDS}: nothing ({lost.reason})",)
    records, unread = lost.records, dict[str, list[str]]()
    blocks = () if isinstance(records.blocks, NotObserved) else records.blocks
    counts = sorted(Counter(block.state for block in blocks).items())
    parts = {"memory blocks": records.blocks, "iomem": records.iomem, "MemTotal": records.meminfo}
    for name, part in (parts | {"page tables": lost.host_tables}).items():
        if isinstance(part, NotObserved):
            unread.setdefault(part.reason, []).append(name)
    changes = describe_changes(replace(before, **_NO_TEXT), replace(lost, **_NO_TEXT), kernel)
    found = [f"memory blocks {', '.join(f'{count} {state}' for state, count in counts)}"] if counts else []
    found += [f"no {', '.join(names)} ({why})" for why, names in unread.items()]
    log = () if isinstance(records.log, NotObserved) else records.log
    deaths = [line.text for line in log if _FATAL.search(line.text)]
    found += [f"its kernel says: {text}" for text in deaths[:_DEATHS]]
    found += [] if changes or unread or lost.garbled else ["as in the look before this step"]
    garbled = [f"{line.source} line {line.line}, {line.why}: {line.text}" for line in lost.garbled]
    return f"{_AFTERWARDS}: {'; '.join(found)}", *changes, *garbled


def describe_death(trace: Iterable[str]) -> tuple[str, ...]:
    """Where a kernel died, in one line, by its console or log ``trace`` from the first alarm on; () if unknown."""
    place = first_backtrace(map(bare, trace))
    return (f"the kernel was {describe_backtrace(place)}",) if place else ()


def _iomem(before: GuestState, after: GuestState) -> Iterator[str]:
    if isinstance(before.resources, NotObserved) or isinstance(after.resources, NotObserved):
        return
    old, new = list(paths(before.resources)), list(paths(after.resources))
    for sign, here, there in (("-", old, set(new)), ("+", new, set(old))):
        for path in here:
            where, name = path[-1]
            if path not in there and not path[0][1].startswith("PCI Bus"):
                yield f"iomem {sign} {where} : {name}"


def _spell(block: MemoryBlock | None) -> str:
    if block is None:
        return "absent"
    zones = " ".join(block.valid_zones or ())
    return f"online {zones}" if block.state == "online" else block.state


def _blocks(before: GuestState, after: GuestState) -> Iterator[str]:
    if isinstance(before.memory_blocks, NotObserved) or isinstance(after.memory_blocks, NotObserved):
        return
    old, new = ({block.index: block for block in blocks} for blocks in (before.memory_blocks, after.memory_blocks))
    runs: list[tuple[int, int, str]] = []
    for index in sorted(old.keys() | new.keys()):
        change = f"{_spell(old.get(index))} → {_spell(new.get(index))}"
        if _spell(old.get(index)) == _spell(new.get(index)):
            continue
        if runs and runs[-1][1] == index - 1 and runs[-1][2] == change:
            runs[-1] = (runs[-1][0], index, change)
        else:
            runs.append((index, index, change))
    for first, last, change in runs:
        yield f"memory{span_text(first, last)} {change}"


def span_text(first: int, last: int) -> str:
    """``16`` or ``16-23``."""
    return str(first) if first == last else f"{first}-{last}"


def _mem_total(before: GuestState, after: GuestState) -> Iterator[str]:
    if isinstance(before.totals, NotObserved) or isinstance(after.totals, NotObserved):
        return
    change = after.totals["MemTotal"] - before.totals["MemTotal"]
    if change:
        yield f"MemTotal {'+' if change > 0 else '-'}{format_size(abs(change))}"


def _tables(before: GuestState, after: GuestState, kernel: KernelLayout | None) -> Iterator[str]:
    for label in ("Linear", "vmemmap"):
        if not isinstance(before.page_tables, NotObserved) and not isinstance(after.page_tables, NotObserved):
            old, new = _mapped(before.page_tables, label), _mapped(after.page_tables, label)
        elif isinstance(before.host_tables, NotObserved) or isinstance(after.host_tables, NotObserved) or not kernel:
            return
        else:
            window = kernel.linear_window if label == "Linear" else kernel.vmemmap_window
            old, new = _walked(before.host_tables, window), _walked(after.host_tables, window)
        for sign, change in (("-", subtract_ranges(old, new)), ("+", subtract_ranges(new, old))):
            for piece in change:
                yield f"{label.lower()} {sign} {piece} ({format_size(piece.size)})"


def _walked(tables: HostTables, window: AddrRange) -> tuple[AddrRange, ...]:
    return merge_ranges(mapping.range for mapping in tables.mappings if window.covers(mapping.range))


def _mapped(tables: PageTables, region: str) -> tuple[AddrRange, ...]:
    return merge_ranges(mapping.range for mapping in tables.mappings if mapping.region.startswith(region))
