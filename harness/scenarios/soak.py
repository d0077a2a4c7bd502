# SPDX-License-Identifier: GPL-2.0-or-later
"""Rounds of a soak: any growth per round is a leak, however small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from harness.check import Slope
from harness.check.counters import SLAB
from harness.state import GuestState, NotObserved, SlabCache

_VMSTAT = ("nr_memmap", "nr_memmap_pages", "nr_memmap_boot", "nr_memmap_boot_pages")
#: number of rounds that only warm up caches
WARM_UP = 1


@dataclass(frozen=True, slots=True)
class Counter:
    """One counter after one round, with its ``unit``. All of them are exact: none may change."""

    value: int
    unit: str


#: the counters after a round by name, or the reason why one could not be read
Round = Mapping[str, Counter | NotObserved]


def counters(state: GuestState, slab: SlabCache | NotObserved, page_size: int) -> dict[str, Counter | NotObserved]:
    """MEM-2's balance in bytes, and the objects of ``slab``; MEM-2 counts page tables at every step."""
    found: dict[str, Counter | NotObserved] = {}
    for name in _VMSTAT:
        if isinstance(state.vmstat, NotObserved):
            found[name] = state.vmstat
        elif name in state.vmstat:
            found[name] = Counter(state.vmstat[name] * page_size, "bytes")
    total = state.meminfo if isinstance(state.meminfo, NotObserved) else Counter(state.meminfo["MemTotal"], "bytes")
    backends = state.backends
    held = backends if isinstance(backends, NotObserved) else Counter(len(backends), "backends")
    used = slab if isinstance(slab, NotObserved) else Counter(slab.active_objs * slab.objsize, "bytes")
    return found | {"MemTotal": total, "memory backends of QEMU": held, f"slab {SLAB}": used}


def slopes(rounds: Sequence[Round]) -> tuple[Slope, ...]:
    """Fit a line (least squares) through each counter that was read in every round after the first ones."""
    kept = rounds[WARM_UP:]
    if len(kept) < 2:
        return ()
    found = {name: [one.get(name) for one in kept] for name in _names(kept)}
    whole = {name: [value for value in row if isinstance(value, Counter)] for name, row in found.items()}
    return tuple(_fit(name, row) for name, row in whole.items() if len(row) == len(kept))


def unread(rounds: Sequence[Round]) -> tuple[list[str], list[str]]:
    """Counters that no round could read, and those that only some rounds could read (which makes it inconclusive)."""
    kept = rounds[WARM_UP:]
    never, sometimes = [], []
    for name in _names(kept):
        missing = [number for number, one in enumerate(kept, WARM_UP + 1) if not isinstance(one.get(name), Counter)]
        if missing:
            reason = kept[missing[0] - WARM_UP - 1].get(name)
            why = reason.reason if isinstance(reason, NotObserved) else "the kernel did not report it"
            if len(missing) == len(kept):
                never.append(f"{name}: {why}")
            else:
                sometimes.append(f"{name} was not read after round {', '.join(map(str, missing))}: {why}")
    return never, sometimes


def _names(rounds: Sequence[Round]) -> list[str]:
    return list(dict.fromkeys(name for one in rounds for name in one))


def _fit(name: str, values: Sequence[Counter]) -> Slope:
    count = len(values)
    centred = [Fraction(2 * number - count + 1, 2) for number in range(count)]
    spread = sum((t * t for t in centred), Fraction(0))
    each = sum((t * value.value for t, value in zip(centred, values, strict=True)), Fraction(0)) / spread
    return Slope(name, each, values[0].unit)


def spell(slope: Slope) -> str:
    """``nr_memmap 0 bytes a round``."""
    return f"{slope.name} {slope.spelled}"
