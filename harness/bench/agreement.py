# SPDX-License-Identifier: GPL-2.0-or-later
"""Compares the results of the timed readers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set

from harness.check.witnesses import clip
from harness.state import Mapping
from harness.units import AddrRange, merge_ranges


def differences(
    dump: Iterable[Mapping], walk: Iterable[Mapping], windows: Sequence[AddrRange], ignored: Set[str] = frozenset()
) -> list[str]:
    """The differences between the guest's dump and the host's walk within ``windows`` of virtual addresses.

    Both are in address order. Levels and attribute words are compared, except those ``ignored``; regions are not.
    Adjacent equal runs count as one.
    """
    dumped, walked = (dict.fromkeys(_runs(leaves, windows, ignored)) for leaves in (dump, walk))
    only_dumped, only_walked = (
        [run for run in dumped if run not in walked],
        [run for run in walked if run not in dumped],
    )
    return [
        f"virtual {where}: guest's dump {_words(only_dumped, where)}, host's walk {_words(only_walked, where)}"
        for where in merge_ranges(run.range for run in [*only_dumped, *only_walked])
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
