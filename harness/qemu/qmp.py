# SPDX-License-Identifier: GPL-2.0-or-later
"""One QMP session: a synchronous interface to qemu.qmp's asyncio client, which runs in a thread.

asyncio is confined to this module. Every event is recorded as soon as it is read from the socket, in the order of the
wire and before any reply that follows it; none is ever dropped. All traffic in both directions is logged as JSON lines
as it happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import ConnectError, EventListener, ExecuteError, Message, QMPClient, QMPError, Runstate

from harness.deadline import Deadline
from harness.errors import DeadlineExpired, GuestError, InfraError, QemuError, QmpRefused
from harness.units import format_size

T = TypeVar("T")

# Without a handler the library would report a hang-up on stderr (logging.lastResort); here it becomes a QemuError.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())

# hmp-commands-info.hx, QEMU 10.0; queue 0 of the network card receives, queue 1 sends
_NIC = "/machine/peripheral/nic0/virtio-backend"
_REPORTS = (
    *("info status", "info cpus", "info registers -a", "info irq", "info pic", "info network", "info usernet"),
    f"info virtio-status {_NIC}",
    *(f"info virtio-queue-status {_NIC} {queue}" for queue in (0, 1)),
)

#: seconds that closing may take before the (daemon) thread is abandoned
_CLOSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class QmpEvent:
    """One QMP event, the ``seq``-th (from 1) of its session.

    ``monotonic`` is the host's clock when it was read, ``timestamp`` QEMU's own time since the epoch (seconds).
    """

    seq: int
    monotonic: float
    timestamp: float
    name: str
    data: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.name} {json.dumps(self.data, sort_keys=True)}" if self.data else self.name


#: bytes of events in the log; a soak of 500 rounds has 10 MB of them
MAX_EVENTS = 128 << 20


class QmpSession:
    """A connected QMP session over ``sock``; a context manager.

    ``log`` is the file of JSON lines (appended). ``exit_report`` is called from the waiting thread once the connection
    is lost and returns what is known about QEMU's end: exit status, log tail.
    """

    def __init__(
        self, sock: socket.socket, *, log: Path, deadline: Deadline, exit_report: Callable[[], str] = lambda: ""
    ) -> None:
        """Take over ``sock`` and negotiate; raises QemuError if QEMU hangs up, DeadlineExpired if it stays silent."""
        self._exit_report = exit_report
        self._changed = threading.Condition()
        self._events: list[QmpEvent] = []
        self._event_bytes = 0
        self._lost: str | None = None
        self._hangs, self._hang = 0, ""
        self._closed = False
        self._log = log.open("a", encoding="utf-8", buffering=1)
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient(f"memhp-{sock.fileno()}")
        self._client.register_listener(EventListener(event_filter=self._record))
        self._watch: asyncio.Task[None] | None = None
        self._hanging_up = asyncio.Lock()
        self._thread = threading.Thread(target=self._run_loop, name="memhp-qmp", daemon=True)
        self._thread.start()
        try:
            self._call(self._connect(sock), deadline, "QMP's greeting")
        except BaseException:
            sock.close()
            self.close()
            raise

    def __enter__(self) -> QmpSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """True until the connection is lost or closed."""
        return self._lost is None

    @property
    def seq(self) -> int:
        """Number of the latest event, 0 before the first; pass it to ``wait_event`` as ``since``."""
        with self._changed:
            return len(self._events)

    def events(self, since: int = 0) -> tuple[QmpEvent, ...]:
        """All events after number ``since``, oldest first."""
        with self._changed:
            return tuple(self._events[since:])

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, deadline: Deadline) -> Any:
        """QEMU's answer to ``command``; raises QmpRefused, QemuError if it dies first, DeadlineExpired."""
        return self._call(self._execute(command, arguments), deadline, f"QEMU's answer to {command}")

    def hmp(self, line: str, *, deadline: Deadline) -> str:
        """Run ``line`` in the human monitor and return its text, for the few things that QMP does not report."""
        text = self.execute("human-monitor-command", {"command-line": line}, deadline=deadline)
        if not isinstance(text, str):
            raise QemuError(f"QEMU's human monitor answered {line!r} with {text!r}")
        return text

    def monitor_report(self, deadline: Deadline) -> str:
        """What QEMU knows about a guest that no longer answers: its CPUs, its interrupts, its network.

        Each answer of the human monitor stands below its command, or the reason for a missing answer.
        """
        report = []
        for command in _REPORTS:
            try:
                answer = self.hmp(command, deadline=deadline)
            except InfraError as error:
                answer = f"(no answer: {error.message})"
            report.append(f"(qemu) {command}\n{answer.strip()}\n")
        return "\n".join(report)

    def wait_event(
        self, predicate: Callable[[QmpEvent], bool], *, since: int, deadline: Deadline, awaited: str
    ) -> QmpEvent:
        """Return the first event after number ``since`` that ``predicate`` accepts, waiting for it if need be.

        Raises DeadlineExpired naming ``awaited`` and the last event seen; QemuError as soon as QEMU is gone; GuestError
        after ``give_up``.
        """
        return self.wait_for(
            lambda event: event if predicate(event) else None, since=since, deadline=deadline, awaited=awaited
        )

    def wait_for(self, probe: Callable[[QmpEvent], T | None], *, since: int, deadline: Deadline, awaited: str) -> T:
        """Pass the events after number ``since`` to ``probe``, in order; return its first answer that is not None.

        ``probe`` must not call back into the session. Raises like ``wait_event``.
        """
        at = since
        hangs = self._hangs

        def look() -> T | None:
            nonlocal at
            while at < len(self._events):
                event = self._events[at]
                at += 1
                answer = probe(event)
                if answer is not None:
                    return answer
            if self._lost is not None:
                raise _Lost
            if self._hangs > hangs:
                raise GuestError(f"the guest hangs, while memhp was waiting for {awaited}: {self._hang}")
            return None

        def last_seen() -> str | None:
            return str(self._events[-1]) if len(self._events) > since else "no event since"

        try:
            return deadline.wait(self._changed, look, awaited, last_seen)
        except _Lost:
            raise self._loss(awaited) from None

    def give_up(self, why: str) -> None:
        """End the present waits for events: the guest will not bring them about."""
        with self._changed:
            self._hangs, self._hang = self._hangs + 1, why
            self._changed.notify_all()

    def quit(self, *, deadline: Deadline) -> None:
        """Ask QEMU to exit; it may hang up before or after it answers. Raises DeadlineExpired."""
        with contextlib.suppress(QemuError):
            self.execute("quit", deadline=deadline)

    def close(self) -> None:
        """Hang up and end the thread. May be called again."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._disconnect(), self._loop).result(_CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_SECONDS)

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            pending = asyncio.all_tasks(self._loop)
            for task in pending:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
            self._loop.close()
            # A full disk has already raised its error at the write.
            with contextlib.suppress(OSError):
                self._log.close()

    def _call(self, work: Any, deadline: Deadline, awaited: str) -> Any:
        if self._closed:
            work.close()
            raise QemuError(f"the QMP session is closed; cannot wait for {awaited}")
        if self._lost is not None:
            # QEMU cannot answer any more, whatever state the library thinks it is in.
            work.close()
            raise self._loss(awaited)
        future: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(deadline.remaining())
        except FutureTimeout:
            future.cancel()
            last = self.events()[-1:]
            raise DeadlineExpired(awaited, deadline.seconds, last_seen=f"event {last[0]}" if last else None) from None
        except ExecuteError as error:
            raise QmpRefused(str(error.sent.get("execute")), error.error_class, str(error)) from None
        except (QMPError, EOFError, OSError, CancelledError) as error:
            raise self._loss(awaited) from error
        except BaseException:
            future.cancel()
            raise

    def _loss(self, awaited: str) -> QemuError:
        exit_report = self._lost if self._event_bytes > MAX_EVENTS else self._exit_report()
        return QemuError(f"lost QEMU while waiting for {awaited}" + (f": {exit_report}" if exit_report else ""))

    async def _connect(self, sock: socket.socket) -> None:
        try:
            await self._client.connect(sock)
        except (ConnectError, asyncio.CancelledError):
            self._mark_lost("no greeting")
            raise
        self._note("greeting", qmp=self._client.greeting._asdict() if self._client.greeting else None)
        self._watch = asyncio.create_task(self._watch_connection())

    async def _watch_connection(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        self._mark_lost(await self._hang_up())

    async def _hang_up(self) -> str:
        # The library asserts that it is never called twice, neither concurrently nor afterwards.
        async with self._hanging_up:
            try:
                if self._client.runstate is not Runstate.IDLE:
                    await self._client.disconnect()
            except (QMPError, EOFError, OSError) as error:
                return f"{type(error).__name__} {error}".strip()
        return "hung up"

    async def _disconnect(self) -> None:
        await self._hang_up()
        if self._watch is not None:
            await self._watch
        self._mark_lost("closed")

    async def _execute(self, command: str, arguments: Mapping[str, Any] | None) -> object:
        self._note("command", execute=command, arguments=arguments or {})
        try:
            answer = await self._client.execute(command, arguments)
        except ExecuteError as error:
            self._note("error", execute=command, **{"class": error.error_class}, desc=str(error))
            raise
        self._note("reply", execute=command, **{"return": answer})
        return answer

    def _record(self, message: Message) -> bool:
        """The library calls this for each event as it is read; False keeps the event out of its own queue."""
        stamp: Any = message.get("timestamp") or {}
        data: Any = message.get("data") or {}
        moment = stamp.get("seconds", 0) + stamp.get("microseconds", 0) / 1e6
        with self._changed:
            if self._event_bytes > MAX_EVENTS:
                return False
            event = QmpEvent(len(self._events) + 1, time.monotonic(), moment, str(message["event"]), data)
            self._events.append(event)
            self._event_bytes += self._note(
                "event", seq=event.seq, qemu=event.timestamp, event=event.name, data=event.data
            )
            if self._event_bytes > MAX_EVENTS:
                self._mark_lost(f"it sent more than {format_size(MAX_EVENTS)} of events")
            self._changed.notify_all()
        return False

    def _mark_lost(self, reason: str) -> None:
        with self._changed:
            if self._lost is None:
                self._lost = reason
                self._note("lost", reason=reason)
            self._changed.notify_all()

    def _note(self, kind: str, **content: Any) -> int:
        """Write one line of the log; returns its length."""
        record = {"wallclock": time.time(), "monotonic": time.monotonic(), "kind": kind, **content}
        return self._log.write(json.dumps(record, default=str) + "\n")


class _Lost(Exception):
    """Raised to leave the condition's lock: composing the error may take a moment."""
