# SPDX-License-Identifier: GPL-2.0-or-later
"""Rounds of a soak: any growth per round is a leak, however small.

The objects of a slab cache are counted exactly. /proc/slabinfo counts free objects as used while they wait in a CPU's
own slabs (set_cpu_partial, mm/slub.c, v6.12) or in the sheaves and barns of CPUs and nodes (v6.18 and later). Shrinking
the cache gives all of them back (shrink_store, __kmem_cache_shrink, mm/slub.c; every version from 6.1 to 7.3).

Allocation sites show leaks of objects that share their cache with others: a kernel booted with ``slab_debug=U`` records
which function allocated each used object. Other processes make these counts go up and down; a leak makes one of them
grow by the same number in every round.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from harness.check import Slope
from harness.check.counters import SLAB
from harness.collect.look import collect_state
from harness.deadline import Deadline
from harness.guest.kernel_files import read_files, write_files
from harness.guest.ssh import Shell
from harness.parsers.alloctraces import parse_alloc_traces
from harness.state import GuestState, KernelFacts, NotObserved, SlabCache

_VMSTAT = ("nr_memmap", "nr_memmap_pages", "nr_memmap_boot", "nr_memmap_boot_pages")
#: number of rounds that only warm up caches
WARM_UP = 1
#: how many equal steps of an allocation site's count are significant
_ENOUGH = 5
#: freed objects may still wait for the end of an RCU grace period
_TRIES, _BETWEEN = 10, 0.1


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
        if isinstance(state.counters, NotObserved):
            found[name] = state.counters
        elif name in state.counters:
            found[name] = Counter(state.counters[name] * page_size, "bytes")
    total = state.totals if isinstance(state.totals, NotObserved) else Counter(state.totals["MemTotal"], "bytes")
    backends = state.backends
    held = backends if isinstance(backends, NotObserved) else Counter(len(backends), "backends")
    used = slab if isinstance(slab, NotObserved) else Counter(slab.active_objs * slab.objsize, "bytes")
    return found | {"MemTotal": total, "memory backends of QEMU": held, f"slab {SLAB}": used}


def slopes(rounds: Sequence[Round]) -> tuple[Slope, ...]:
    """Fit a line (least squares) through each counter that was read in every round after the first ones."""
    kept = rounds[WARM_UP:]
    if len(kept) < 2:
        return ()
    series = {name: [one.get(name) for one in kept] for name in _names(kept)}
    whole = {name: [value for value in row if isinstance(value, Counter)] for name, row in series.items()}
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


def unread_sites(rounds: Sequence[Mapping[str, int]]) -> list[str]:
    """The rounds whose allocation sites could not be read, although others could: a leak does not show without them."""
    kept = rounds[WARM_UP:]
    missing = [str(number) for number, sites in enumerate(kept, WARM_UP + 1) if not sites]
    if not missing or len(missing) == len(kept):
        return []
    return [f"allocation sites were not read after round {', '.join(missing)}"]


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


def slab_in_use(
    shell: Shell, facts: KernelFacts, name: str, *, before: SlabCache | NotObserved | None, deadline: Deadline
) -> SlabCache | NotObserved:
    """The cache ``name`` after shrinking; with more objects than ``before`` it is shrunk again, as some may be pending.

    Raises GuestError, DeadlineExpired.
    """
    wanted = before.active_objs if isinstance(before, SlabCache) else None
    least: SlabCache | None = None
    idle = threading.Event()
    for _ in range(_TRIES):
        found = _shrunk(shell, facts, name, deadline)
        if isinstance(found, NotObserved):
            return found
        if least is None or found.active_objs < least.active_objs:
            least = found
        if wanted is None or least.active_objs <= wanted:
            break
        idle.wait(_BETWEEN)
    assert least is not None
    return least


def _shrunk(shell: Shell, facts: KernelFacts, name: str, deadline: Deadline) -> SlabCache | NotObserved:
    knob = f"/sys/kernel/slab/{name}/shrink"
    [done] = write_files(shell, [(knob, "1")], deadline=deadline)
    if done.error is not None:
        return NotObserved(f"the cache could not be shrunk (CONFIG_SLUB_DEBUG, slab_nomerge): {done.error}")
    slabs = collect_state(shell, None, None, facts=facts, deadline=deadline, sources=("slabinfo",)).slabs
    if isinstance(slabs, NotObserved):
        return slabs
    return next((slab for slab in slabs if slab.name == name), NotObserved(f"/proc/slabinfo has no {name}"))


_TRACES = "/sys/kernel/debug/slab/*/alloc_traces"


def allocation_sites(shell: Shell, deadline: Deadline) -> dict[str, int]:
    """Objects in use by allocating function; empty if the kernel does not record it.

    Raises GuestError, DeadlineExpired.
    """
    files = read_files(shell, [_TRACES], deadline=deadline).values()
    return parse_alloc_traces(b"".join(file.data for file in files).decode(errors="replace"))


def steady_growth(rounds: Sequence[Mapping[str, int]]) -> tuple[Slope, ...]:
    """The functions whose object count grows by the same number after each round but the first ones."""
    kept = rounds[WARM_UP:]
    if len(kept) <= _ENOUGH:
        return ()
    found = []
    for site in sorted(kept[-1]):
        steps = {now.get(site, 0) - before.get(site, 0) for before, now in itertools.pairwise(kept)}
        if len(steps) == 1 and 0 not in steps:
            found.append(Slope(f"objects that {site}() allocated", Fraction(steps.pop()), "objects"))
    return tuple(found)
