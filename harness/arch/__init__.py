# SPDX-License-Identifier: GPL-2.0-or-later
"""One frozen description per architecture and paging mode. Differences are data."""

from __future__ import annotations

from harness.arch.architecture import ArchSpec, PagingMode
from harness.arch.arm64 import ARM64
from harness.arch.riscv64 import RISCV64
from harness.errors import UsageError

ARCHES: dict[str, ArchSpec] = {spec.name: spec for spec in (ARM64, RISCV64)}


def arch_named(name: str) -> ArchSpec:
    """Return the architecture called ``name`` (arm64, riscv64); raises UsageError."""
    try:
        return ARCHES[name]
    except KeyError:
        raise UsageError(f"unknown architecture {name!r}", hint=f"known: {', '.join(sorted(ARCHES))}") from None


__all__ = ["ARCHES", "ARM64", "RISCV64", "ArchSpec", "PagingMode", "arch_named"]
