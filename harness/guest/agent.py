# SPDX-License-Identifier: GPL-2.0-or-later
"""Client of the guest agent (guest-scripts/agent.c): a resident program that does what the guest-scripts do."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import paramiko

from harness.errors import GuestError
from harness.guest.overlay import SCRIPTS

#: shell command that starts the agent; it prints ``none`` in a guest root that lacks the agent. With the argument
#: ``anywhere`` the agent does not keep to the CPU of its SSH session.
START = "[ -x /usr/bin/agent ] || { echo none; exit; }; exec /usr/bin/agent"

#: commands that the agent understands as they are
_COMMAND = re.compile(
    rf"(?:/{SCRIPTS}/(?=(?:collect|blocks|files|pmem|slot|wait-driver|wait-work) )"
    r"|/usr/bin/(?=load-keeper (?:pause|resume|count|stop) ))([a-z-]+(?: [0-9A-Za-z_.:-]+)+)"
)
_CHUNK = 1 << 16

#: what ``agent_request`` returned, and stdin
Request = tuple[str, bytes]
#: exit status, stdout, stderr
Answer = tuple[int, bytes, bytes]


def agent_request(command: str) -> str | None:
    """The agent's request that replaces the shell command ``command``; None if the agent does not handle it."""
    match = _COMMAND.fullmatch(command)
    return None if match is None else match[1]


class AgentEnded(Exception):
    """The agent has exited; the message is its stderr. ``cut``: the channel was closed without an end of file."""

    def __init__(self, said: str, cut: bool) -> None:
        super().__init__(said)
        self.cut = cut


class Agent:
    """One agent on one channel, for one thread at a time. Do not use it again after an exception of any kind."""

    def __init__(self, channel: paramiko.Channel) -> None:
        """``channel`` must have executed ``START``."""
        self.channel = channel
        self._received = bytearray()
        self._stderr = bytearray()
        self._left = 0
        self._asked = 0

    @property
    def ended(self) -> bool:
        """Whether the agent is known to have exited."""
        return bool(self.channel.closed or self.channel.eof_received)

    def greet(self, limit: int, wait: Callable[[], None]) -> bool:
        """Return whether the guest has an agent. Raises as ``ask`` does."""
        self._left = limit
        greeting = self._line(wait)
        if greeting not in (b"ready", b"none"):
            raise _garbled(greeting)
        return greeting == b"ready"

    def ask(
        self,
        requests: Sequence[Request],
        limit: int,
        wait: Callable[[], None],
        answered: Callable[[], None] = lambda: None,
    ) -> tuple[Answer, ...]:
        """Send ``requests`` in one message and return the answer to each; ``answered`` is called after each.

        ``wait`` returns when the channel may have something new to read, and raises to stop waiting. Raises
        OverflowError after more than ``limit`` bytes, AgentEnded, GuestError for a malformed answer.
        """
        self._left = limit
        first, self._asked = self._asked, self._asked + len(requests)
        numbered = enumerate(requests, first)
        message = b"".join(f"{n} {len(stdin)} {words}\n".encode() + stdin for n, (words, stdin) in numbered)
        self.channel.sendall(message)
        return tuple(self._answer(number, wait, answered) for number in range(first, self._asked))

    def _answer(self, number: int, wait: Callable[[], None], answered: Callable[[], None]) -> Answer:
        streams = {ord("+"): bytearray(), ord("!"): bytearray()}
        while True:
            line = self._line(wait)
            if end := re.fullmatch(rb"=%d ([0-9]{1,3})" % number, line):
                answered()
                return int(end[1]), bytes(streams[ord("+")]), bytes(streams[ord("!")])
            if re.fullmatch(rb"[+!][0-9]{1,12}", line) is None:
                raise _garbled(line)
            size = int(line[1:])
            if size > self._left + len(self._received):
                raise OverflowError
            while len(self._received) < size:
                self._receive(wait)
            streams[line[0]] += self._received[:size]
            del self._received[:size]

    def _line(self, wait: Callable[[], None]) -> bytes:
        looked = 0
        while (end := self._received.find(b"\n", looked)) < 0:
            looked = len(self._received)
            self._receive(wait)
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    def _receive(self, wait: Callable[[], None]) -> None:
        """Receive at least one byte."""
        while True:
            ended = self.ended
            while self.channel.recv_stderr_ready():
                self._stderr += self.channel.recv_stderr(_CHUNK)
                del self._stderr[:-_CHUNK]
            if self.channel.recv_ready():
                data = self.channel.recv(_CHUNK)
                self._left -= len(data)
                if self._left < 0:
                    raise OverflowError
                self._received += data
                return
            if ended:
                said = self._stderr.decode(errors="replace").strip()[-500:]
                raise AgentEnded(said, cut=not self.channel.eof_received)
            wait()


def _garbled(line: bytes) -> GuestError:
    shown = line[:200].decode(errors="replace")
    return GuestError(f"the guest agent sent an invalid line: {shown!r}")
