# SPDX-License-Identifier: GPL-2.0-or-later
"""Benchmarks: the cost of the harness's work, compared with what the guest's kernel takes itself.

Each is one function ``(GuestSpec, BenchOptions, Progress) -> BenchResult`` in a module of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.scenarios.run_options import Start

DEFAULT_ROUNDS = 10
MAX_ROUNDS = 1000

#: the benchmark that runs by default
DEFAULT_BENCH = "speed"
#: name -> what is measured
BENCHES: Mapping[str, str] = {
    "speed": "the default: starting a guest, pc-dimm and virtio-mem cycles, both looks, parallel scenarios",
    "walk": "page tables read on the host against the guest's own dump over SSH, and what more memory costs",
}


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """How to measure: the number of counted ``rounds``, and the ``timeout`` in seconds of the boot and each step.

    ``start`` is how guests start, unless starting is what is measured.
    """

    rounds: int = DEFAULT_ROUNDS
    timeout: float = 120.0
    start: Start = "auto"
