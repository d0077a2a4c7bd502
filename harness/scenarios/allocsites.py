# SPDX-License-Identifier: GPL-2.0-or-later
"""Who holds more objects after every round: leaks of objects that share their cache with others.

A kernel that was booted with ``slab_debug=U`` knows of each object in use which function allocated it. What other
processes do makes those counts go up and down; what a round forgets makes one of them go up by the same in every round.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction

from harness.check import Slope
from harness.deadline import Deadline
from harness.guest.shell import Shell
from harness.parsers.alloctraces import parse_alloc_traces
from harness.scenarios.soak import WARM_UP

#: equal steps of a count that are no accident
_ENOUGH = 5

_READ = "grep -hE '^ *[0-9]+ ' /sys/kernel/debug/slab/*/alloc_traces 2>/dev/null"


def allocation_sites(shell: Shell, deadline: Deadline) -> dict[str, int]:
    """Objects in use by the function that allocated them; empty if the kernel does not keep track of them.

    Raises GuestError, DeadlineExpired.
    """
    return parse_alloc_traces(shell.run(_READ, deadline=deadline).stdout.decode(errors="replace"))


def steady_growth(rounds: Sequence[Mapping[str, int]]) -> tuple[Slope, ...]:
    """The functions that hold as many more objects after each round, but for the first ones, as after any other."""
    kept = rounds[WARM_UP:]
    if len(kept) <= _ENOUGH:
        return ()
    found = []
    for site in sorted(kept[-1]):
        steps = {now.get(site, 0) - before.get(site, 0) for before, now in itertools.pairwise(kept)}
        if len(steps) == 1 and 0 not in steps:
            found.append(Slope(f"objects that {site}() allocated", Fraction(steps.pop()), "objects"))
    return tuple(found)
