# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the results whose making is timed are the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set

from harness.check.witnesses import clip
from harness.state import Mapping
from harness.units import AddrRange, merge_ranges


def differences(
    dump: Iterable[Mapping], walk: Iterable[Mapping], windows: Sequence[AddrRange], ignored: Set[str] = frozenset()
) -> list[str]:
    """What the guest's dump and the host's walk say differently within ``windows`` of virtual addresses.

    Both are in address order. Levels and attribute words are compared, but for those ``ignored``; the regions are not,
    nor how the runs are cut: neighbours that are alike are one.
    """
    told, found = (dict.fromkeys(_runs(leaves, windows, ignored)) for leaves in (dump, walk))
    only_told, only_found = [run for run in told if run not in found], [run for run in found if run not in told]
    return [
        f"virtual {where}: the guest's dump has {_words(only_told, where)}, the host's walk {_words(only_found, where)}"
        for where in merge_ranges(run.range for run in [*only_told, *only_found])
    ]


def _runs(mappings: Iterable[Mapping], windows: Sequence[AddrRange], ignored: Set[str]) -> Iterator[Mapping]:
    leaves = tuple(mappings)
    pending: Mapping | None = None
    for leaf in (leaf for window in windows for leaf in clip(leaves, window)):
        attrs = tuple(word for word in leaf.attrs if word not in ignored)
        start = leaf.range.start
        if pending is not None:
            if (pending.range.end, pending.level, pending.attrs) == (start, leaf.level, attrs):
                start = pending.range.start
            else:
                yield pending
        pending = Mapping(AddrRange(start, leaf.range.end), leaf.level, attrs, "")
    if pending is not None:
        yield pending


def _words(runs: Iterable[Mapping], where: AddrRange) -> str:
    return (
        "; ".join(f"{run.range} {run.level} {' '.join(run.attrs)}" for run in runs if run.range.overlaps(where))
        or "nothing"
    )
