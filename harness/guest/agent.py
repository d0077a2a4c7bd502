# SPDX-License-Identifier: GPL-2.0-or-later
"""Client of the guest agent (guest-scripts/agent.c): a resident program that replaces some guest-scripts."""

from __future__ import annotations

import re
from collections.abc import Callable

import paramiko

from harness.errors import GuestError
from harness.guest.overlay import SCRIPTS

#: shell command that starts the agent; it prints ``none`` in a guest root that lacks the agent
START = "[ -x /usr/bin/agent ] || { echo none; exit; }; exec /usr/bin/agent"

#: commands that the agent understands as they are
_COMMAND = re.compile(rf"/{SCRIPTS}/((?:collect|blocks|wait-work)(?: [0-9A-Za-z_]+)+)")
_CHUNK = 1 << 16

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
    """One agent on one channel, for one request at a time. Do not use it again after an exception of any kind."""

    def __init__(self, channel: paramiko.Channel) -> None:
        """``channel`` must have executed ``START``."""
        self.channel = channel
        self._received = bytearray()
        self._stderr = bytearray()
        self._left = 0

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

    def ask(self, request: str, stdin: bytes, limit: int, wait: Callable[[], None]) -> Answer:
        """Send ``request`` and return the answer.

        ``wait`` returns when the channel may have something new to read, and raises to stop waiting. Raises
        OverflowError after more than ``limit`` bytes, AgentEnded, GuestError for a malformed answer.
        """
        self._left = limit
        self.channel.sendall(f"{len(stdin)} {request}\n".encode() + stdin)
        streams = {ord("+"): bytearray(), ord("!"): bytearray()}
        while True:
            line = self._line(wait)
            if not line[1:].isdigit():
                raise _garbled(line)
            number = int(line[1:])
            if line[0] == ord("="):
                return number, bytes(streams[ord("+")]), bytes(streams[ord("!")])
            if line[0] not in streams:
                raise _garbled(line)
            if number > self._left + len(self._received):
                raise OverflowError
            while len(self._received) < number:
                self._receive(wait)
            streams[line[0]] += self._received[:number]
            del self._received[:number]

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
