# SPDX-License-Identifier: GPL-2.0-or-later
"""What a fast look leaves out: text of the guest that the host can do without."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness.state import LEFT_OUT, GuestState, NotObserved

#: source of the guest -> what makes it needless, and where a snapshot has that
WITNESSES: Mapping[str, tuple[str, Callable[[GuestState], object]]] = {
    "ptdump": ("instead: the page tables, walked by the host", lambda state: state.host_tables),
    "iomem": ("instead: the resource tree, by the host", lambda state: state.records.iomem),
    "blocks": ("instead: the memory blocks, by the host", lambda state: state.records.blocks),
    "zoneinfo": ("instead: the zones, by the host", lambda state: state.records.zones),
    "vmstat": ("instead: the counters, by the host", lambda state: state.records.vmstat),
    "slabinfo": ("only soaks compare it, and read it themselves", lambda state: state.boot_id),
}


def witnessed(state: GuestState) -> tuple[str, ...]:
    """The sources of the guest in ``state``, a full look, that later fast looks can leave out."""
    return tuple(name for name in WITNESSES if name in state.raw and _seen(name, state))


def left_out_in(state: GuestState, absent: Mapping[str, str]) -> tuple[str, ...]:
    """The sources that a fast look left out, by their reasons in ``absent``; not those that the host failed to read."""
    return tuple(name for name in WITNESSES if absent.get(name) == LEFT_OUT and _seen(name, state))


def _seen(name: str, state: GuestState) -> bool:
    _, witness = WITNESSES[name]
    return not isinstance(witness(state), NotObserved)
