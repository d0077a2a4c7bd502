# SPDX-License-Identifier: GPL-2.0-or-later
"""The QMP session: events stay in order, and every kind of end is distinguished."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qemu_peer import Peer, Refuse, session

from harness.deadline import Deadline
from harness.errors import DeadlineExpired, GuestError, QemuError, QmpRefused
from harness.qemu.qmp import QmpSession


def refuse(peer: Peer, arguments: dict[str, Any]) -> Any:
    raise Refuse("no such thing")


def noisy(peer: Peer, arguments: dict[str, Any]) -> Any:
    for number in range(100):
        peer.event("NOISE", number=number)
    return "done"


def hang_up(peer: Peer, arguments: dict[str, Any]) -> Any:
    peer.hang_up()
    return {}


def silent(peer: Peer, arguments: dict[str, Any]) -> Any:
    threading.Event().wait(0.3)
    return {}


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer({"bad": refuse, "noisy": noisy, "die": hang_up, "quit": hang_up, "silent": silent})
    yield made
    made.close()


@pytest.fixture
def qmp(peer: Peer, tmp_path: Path) -> Iterator[QmpSession]:
    with session(peer, tmp_path, exit_report=lambda: "QEMU was killed by SIGKILL") as made:
        yield made


def test_execute_returns_what_qemu_returns(qmp: QmpSession, peer: Peer) -> None:
    peer.answers["query-x"] = lambda peer, arguments: [1, arguments["a"]]
    assert qmp.execute("query-x", {"a": "b"}, deadline=Deadline(60)) == [1, "b"]
    assert qmp.alive


def test_refusal_names_command_and_reason(qmp: QmpSession) -> None:
    with pytest.raises(QmpRefused) as caught:
        qmp.execute("bad", deadline=Deadline(60))
    assert str(caught.value) == "QEMU refused bad: no such thing (GenericError)"
    assert (caught.value.command, caught.value.desc) == ("bad", "no such thing")


def test_events_before_a_reply_are_recorded_before_it_returns(qmp: QmpSession) -> None:
    mark = qmp.seq
    assert qmp.execute("noisy", deadline=Deadline(60)) == "done"
    events = qmp.events(mark)
    assert [event.data["number"] for event in events] == list(range(100))
    assert [event.seq for event in events] == list(range(1, 101))
    assert events[0].timestamp == 100.5
    assert str(events[3]) == 'NOISE {"number": 3}'


def test_wait_event_sees_past_and_future(qmp: QmpSession, peer: Peer) -> None:
    qmp.execute("noisy", deadline=Deadline(60))
    past = qmp.wait_event(lambda e: e.data["number"] == 7, since=0, deadline=Deadline(60), awaited="7")
    assert past.seq == 8
    timer = threading.Timer(0.1, peer.event, ["LATE"])
    timer.start()
    late = qmp.wait_event(lambda e: e.name == "LATE", since=past.seq, deadline=Deadline(60), awaited="LATE")
    assert late.seq == 101
    timer.join()


def test_wait_event_ignores_what_came_before_the_mark(qmp: QmpSession) -> None:
    qmp.execute("noisy", deadline=Deadline(60))
    with pytest.raises(DeadlineExpired, match="waiting for more noise; last seen: no event since"):
        qmp.wait_event(lambda e: True, since=qmp.seq, deadline=Deadline(0.05), awaited="more noise")


def test_deadline_of_a_wait_names_the_last_event(qmp: QmpSession) -> None:
    qmp.execute("noisy", deadline=Deadline(60))
    with pytest.raises(DeadlineExpired, match=r'last seen: NOISE \{"number": 99\}'):
        qmp.wait_event(lambda e: False, since=0, deadline=Deadline(0.05), awaited="nothing")


def test_deadline_of_a_command_names_it(qmp: QmpSession) -> None:
    with pytest.raises(DeadlineExpired, match="waiting for QEMU's answer to silent"):
        qmp.execute("silent", deadline=Deadline(0.05))


def test_death_during_a_command(qmp: QmpSession) -> None:
    with pytest.raises(QemuError) as caught:
        qmp.execute("die", deadline=Deadline(60))
    assert str(caught.value) == "lost QEMU while waiting for QEMU's answer to die: QEMU was killed by SIGKILL"


def test_death_wakes_a_waiter_at_once(qmp: QmpSession, peer: Peer) -> None:
    timer = threading.Timer(0.1, peer.hang_up)
    timer.start()
    with pytest.raises(QemuError, match="lost QEMU while waiting for the sun: QEMU was killed"):
        qmp.wait_event(lambda e: False, since=0, deadline=Deadline(60), awaited="the sun")
    timer.join()
    assert not qmp.alive
    with pytest.raises(QemuError, match="lost QEMU"):
        qmp.execute("query-x", deadline=Deadline(60))


def test_a_guest_that_hangs_ends_the_wait_at_once(qmp: QmpSession) -> None:
    # One that was seen before the wait may be over.
    qmp.give_up("INFO: task sh:1 blocked for more than 20 seconds.")
    with pytest.raises(DeadlineExpired):
        qmp.wait_event(lambda e: False, since=0, deadline=Deadline(0.05), awaited="the sun")
    timer = threading.Timer(0.1, qmp.give_up, ["INFO: task sh:2 blocked for more than 20 seconds."])
    timer.start()
    with pytest.raises(GuestError, match="hangs, while memhp was waiting for the sun: INFO: task sh:2 blocked"):
        qmp.wait_event(lambda e: False, since=0, deadline=Deadline(60), awaited="the sun")
    timer.join()
    assert qmp.alive


def test_events_that_came_before_the_death_count(qmp: QmpSession, peer: Peer) -> None:
    peer.event("LAST")
    peer.hang_up()
    assert qmp.wait_event(lambda e: e.name == "LAST", since=0, deadline=Deadline(60), awaited="LAST").seq == 1


def test_quit_does_not_mind_a_hang_up(qmp: QmpSession) -> None:
    qmp.quit(deadline=Deadline(60))


def test_closed_session(peer: Peer, tmp_path: Path) -> None:
    qmp = session(peer, tmp_path)
    qmp.close()
    qmp.close()
    with pytest.raises(QemuError, match="the QMP session is closed"):
        qmp.execute("query-x", deadline=Deadline(1))


def test_hang_up_before_the_greeting(tmp_path: Path) -> None:
    peer = Peer(greet=False)
    peer.hang_up()
    with pytest.raises(QemuError, match="lost QEMU while waiting for QMP's greeting: it fell"):
        session(peer, tmp_path, exit_report=lambda: "it fell")
    peer.close()


def test_no_greeting(tmp_path: Path) -> None:
    peer = Peer(greet=False)
    with pytest.raises(DeadlineExpired, match="waiting for QMP's greeting"):
        QmpSession(peer.ours, log=tmp_path / "log", deadline=Deadline(0.1))
    peer.close()


def test_hmp_wants_text(qmp: QmpSession, peer: Peer) -> None:
    with pytest.raises(QemuError, match=r"human monitor answered 'info x' with \{\}"):
        qmp.hmp("info x", deadline=Deadline(60))
    peer.answers["human-monitor-command"] = lambda peer, arguments: arguments["command-line"] + "!"
    assert qmp.hmp("info x", deadline=Deadline(60)) == "info x!"


def test_log_has_everything_in_order(peer: Peer, tmp_path: Path) -> None:
    with session(peer, tmp_path) as qmp:
        peer.answers["one"] = lambda peer, arguments: peer.event("E", x=1)
        qmp.execute("one", {"y": 2}, deadline=Deadline(60))
        with pytest.raises(QmpRefused):
            qmp.execute("bad", deadline=Deadline(60))
    records = [json.loads(line) for line in (tmp_path / "qmp.jsonl").read_text().splitlines()]
    assert [record["kind"] for record in records] == [
        "greeting",
        "command",
        "event",
        "reply",
        "command",
        "error",
        "lost",
    ]
    assert records[1]["arguments"] == {"y": 2}
    assert records[2]["event"] == "E" and records[2]["seq"] == 1
    assert records[5]["desc"] == "no such thing"
    times = [record["monotonic"] for record in records]
    assert times == sorted(times)
