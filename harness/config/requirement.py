# SPDX-License-Identifier: GPL-2.0-or-later
"""One requirement for kernel, QEMU or host: of a scenario, a verb or a memory device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Requirement:
    """``options`` are kernel options that must all be y or m.

    ``boot`` is the required boot method, None for any. ``hint`` is the next step if options are missing. ``arch`` is
    the only architecture with it (None: all), ``elsewhere`` says why others lack it. ``host`` probes this host,
    ``va_bits`` is the required number of virtual address bits of the booted guest.
    """

    name: str
    meaning: str
    options: tuple[str, ...]
    boot: str | None = None
    hint: str = "build the kernel with it, or run without --kernel to use the purpose-built one"
    arch: str | None = None
    elsewhere: str = ""
    host: Callable[[], bool] | None = None
    va_bits: int | None = None
