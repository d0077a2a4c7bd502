# SPDX-License-Identifier: GPL-2.0-or-later
"""All corruptions, and their selection by name."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence

from harness.errors import UsageError
from harness.selftest import (
    collected,
    corrupt_linear,
    corrupt_reports,
    corrupt_sections,
    corrupt_tables,
    corrupt_vmemmap,
    counts,
    witness,
)
from harness.selftest.corruption import Corruption

#: every corruption once, text first, then memory
CATALOGUE: tuple[Corruption, ...] = (
    *corrupt_reports.CORRUPTIONS,
    *collected.CORRUPTIONS,
    *corrupt_linear.CORRUPTIONS,
    *corrupt_vmemmap.CORRUPTIONS,
    *corrupt_tables.CORRUPTIONS,
    *witness.CORRUPTIONS,
    *corrupt_sections.CORRUPTIONS,
    *counts.CORRUPTIONS,
)


def chosen(patterns: Sequence[str]) -> tuple[Corruption, ...]:
    """The corruptions whose names match one of ``patterns`` (* and ? as in a shell), in the catalogue's order.

    Without patterns, all. Raises UsageError for a pattern that matches no name.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(item.name, pattern) for item in CATALOGUE):
            near = difflib.get_close_matches(pattern, [item.name for item in CATALOGUE], n=1)
            hint = f"did you mean {near[0]}?" if near else "memhp selftest --list"
            raise UsageError(f"--only: no corruption is called {pattern[:80]!r}", hint=hint)
    return tuple(
        item for item in CATALOGUE if not patterns or any(fnmatch.fnmatchcase(item.name, part) for part in patterns)
    )
