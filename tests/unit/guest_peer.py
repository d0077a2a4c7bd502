# SPDX-License-Identifier: GPL-2.0-or-later
"""Stand-ins for a guest: a real SSH server that runs commands on this machine, and a shell with canned answers."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence

import paramiko

from harness.deadline import Deadline
from harness.guest.identity import Identity
from harness.guest.ssh import OUTPUT_LIMIT, Command, CommandResult

_GONE = (OSError, EOFError, ValueError, paramiko.SSHException)


class PlainShell:
    """A shell without an agent, which runs commands one after another."""

    def run(self, command: str, *, stdin: bytes = b"", deadline: Deadline, limit: int = OUTPUT_LIMIT) -> CommandResult:
        raise NotImplementedError

    def run_all(
        self, commands: Sequence[Command], *, deadline: Deadline, answered: Callable[[], None] = lambda: None
    ) -> tuple[CommandResult, ...]:
        done = []
        for command, stdin in commands:
            done.append(self.run(command, stdin=stdin, deadline=deadline))
            answered()
        return tuple(done)


class CannedShell(PlainShell):
    """Returns the next of ``answers`` for each command, and records the commands."""

    def __init__(self, *answers: CommandResult) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, bytes]] = []

    def run(self, command: str, *, stdin: bytes = b"", deadline: Deadline, limit: int = OUTPUT_LIMIT) -> CommandResult:
        self.asked.append((command, stdin))
        return self.answers.pop(0)


def said(text: str, status: int = 0, stderr: str = "") -> CommandResult:
    """A command that printed ``text``."""
    return CommandResult(status, text.encode(), stderr.encode())


class SshPeer(paramiko.ServerInterface):
    """An SSH server on a loopback port; a context manager. It accepts the client key of ``identity``."""

    def __init__(self, identity: Identity) -> None:
        self.host_key = paramiko.Ed25519Key(file_obj=io.StringIO(identity.host.openssh))
        self.client = base64.b64decode(identity.client.public.split()[1])
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.transports: list[paramiko.Transport] = []
        self.children: list[subprocess.Popen[bytes]] = []
        #: called once each command runs
        self.on_command: Callable[[], None] = lambda: None
        self.threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> SshPeer:
        self.threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.hang_up()
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        for thread in self.threads:
            thread.join(60)

    def hang_up(self) -> None:
        """Break all connections."""
        for transport in self.transports:
            transport.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(sock)
            transport.add_server_key(self.host_key)
            self.transports.append(transport)
            try:
                transport.start_server(event=threading.Event(), server=self)
            except (paramiko.SSHException, EOFError):
                transport.close()

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.AUTH_SUCCESSFUL if key.asbytes() == self.client else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        thread = threading.Thread(target=self._execute, args=(channel, command.decode()))
        self.threads.append(thread)
        thread.start()
        return True

    def _execute(self, channel: paramiko.Channel, command: str) -> None:
        pipe = subprocess.PIPE
        argv = ["sh", "-c", command]
        with (
            contextlib.suppress(*_GONE),
            subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True) as child,
        ):
            self.children.append(child)
            self.on_command()
            assert child.stdout is not None and child.stderr is not None
            workers = [
                threading.Thread(target=self._pump, args=(child.stdout, channel.sendall)),
                threading.Thread(target=self._pump, args=(child.stderr, channel.sendall_stderr)),
            ]
            feeder = threading.Thread(target=self._feed, args=(channel, child))
            for worker in [*workers, feeder]:
                worker.start()
            for worker in workers:
                worker.join()
            status = child.wait()
            # Like dropbear, send the end of the output first, and no status if the command was killed by a signal.
            channel.shutdown_write()
            if status >= 0:
                channel.send_exit_status(status)
            channel.close()
            feeder.join()

    def _pump(self, stream: io.BufferedReader, send: object) -> None:
        assert callable(send)
        with contextlib.suppress(*_GONE):
            while data := stream.read1(1 << 15):
                send(data)

    def _feed(self, channel: paramiko.Channel, child: subprocess.Popen[bytes]) -> None:
        assert child.stdin is not None
        with contextlib.suppress(*_GONE):
            while data := channel.recv(1 << 15):
                child.stdin.write(data)
                child.stdin.flush()
            child.stdin.close()
