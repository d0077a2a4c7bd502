# SPDX-License-Identifier: GPL-2.0-or-later
"""Run options that belong neither to a guest nor to a scenario."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    # The parser of the command line imports this file, and wants nothing heavy.
    from harness.check.required import Demand

#: auto: restore a guest from a snapshot if possible, otherwise boot it
Start = Literal["auto", "restore", "cold"]
STARTS: tuple[str, ...] = get_args(Start)
#: full: every source; fast: without the guest's text that the host can do without (harness.collect.looks)
Look = Literal["full", "fast"]
LOOKS: tuple[str, ...] = get_args(Look)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """``bundle_dir`` keeps every run's bundle there; None keeps only those of runs that did not pass.

    ``settle`` is how long the guest may take to show the memory blocks of a step before their absence is a finding;
    ``timeout`` bounds each step and the boot, in seconds. ``seed`` is recorded and feeds everything random. ``rounds``
    is how often the steps of a soak are repeated; None leaves it to the scenario. ``start`` is how guests
    start, ``jobs`` how many of them run at a time. ``demand`` is what must be observed. Without
    ``known_bugs`` a known bug fails like any other. ``look`` is how to look after a step, unless the look must be full.
    """

    bundle_dir: Path | None = None
    seed: int = 0
    timeout: float = 120.0
    fail_fast: bool = False
    settle: float = 20.0
    rounds: int | None = None
    start: Start = "auto"
    jobs: int = 1
    known_bugs: bool = True
    demand: Demand | None = None
    look: Look = "full"
