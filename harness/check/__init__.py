# SPDX-License-Identifier: GPL-2.0-or-later
"""Named invariants: expected state against observed state. Importing this package fills the catalogue."""

from __future__ import annotations

from harness.check import (
    counters,
    crosscheck,
    devices,
    iomem,
    life,
    linear,
    offlining,
    pagetables,
    sections,
    sysfs,
    vmemmap,
)
from harness.check.evidence import Evidence, OfflineReport, ResizeReport, TouchReport, UnplugReport
from harness.check.findings import CheckResult, Finding, Verdict
from harness.check.registry import CATALOGUE, Invariant, run_all, run_check, sort_catalogue

sort_catalogue(("QMP", "IOM", "BLK", "ZON", "MEM", "LIN", "VMM", "PGT", "SEC", "XCK", "LOG", "LIV"))

__all__ = [
    "CATALOGUE",
    "CheckResult",
    "Evidence",
    "Finding",
    "Invariant",
    "OfflineReport",
    "ResizeReport",
    "TouchReport",
    "UnplugReport",
    "Verdict",
    "counters",
    "crosscheck",
    "devices",
    "iomem",
    "life",
    "linear",
    "offlining",
    "pagetables",
    "run_all",
    "run_check",
    "sections",
    "sysfs",
    "vmemmap",
]
