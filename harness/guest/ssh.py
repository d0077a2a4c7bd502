# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands in the guest, over one persistent SSH connection."""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import os
import select
import selectors
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import paramiko

from harness.deadline import Deadline
from harness.errors import DeadlineExpired, GuestError, MemhpError
from harness.guest.agent import START, Agent, AgentEnded, Request, agent_request
from harness.guest.console import Console
from harness.guest.identity import Identity
from harness.guest.reach import out_of_reach
from harness.units import MIB

#: bytes that one command may print, stdout and stderr together
OUTPUT_LIMIT = 64 * MIB

# The cheapest in an emulated guest among those that dropbear and paramiko share (aes128-ctr, aes256-ctr; one MAC):
# 5 to 10 MB/s, 10 ms per command.
_CIPHERS = ("aes128-ctr", "aes256-ctr")
_MACS = ("hmac-sha2-256",)
_KEX = ("curve25519-sha256@libssh.org",)
_WINDOW = 8 * MIB
_CHUNK = 1 << 16

_SERVER_LOG = "tail -n 3 /run/dropbear.log"
_SERVER_LOG_SECONDS = 10.0


# An error that ends a connection is raised anyway; without a handler, logging would print paramiko's traceback too.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


#: a command of the guest's sh, and its stdin
Command = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class CommandResult:
    """A finished command: exit ``status`` (-1 if a signal ended it) and its output."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """stdout as text."""
        return self.stdout.decode(errors="replace")

    def said(self, limit: int = 500) -> str:
        """The end of stderr."""
        return self.stderr.decode(errors="replace").strip()[-limit:]

    def error(self, what: str, *, limit: int = 500, hint: str | None = None) -> GuestError:
        """The error that ``what`` went wrong, with the status and the end of stderr."""
        return GuestError(f"{what} (status {self.status}): {self.said(limit)}", hint=hint)


class Shell(Protocol):
    """Runs commands in a guest."""

    def run(self, command: str, *, stdin: bytes = b"", deadline: Deadline, limit: int = OUTPUT_LIMIT) -> CommandResult:
        """Run ``command`` with the guest's sh, as ``GuestShell.run`` does."""

    def run_all(
        self, commands: Sequence[Command], *, deadline: Deadline, answered: Callable[[], None] = lambda: None
    ) -> tuple[CommandResult, ...]:
        """Run commands in one message, as ``GuestShell.run_all`` does."""


class GuestShell:
    """One SSH connection as root. Get one with ``connect``; a context manager. Threads may share it.

    If the guest root has the agent, it does the work of the guest-scripts: it is started with the first such command
    and stays (``harness.guest.agent``).
    """

    def __init__(
        self, transport: paramiko.Transport, console: Console | None, identity: Identity, port: int | None = None
    ) -> None:
        """Use ``connect`` instead. ``port``, unless None, is where to ask a guest that hung up for the reason."""
        self.identity = identity
        self._transport = transport
        self._console = console
        self._port = port
        self._cause: Exception | None = None
        self._agent: Agent | None = None
        self._has_agent = True
        self._agent_lock = threading.Lock()

    @classmethod
    def connect(
        cls, port: int, identity: Identity, deadline: Deadline, console: Console | None = None, *, waking: bool = False
    ) -> GuestShell:
        """Wait until ``console`` shows that the guest is ready, then log in on 127.0.0.1:``port``.

        The guest's host key must be that of ``identity``. Without a console the guest must be ready already (it was
        restored from a snapshot). A guest that is ``waking`` accepts connections before it is ready, and keeps them
        waiting. Raises GuestError, DeadlineExpired.
        """
        if console is not None and not waking:
            console.wait_ready(deadline)
        try:
            sock = socket.create_connection(("127.0.0.1", port), timeout=max(0.001, deadline.remaining()))
        except OSError as error:
            raise _loss(console, deadline, f"cannot connect to the guest's SSH port {port}: {error}") from error
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.ExitStack() as undo:
            undo.callback(sock.close)
            try:
                with _hung_up_on_trouble(sock, console):
                    transport = out_of_reach(lambda: _log_in(sock, identity, deadline), sock.close)
            except (paramiko.SSHException, EOFError, OSError) as error:
                sock.close()
                raise _loss(console, deadline, f"cannot log into the guest: {_said(error)}") from error
            undo.callback(transport.close)
            if console is not None and waking:
                console.wait_ready(deadline)
            undo.pop_all()
        return cls(transport, console, identity, port)

    def reconnect(self, port: int, deadline: Deadline) -> None:
        """Log in again, with the same keys, after the guest has rebooted. Raises as ``connect`` does."""
        self.close()
        self._transport = GuestShell.connect(port, self.identity, deadline, self._console)._transport
        self._port, self._cause = port, None
        self._agent, self._has_agent = None, True

    def connect_copy(self, port: int, deadline: Deadline, console: Console) -> GuestShell:
        """Log into a restored copy of the same guest, which has the same keys. Raises GuestError, DeadlineExpired."""
        fresh = GuestShell.connect(port, self.identity, deadline)
        fresh._console = console
        return fresh

    def __enter__(self) -> GuestShell:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._transport.close()

    def run(self, command: str, *, stdin: bytes = b"", deadline: Deadline, limit: int = OUTPUT_LIMIT) -> CommandResult:
        """Run ``command`` with the guest's sh and return its output and exit status.

        When the deadline expires the command is not killed, but its output is ignored. Raises DeadlineExpired, and
        GuestError if it prints more than ``limit`` bytes, the guest panics or the connection breaks.
        """
        return self.run_all([(command, stdin)], deadline=deadline, limit=limit)[0]

    def run_all(
        self,
        commands: Sequence[Command],
        *,
        deadline: Deadline,
        limit: int = OUTPUT_LIMIT,
        answered: Callable[[], None] = lambda: None,
    ) -> tuple[CommandResult, ...]:
        """Run commands one after another, whatever their status; raises as ``run`` does.

        This takes one round trip if the guest's agent does all of them. ``answered`` is called, by another thread, as
        soon as each is over.
        """
        shown = "; ".join(command for command, _ in commands)
        shown = shown if len(shown) <= 80 else shown[:80] + "…"
        trouble = None if self._console is None else self._console.trouble()
        if trouble is not None:
            raise GuestError(f"{trouble.message} (before it ran {shown!r})", hint=trouble.hint)
        requests = [(words, stdin) for command, stdin in commands if (words := agent_request(command)) is not None]
        opened: list[paramiko.Channel] = []

        def execute(command: str, stdin: bytes) -> CommandResult:
            channel = self._open(shown, deadline)
            opened.append(channel)
            try:
                self._execute(channel, command)
                self._feed(channel, stdin)
                done = self._drain(channel, shown, deadline, limit)
            except (paramiko.SSHException, EOFError, OSError) as error:
                raise self._lost(f"lost the guest while it ran {shown!r}: {_said(error)}", deadline) from error
            finally:
                _close(channel)
            answered()
            return done

        def converse() -> tuple[CommandResult, ...]:
            if len(requests) == len(commands):
                done = self._by_agent(requests, shown, deadline, limit, opened, answered)
                if done is not None:
                    return done
            return tuple(execute(command, stdin) for command, stdin in commands)

        def abandon() -> None:
            for channel in opened:
                _close(channel)

        return out_of_reach(converse, abandon)

    def must(self, command: str, *, stdin: bytes = b"", deadline: Deadline, limit: int = OUTPUT_LIMIT) -> bytes:
        """Run ``command`` and return its stdout; raises GuestError if its exit status is not 0, and as ``run`` does."""
        done = self.run(command, stdin=stdin, deadline=deadline, limit=limit)
        if done.status != 0:
            raise done.error(f"{command[:200]!r} failed in the guest", limit=2000)
        return done.stdout

    def open_terminal(self, kind: str, columns: int, lines: int, deadline: Deadline) -> paramiko.Channel:
        """Open a login shell on a new terminal; the caller closes it. Raises GuestError, DeadlineExpired."""

        def start() -> paramiko.Channel:
            channel = self._transport.open_session(timeout=max(0.001, deadline.remaining()))
            channel.settimeout(max(0.001, deadline.remaining()))
            channel.get_pty(kind, columns, lines)
            channel.invoke_shell()
            channel.settimeout(None)
            return channel

        try:
            return out_of_reach(start, self.close)
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self._lost(f"cannot open a terminal in the guest: {_said(error)}", deadline) from error

    def _lost(self, what: str, deadline: Deadline) -> MemhpError:
        # Only paramiko's own thread may know what ended the connection, and get_exception returns it only once.
        self._cause = self._transport.get_exception() or self._cause
        cause = "" if self._cause is None or _said(self._cause) in what else f" ({_said(self._cause)})"
        return _loss(self._console, deadline, what + cause, self._server_log_tail)

    def _server_log_tail(self, deadline: Deadline) -> str:
        """The end of the log of the guest's SSH server, to explain a lost connection, or why it cannot be read."""
        if self._port is None:
            return ""
        try:
            # A port of None: if this connection is lost, no one asks why.
            with GuestShell.connect(self._port, self.identity, deadline.at_most(_SERVER_LOG_SECONDS)) as shell:
                shell._port = None
                said = shell.run(_SERVER_LOG, deadline=deadline.at_most(_SERVER_LOG_SECONDS), limit=MIB).stdout
        except MemhpError as error:
            return f"; it no longer answers: {error.message}"
        lines = " / ".join(said.decode(errors="replace").split("\n")).strip(" /")
        return f"; it answers again, and its SSH server's log ends with: {lines[-2000:] or 'nothing'}"

    def _open(self, shown: str, deadline: Deadline) -> paramiko.Channel:
        left = max(0.001, deadline.remaining())
        try:
            channel = self._transport.open_session(window_size=_WINDOW, timeout=left)
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self._lost(f"cannot run {shown!r} in the guest: {_said(error)}", deadline) from error
        channel.settimeout(left)
        return channel

    def _by_agent(
        self,
        requests: Sequence[Request],
        shown: str,
        deadline: Deadline,
        limit: int,
        opened: list[paramiko.Channel],
        answered: Callable[[], None],
    ) -> tuple[CommandResult, ...] | None:
        """Have the guest's agent run ``requests``; None if there is no agent.

        While it works for another thread, an agent of its own does it, on whatever CPU: neither must wait for the
        other, and one that stayed might have its memory where memory is to be removed.
        """
        resident = self._agent_lock.acquire(blocking=False)
        agent = self._agent if resident else None
        try:
            # An agent that exited while idle (out of memory, say) is simply started again.
            if self._has_agent and (agent is None or agent.ended):
                start = START if resident else f"{START} anywhere"
                agent = self._start_agent(start, shown, deadline, limit, opened)
                self._has_agent = agent is not None
                self._agent = agent if resident else self._agent
            if agent is None:
                return None
            opened.append(agent.channel)
            agent.channel.settimeout(max(0.001, deadline.remaining()))
            with self._closed_after_trouble(agent, shown, deadline, limit):
                answers = agent.ask(requests, limit, self._waiter(agent.channel, shown, deadline), answered)
                return tuple(CommandResult(*answer) for answer in answers)
        finally:
            if resident:
                self._agent_lock.release()
            elif agent is not None:
                _close(agent.channel)

    def _start_agent(
        self, start: str, shown: str, deadline: Deadline, limit: int, opened: list[paramiko.Channel]
    ) -> Agent | None:
        agent = Agent(self._open(shown, deadline))
        opened.append(agent.channel)
        with self._closed_after_trouble(agent, shown, deadline, limit):
            self._execute(agent.channel, start)
            if agent.greet(limit, self._waiter(agent.channel, shown, deadline)):
                return agent
        _close(agent.channel)
        return None

    @contextlib.contextmanager
    def _closed_after_trouble(self, agent: Agent, shown: str, deadline: Deadline, limit: int) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._agent = None if agent is self._agent else self._agent
            _close(agent.channel)
            if isinstance(error, OverflowError):
                raise _too_much(shown, limit) from None
            if isinstance(error, AgentEnded) and not error.cut:
                raise GuestError(f"the guest agent exited while it ran {shown!r}: {error}") from None
            if isinstance(error, AgentEnded):
                raise self._lost(f"lost the guest while it ran {shown!r}", deadline) from None
            if isinstance(error, (paramiko.SSHException, EOFError, OSError)):
                raise self._lost(f"lost the guest while it ran {shown!r}: {_said(error)}", deadline) from error
            raise

    def _waiter(self, channel: paramiko.Channel, shown: str, deadline: Deadline) -> Callable[[], None]:
        poll = self._poll(channel)
        return lambda: self._await(poll, channel, shown, deadline)

    def _execute(self, channel: paramiko.Channel, command: str) -> None:
        # Channel.exec_command waits for the server's reply, which costs a round trip and may never come. This request
        # wants none (RFC 4254, 6.5): the command's output and status say enough.
        request = paramiko.Message()
        request.add_byte(paramiko.common.cMSG_CHANNEL_REQUEST)
        request.add_int(channel.remote_chanid)
        request.add_string("exec")
        request.add_boolean(False)
        request.add_string(command)
        cast(Any, self._transport)._send_user_message(request)

    def _feed(self, channel: paramiko.Channel, stdin: bytes) -> None:
        if not stdin:
            self._end_input(channel)
            return

        # A separate thread: a guest that prints before it has read all of its input would block both sides.
        def feed() -> None:
            with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                channel.sendall(stdin)
                self._end_input(channel)

        threading.Thread(target=feed, name="guest-stdin", daemon=True).start()

    def _end_input(self, channel: paramiko.Channel) -> None:
        # shutdown_write prepares the EOF under the channel's lock and sends it without. If the command is over by then,
        # the answer to the server's CLOSE comes first, and dropbear ends a connection for an EOF that follows it.
        inner, transport = cast(Any, channel), cast(Any, self._transport)
        if not transport.clear_to_send.is_set():
            # New keys are being negotiated by paramiko's thread, which must not have to wait for the lock.
            channel.shutdown_write()
            return
        with inner.lock:
            end = inner._send_eof()
            if end is not None:
                transport._send_user_message(end)

    def _drain(self, channel: paramiko.Channel, shown: str, deadline: Deadline, limit: int) -> CommandResult:
        stdout, stderr = bytearray(), bytearray()
        poll = self._poll(channel)
        while True:
            over = channel.closed or (channel.eof_received and channel.exit_status_ready())
            while channel.recv_ready():
                stdout += channel.recv(_CHUNK)
            while channel.recv_stderr_ready():
                stderr += channel.recv_stderr(_CHUNK)
            if len(stdout) + len(stderr) > limit:
                raise _too_much(shown, limit)
            if over:
                break
            self._await(poll, channel, shown, deadline)
        status = channel.recv_exit_status()
        if status == -1 and not self._transport.is_active():
            raise self._lost(f"lost the guest while it ran {shown!r}", deadline)
        return CommandResult(status, bytes(stdout), bytes(stderr))

    def _poll(self, channel: paramiko.Channel) -> select.poll:
        poll = select.poll()
        poll.register(channel.fileno(), select.POLLIN)
        if self._console is not None:
            poll.register(self._console.trouble_fd(), select.POLLIN)
        return poll

    def _await(self, poll: select.poll, channel: paramiko.Channel, shown: str, deadline: Deadline) -> None:
        if channel.eof_received:
            # All output has arrived; the exit status follows, and only this event announces it.
            if channel.status_event.wait(deadline.remaining()):
                return
        elif ready := dict(poll.poll(deadline.remaining() * 1000)):
            trouble = None if self._console is None else self._console.trouble()
            if trouble is None or channel.fileno() in ready:
                return
            raise GuestError(f"{trouble.message} (while it ran {shown!r})", hint=trouble.hint)
        deadline.check(f"{shown!r} in the guest", None if self._console is None else self._console.tail(1))


@contextlib.contextmanager
def _hung_up_on_trouble(sock: socket.socket, console: Console | None) -> Iterator[None]:
    """Shut ``sock`` down once the guest is in trouble, so that no one waits for an answer on it."""
    if console is None:
        yield
        return
    trouble, over = console.trouble_fd(), os.eventfd(0)

    def watch() -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(trouble, selectors.EVENT_READ, True)
            selector.register(over, selectors.EVENT_READ, False)
            if any(key.data for key, _ in selector.select()):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    watcher = threading.Thread(target=watch, name="guest-trouble")
    watcher.start()
    try:
        yield
    finally:
        os.eventfd_write(over, 1)
        watcher.join()
        os.close(over)


def _too_much(shown: str, limit: int) -> GuestError:
    return GuestError(f"{shown!r} printed more than {limit} bytes in the guest")


def _close(channel: paramiko.Channel) -> None:
    """Close ``channel``; a lost connection is reported elsewhere, now or with the next command."""
    # Channel.close closes the pipe behind fileno() while paramiko's thread may be about to write to it, for output that
    # is still coming: that write would end the whole connection, or go to whatever file has the number by then.
    for buffer in (channel.in_buffer, channel.in_stderr_buffer):
        buffer.set_event(threading.Event())
    with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
        channel.close()


def _log_in(sock: socket.socket, identity: Identity, deadline: Deadline) -> paramiko.Transport:
    transport = paramiko.Transport(sock)
    try:
        options = transport.get_security_options()
        options.ciphers, options.digests, options.kex = _CIPHERS, _MACS, _KEX
        transport.use_compression(False)
        left = max(0.001, deadline.remaining())
        transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = left
        transport.connect(
            hostkey=paramiko.Ed25519Key(data=base64.b64decode(identity.host.public.split()[1])),
            username="root",
            pkey=paramiko.Ed25519Key(file_obj=io.StringIO(identity.client.openssh)),
        )
    except BaseException:
        transport.close()
        raise
    return transport


def _said(error: BaseException) -> str:
    return "the guest's SSH server has hung up" if isinstance(error, EOFError) else str(error) or type(error).__name__


def _loss(
    console: Console | None, deadline: Deadline, what: str, server_log_tail: Callable[[Deadline], str] | None = None
) -> MemhpError:
    if console is not None:
        trouble = console.trouble()
        if trouble is not None:
            return GuestError(f"{trouble.message} ({what})", hint=trouble.hint)
    if deadline.expired:
        # Whether the guest answers a new connection tells a stuck guest from a stuck connection.
        words = "" if server_log_tail is None else server_log_tail(Deadline(_SERVER_LOG_SECONDS))
        return DeadlineExpired("the guest", deadline.seconds, last_seen=what + words)
    last = "" if console is None else f"; the console shows no panic, its last line is {console.tail(1)!r}"
    return GuestError(what + last + ("" if server_log_tail is None else server_log_tail(deadline)))
