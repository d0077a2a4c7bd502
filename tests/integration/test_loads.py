# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads in a real guest: rounds run while memory comes and goes, and at rest nothing of them is to be seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from harness.check import Verdict
from harness.deadline import Deadline
from harness.errors import UnsupportedError, UsageError
from harness.guest.loads import LOADS, LoadCount, count_loads, pause_loads, resume_loads, start_load, stop_load
from harness.model.devices import Dimm
from harness.scenarios import steps
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.units import MIB

pytestmark = pytest.mark.memhp_guest

#: each kind of load with what it is asked for
ASKED: list[tuple[str, dict[str, int]]] = [
    ("ptdump", {"cpus": 2}),
    ("kcore", {"step": 2 * MIB}),
    ("kpageflags", {}),
    ("vmalloc", {"size": 16 * MIB, "areas": 2}),
    ("anon", {"size": 128 * MIB}),
    ("memfd-secret", {"size": 2 * MIB}),
    ("bpf", {}),
    ("hugetlb", {"count": 16}),
    ("compaction", {}),
]

#: the life of a DIMM
STEPS: list[tuple[Callable[[Session, Mapping[str, Any], Deadline], Outcome], dict[str, Any]]] = [
    (steps.plug_dimm, {"id": "dimm0", "size": 512 * MIB}),
    (steps.online, {"device": "dimm0", "type": "movable"}),
    (steps.touch, {"device": "dimm0", "size": 16 * MIB}),
    (steps.offline, {"device": "dimm0"}),
    (steps.unplug, {"id": "dimm0"}),
]


def must(session: Session, title: str, work: Callable[[Session, Deadline], Outcome]) -> None:
    result = session.act(title, work)
    broken = [(check.invariant, check.findings) for check in result.checks if check.findings]
    assert result.verdict is Verdict.PASS, (result.note, broken)


def started(session: Session, kind: str, args: Mapping[str, int]) -> None:
    """Start it, at rest at once; skip where the kernel lacks what it takes."""
    try:
        LOADS[kind].require(session.guest.facts.config or {})
    except UnsupportedError as lack:
        pytest.skip(lack.message)
    start_load(session.guest.shell, kind, kind, args, deadline=session.deadline())
    pause_loads(session.guest.shell, deadline=session.deadline())


@pytest.mark.parametrize(("kind", "args"), ASKED, ids=[kind for kind, _ in ASKED])
def test_rounds_run_while_a_dimm_comes_and_goes(kind: str, args: dict[str, int], memhp_guest: Session) -> None:
    session = memhp_guest
    assert isinstance(session.guest.facts.config, dict)
    must(session, "before", lambda s, d: steps.auto_online(s, {"policy": "offline"}, d))
    started(session, kind, args)
    must(session, f"{kind} at rest", lambda s, d: Outcome())
    for verb, words in STEPS:
        done: list[LoadCount] = []

        def beside(s: Session, deadline: Deadline, verb: Any = verb, words: Any = words, done: Any = done) -> Outcome:
            done.append(resume_loads(s.guest.shell, deadline=deadline)[kind])
            outcome: Outcome = verb(s, words, deadline)
            done.append(count_loads(s.guest.shell, deadline=deadline)[kind])
            done.append(pause_loads(s.guest.shell, deadline=deadline)[kind])
            return outcome

        must(session, f"{verb.__name__} beside {kind}", beside)
        first, during, last = done
        print(f"{verb.__name__}: {during.rounds - first.rounds} of {last.rounds - first.rounds} rounds, {last}")
        assert last.running and last.rounds > first.rounds, last
        assert last.failures == 0, last
    assert stop_load(session.guest.shell, kind, deadline=session.deadline()).running
    must(session, f"{kind} stopped", lambda s, d: Outcome())


def test_a_name_is_free_again_and_a_killed_load_is_not_running(memhp_guest: Session) -> None:
    shell, deadline = memhp_guest.guest.shell, memhp_guest.deadline()
    start_load(shell, "a", "anon", {"size": MIB, "cpus": 3}, deadline=deadline)
    with pytest.raises(UsageError, match="there is a load 'a'"):
        start_load(shell, "a", "anon", {}, deadline=deadline)
    shell.must("kill -9 $(pgrep -f 'load-worker anon' | head -n 1)", deadline=deadline)
    count = pause_loads(shell, deadline=deadline)["a"]
    assert (count.running, count.note) == (False, "a worker was killed by signal 9")
    assert not stop_load(shell, "a", deadline=deadline).running
    assert count_loads(shell, deadline=deadline) == {}
    assert shell.must("pgrep -c load- || true", deadline=deadline) == b"0\n"
    with pytest.raises(UnsupportedError, match="cannot do the load vmalloc: the kernel finds 4096 bytes without"):
        start_load(shell, "a", "vmalloc", {"size": 4096}, deadline=deadline)
    must(memhp_guest, "after them", lambda s, d: Outcome())
    assert not any(isinstance(device, Dimm) for device in memhp_guest.model.devices.values())
