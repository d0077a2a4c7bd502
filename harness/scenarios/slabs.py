# SPDX-License-Identifier: GPL-2.0-or-later
"""The objects of one slab cache that are in use, exactly.

/proc/slabinfo counts free objects as used while they wait in a CPU's own slabs (set_cpu_partial, mm/slub.c, v6.12) or
in the sheaves and barns of CPUs and nodes (v6.18 and later). Shrinking the cache gives all of them back
(shrink_store, __kmem_cache_shrink, mm/slub.c; every version from 6.1 to 7.3), so the count is exact.
"""

from __future__ import annotations

import shlex
import threading

from harness.collect.look import collect_state
from harness.deadline import Deadline
from harness.guest.ssh import Shell
from harness.state import KernelFacts, NotObserved, SlabCache

#: freed objects may still wait for the end of an RCU grace period
_TRIES, _BETWEEN = 10, 0.1


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
    done = shell.run(f"echo 1 >{shlex.quote(knob)}", deadline=deadline)
    if done.status:
        said = done.stderr.decode(errors="replace").strip()[-200:]
        return NotObserved(f"the cache could not be shrunk (CONFIG_SLUB_DEBUG, slab_nomerge): {said}")
    slabs = collect_state(shell, None, None, facts=facts, deadline=deadline, sources=("slabinfo",)).slabs
    if isinstance(slabs, NotObserved):
        return slabs
    return next((slab for slab in slabs if slab.name == name), NotObserved(f"/proc/slabinfo has no {name}"))
