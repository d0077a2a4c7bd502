# SPDX-License-Identifier: GPL-2.0-or-later
"""Named invariants: expected state against observed state. Importing this package fills the catalogue."""

from __future__ import annotations

import importlib

from harness.check.evidence import (
    DumpReport,
    Evidence,
    OfflineReport,
    ResizeReport,
    Slope,
    TouchReport,
    UnplugReport,
)
from harness.check.findings import CheckResult, Finding, Verdict
from harness.check.registry import CATALOGUE, Invariant, run_all, run_check, sort_catalogue

for _module in (
    *("counters", "crosscheck", "iomem_invariants", "life", "linear_invariants", "pagetables", "qmp_invariants"),
    *("rollback", "section_invariants", "sysfs", "vmemmap_invariants"),
):
    importlib.import_module(f"{__name__}.{_module}")
sort_catalogue(("QMP", "IOM", "BLK", "ZON", "MEM", "LIN", "VMM", "PGT", "SEC", "RBK", "XCK", "LOG", "LIV"))

__all__ = [
    "CATALOGUE",
    "CheckResult",
    "DumpReport",
    "Evidence",
    "Finding",
    "Invariant",
    "OfflineReport",
    "ResizeReport",
    "Slope",
    "TouchReport",
    "UnplugReport",
    "Verdict",
    "run_all",
    "run_check",
]
