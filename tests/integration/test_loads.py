# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads in a real guest: rounds run while memory comes and goes, and at rest nothing of them is to be seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from harness.check import Verdict
from harness.deadline import Deadline
from harness.errors import UnsupportedError, UsageError
from harness.guest.loads import LOADS, count_loads, pause_loads, start_load, stop_load
from harness.scenarios import steps
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.units import KIB, MIB

pytestmark = pytest.mark.memhp_guest

#: kinds of loads that run together, with what they are asked for
TOGETHER: list[dict[str, dict[str, int]]] = [
    {"ptdump": {}, "kcore": {"step": 2 * MIB}, "kpageflags": {}},
    {"vmalloc": {"size": 16 * MIB, "areas": 2}, "anon": {"size": 64 * MIB}, "compaction": {}},
    {"memfd-secret": {"size": 256 * KIB}, "bpf": {}, "hugetlb": {"count": 16}},
]

#: the life of a DIMM
STEPS: list[tuple[Callable[[Session, Mapping[str, Any], Deadline], Outcome], dict[str, Any]]] = [
    (steps.plug_dimm, {"id": "dimm0", "size": 256 * MIB}),
    (steps.online, {"device": "dimm0", "type": "movable"}),
    (steps.touch, {"device": "dimm0", "size": 16 * MIB}),
    (steps.offline, {"device": "dimm0"}),
    (steps.unplug, {"id": "dimm0"}),
]


def must(session: Session, title: str, work: Callable[[Session, Deadline], Outcome]) -> None:
    result = session.act(title, work)
    broken = [(check.invariant, check.findings) for check in result.checks if check.findings]
    assert result.verdict is Verdict.PASS, (result.note, broken)


def has_dimms(session: Session) -> bool:
    return "ACPI_HOTPLUG_MEMORY" in (session.guest.facts.config or {})


def stay(session: Session) -> None:
    """Have movable memory for good: Linux 6.12 may crash if somebody allocates while a zone becomes populated or empty.

    The list of zones is rewritten then, and who is on the fast path looks for its first zone in the new one:
    zone_statistics(NULL) in alloc_pages_bulk_noprof (mm/page_alloc.c) is what it comes to.
    """
    if "stay" not in session.model.devices and has_dimms(session):
        must(session, "policy", lambda s, d: steps.auto_online(s, {"policy": "offline"}, d))
        must(session, "plug", lambda s, d: steps.plug_dimm(s, {"id": "stay", "size": 128 * MIB}, d))
        must(session, "online", lambda s, d: steps.online(s, {"device": "stay", "type": "movable"}, d))


def start(session: Session, wanted: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Start those loads that this kernel is able to do; each of the others is refused by name, with what it lacks."""
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
            steps.load(s, {"id": kind, "kind": kind, **wanted[kind]}, deadline)
        return Outcome()

    must(session, f"start {', '.join(started)}", begin)
    return started


def stop(session: Session, kinds: Sequence[str]) -> None:
    def end(s: Session, deadline: Deadline) -> Outcome:
        for kind in kinds:
            assert not steps.unload(s, {"id": kind}, deadline).inconclusive
        return Outcome()

    must(session, f"stop {', '.join(kinds)}", end)


@pytest.mark.parametrize("wanted", TOGETHER, ids="+".join)
def test_rounds_run_while_a_dimm_comes_and_goes(wanted: dict[str, dict[str, int]], memhp_guest: Session) -> None:
    session = memhp_guest
    stay(session)
    kinds = start(session, wanted)
    if not kinds:
        pytest.skip("this kernel can do none of them")
    for verb, words in STEPS if has_dimms(session) else [(steps.check, {})]:
        before = dict(session.loads)
        must(session, f"{verb.__name__} beside {', '.join(kinds)}", lambda s, d, v=verb, w=words: v(s, w, d))  # type: ignore[misc]
        for kind in kinds:
            count = session.loads[kind]
            print(f"{verb.__name__}: {count.rounds - before[kind].rounds} rounds of {kind}, {count}")
            assert count.running and count.rounds > before[kind].rounds and count.failures == 0, (kind, count)
        again = pause_loads(session.guest.shell, deadline=session.deadline())
        assert {kind: again[kind] for kind in kinds} == {kind: session.loads[kind] for kind in kinds}
    stop(session, kinds)


def test_a_name_is_free_again_and_a_killed_load_is_not_running(memhp_guest: Session) -> None:
    shell, deadline = memhp_guest.guest.shell, memhp_guest.deadline()
    start_load(shell, "a", "anon", {"size": MIB, "cpus": 3}, deadline=deadline)
    with pytest.raises(UsageError, match="there is a load 'a'"):
        start_load(shell, "a", "anon", {}, deadline=deadline)
    shell.must("kill -9 $(pidof load-worker | cut -d ' ' -f 1)", deadline=deadline)
    count = pause_loads(shell, deadline=deadline)["a"]
    assert (count.running, count.note) == (False, "a worker was killed by signal 9")
    assert not stop_load(shell, "a", deadline=deadline).running
    assert count_loads(shell, deadline=deadline) == {}
    assert shell.must("pidof load-keeper load-worker || true", deadline=deadline) == b""
    with pytest.raises(UnsupportedError, match="cannot do the load vmalloc: the kernel finds 4096 bytes without"):
        start_load(shell, "a", "vmalloc", {"size": 4096}, deadline=deadline)
    must(memhp_guest, "after them", lambda s, d: Outcome())
