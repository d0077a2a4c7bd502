# SPDX-License-Identifier: GPL-2.0-or-later
"""Benchmarks: what a job of the harness costs, next to the guest doing the same itself.

Each is one function ``(GuestSpec, BenchOptions, Progress) -> BenchResult`` in a module of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.scenarios.run_options import Start

DEFAULT_ROUNDS = 10
MAX_ROUNDS = 1000

#: what is measured unless something is named
DEFAULT_BENCH = "speed"
#: name -> what is measured; ``harness.bench.NAME.run`` measures it
BENCHES: Mapping[str, str] = {
    "speed": "the default: starting a guest, pc-dimm and virtio-mem cycles, a snapshot, parallel scenarios",
    "walk": "page tables read on the host against the guest's own dump over SSH, and what more memory costs",
}


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """How to measure: ``rounds`` that count, at most ``timeout`` seconds for the boot and for each step.

    ``start`` is how a guest comes to life where that is not what is measured.
    """

    rounds: int = DEFAULT_ROUNDS
    timeout: float = 120.0
    start: Start = "auto"
