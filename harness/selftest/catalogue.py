# SPDX-License-Identifier: GPL-2.0-or-later
"""All corruptions, and their selection by name."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from typing import Protocol, TypeVar

from harness.errors import UsageError
from harness.selftest import (
    collected,
    corrupt_held,
    corrupt_linear,
    corrupt_records,
    corrupt_reports,
    corrupt_sections,
    corrupt_tables,
    corrupt_vmemmap,
)
from harness.selftest.corruption import Corruption

#: every corruption once, text first, then memory
CATALOGUE: tuple[Corruption, ...] = (
    *corrupt_reports.CORRUPTIONS,
    *collected.CORRUPTIONS,
    *corrupt_linear.CORRUPTIONS,
    *corrupt_vmemmap.CORRUPTIONS,
    *corrupt_tables.CORRUPTIONS,
    *corrupt_sections.CORRUPTIONS,
    *corrupt_records.CORRUPTIONS,
    *corrupt_held.CORRUPTIONS,
)


class Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


def chosen(patterns: Sequence[str]) -> tuple[Corruption, ...]:
    """The corruptions whose names match one of ``patterns``, see ``matching``."""
    return matching(CATALOGUE, patterns, "corruption", "memhp selftest --list")


def matching(items: Sequence[T], patterns: Sequence[str], kind: str, listing: str) -> tuple[T, ...]:
    """Those of ``items`` whose names match one of ``patterns`` (* and ? as in a shell), in their order.

    Without patterns, all. Raises UsageError for a pattern that matches no name: there is no such ``kind``, and the
    command ``listing`` lists them.
    """
    names = [item.name for item in items]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            near = difflib.get_close_matches(pattern, names, n=1)
            hint = f"did you mean {near[0]}?" if near else listing
            raise UsageError(f"--only: no {kind} is called {pattern[:80]!r}", hint=hint)
    return tuple(
        item for item in items if not patterns or any(fnmatch.fnmatchcase(item.name, part) for part in patterns)
    )
