# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads in a real guest: rounds run while memory is plugged and unplugged; paused loads leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from harness.check import Verdict
from harness.deadline import Deadline
from harness.errors import UnsupportedError, UsageError
from harness.guest.loads import LOADS, pause_loads, start_load, stop_load
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.scenarios.verbs.blocks import AutoOnlineVerb, OfflineVerb, OnlineVerb
from harness.scenarios.verbs.dimm import PlugDimmVerb
from harness.scenarios.verbs.load import LoadVerb, UnloadVerb
from harness.scenarios.verbs.memory import TouchVerb
from harness.scenarios.verbs.plugging import UnplugVerb
from harness.scenarios.verbs.reboot import CheckVerb
from harness.scenarios.verbs.verb import Verb
from harness.units import KIB, MIB

pytestmark = [pytest.mark.memhp_guest, pytest.mark.either_arch, pytest.mark.shared_guest]

#: kinds of loads that run together, with their parameters
TOGETHER: list[dict[str, dict[str, int]]] = [
    {"ptdump": {}, "kcore": {"step": 2 * MIB}, "kpageflags": {}},
    {"vmalloc": {"size": 16 * MIB, "areas": 2}, "anon": {"size": 64 * MIB}, "compaction": {}},
    {"memfd-secret": {"size": 256 * KIB}, "bpf": {}, "hugetlb": {"count": 16}},
]

#: the life of a DIMM
STEPS: list[Verb] = [
    PlugDimmVerb("dimm0", 256 * MIB),
    OnlineVerb("dimm0"),
    TouchVerb(device="dimm0", size=16 * MIB),
    OfflineVerb("dimm0"),
    UnplugVerb("dimm0"),
]


def must(session: Session, title: str, work: Callable[[Session, Deadline], Outcome]) -> None:
    result = session.act(title, work)
    broken = [(check.invariant, check.findings) for check in result.checks if check.findings]
    assert result.verdict is Verdict.PASS, (result.note, broken)


def has_dimms(session: Session) -> bool:
    return "ACPI_HOTPLUG_MEMORY" in (session.guest.facts.config or {})


def keep_movable_populated(session: Session) -> None:
    """Add movable memory that stays: Linux 6.12 may crash on an allocation while a zone becomes populated or empty.

    The zone list is rewritten then, and an allocation on the fast path looks up its preferred zone in the new list,
    which ends in zone_statistics(NULL) in alloc_pages_bulk_noprof (mm/page_alloc.c).
    """
    if "stay" not in session.model.devices and has_dimms(session):
        must(session, "policy", AutoOnlineVerb("offline").run)
        must(session, "plug", PlugDimmVerb("stay", 128 * MIB).run)
        must(session, "online", OnlineVerb("stay").run)


def start(session: Session, wanted: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Start the loads that this kernel supports; check that each other one is refused with the missing options."""
    config = session.guest.facts.config
    assert isinstance(config, dict)
    started = []
    for kind in wanted:
        lacking = LOADS[kind].lacking(config)
        if lacking:
            with pytest.raises(UnsupportedError, match=f"the load {kind} needs a kernel with .*CONFIG_{lacking[-1]}"):
                LOADS[kind].require(config)
            print(f"{kind}: this kernel lacks {', '.join(lacking)}")
            continue
        started.append(kind)

    def begin(s: Session, deadline: Deadline) -> Outcome:
        for kind in started:
            LoadVerb(kind, kind, **wanted[kind]).run(s, deadline)
        return Outcome()

    must(session, f"start {', '.join(started)}", begin)
    return started


def stop(session: Session, kinds: Sequence[str]) -> None:
    def end(s: Session, deadline: Deadline) -> Outcome:
        for kind in kinds:
            assert not UnloadVerb(kind).run(s, deadline).inconclusive
        return Outcome()

    must(session, f"stop {', '.join(kinds)}", end)


@pytest.mark.parametrize("wanted", TOGETHER, ids="+".join)
def test_rounds_run_while_a_dimm_comes_and_goes(wanted: dict[str, dict[str, int]], memhp_guest: Session) -> None:
    session = memhp_guest
    keep_movable_populated(session)
    kinds = start(session, wanted)
    if not kinds:
        pytest.skip("this kernel supports none of these loads")
    for args in STEPS if has_dimms(session) else [CheckVerb()]:
        before = dict(session.loads)
        must(session, f"{args.title()} beside {', '.join(kinds)}", args.run)
        for kind in kinds:
            count = session.loads[kind]
            print(f"{args.title()}: {count.rounds - before[kind].rounds} rounds of {kind}, {count}")
            assert count.running and count.rounds > before[kind].rounds and count.failures == 0, (kind, count)
        again = pause_loads(session.guest.shell, deadline=session.deadline())
        assert {kind: again[kind] for kind in kinds} == {kind: session.loads[kind] for kind in kinds}
    stop(session, kinds)


def test_a_name_is_free_again_and_a_killed_load_is_not_running(memhp_guest: Session) -> None:
    shell, deadline = memhp_guest.guest.shell, memhp_guest.deadline()
    start_load(shell, "a", "anon", {"size": MIB, "cpus": 3}, deadline=deadline)
    with pytest.raises(UsageError, match="the guest already has a load 'a'"):
        start_load(shell, "a", "anon", {}, deadline=deadline)
    shell.must("kill -9 $(pidof load-worker | cut -d ' ' -f 1)", deadline=deadline)
    count = pause_loads(shell, deadline=deadline)["a"]
    assert (count.running, count.note) == (False, "a worker was killed by signal 9")
    assert not stop_load(shell, "a", deadline=deadline).running
    assert pause_loads(shell, deadline=deadline) == {}
    assert shell.must("pidof load-keeper load-worker || true", deadline=deadline) == b""
    with pytest.raises(UnsupportedError, match="cannot run the load vmalloc: the kernel allocates 4096 bytes without"):
        start_load(shell, "a", "vmalloc", {"size": 4096}, deadline=deadline)
    must(memhp_guest, "after them", lambda s, d: Outcome())
