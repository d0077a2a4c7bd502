# SPDX-License-Identifier: GPL-2.0-or-later
"""Allocation sites that hold more objects after every round: leaks of objects that share their cache with others.

A kernel booted with ``slab_debug=U`` records which function allocated each used object. Other processes make these
counts go up and down; a leak makes one of them grow by the same number in every round.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction

from harness.check import Slope
from harness.deadline import Deadline
from harness.guest.ssh import Shell
from harness.parsers.alloctraces import parse_alloc_traces
from harness.scenarios.soak import WARM_UP

#: how many equal steps of a count are significant
_ENOUGH = 5

_READ = "grep -hE '^ *[0-9]+ ' /sys/kernel/debug/slab/*/alloc_traces 2>/dev/null"


def allocation_sites(shell: Shell, deadline: Deadline) -> dict[str, int]:
    """Objects in use by allocating function; empty if the kernel does not record it.

    Raises GuestError, DeadlineExpired.
    """
    return parse_alloc_traces(shell.run(_READ, deadline=deadline).stdout.decode(errors="replace"))


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
