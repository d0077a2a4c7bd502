# SPDX-License-Identifier: GPL-2.0-or-later
"""GuestShell with a real SSH server that runs commands on this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import paramiko
import pytest
from guest_peer import SshPeer

from harness.deadline import Deadline
from harness.errors import DeadlineExpired, GuestError
from harness.guest.console import Console
from harness.guest.identity import Identity, KeyPair
from harness.guest.ssh import GuestShell

#: SSH_MSG_CHANNEL_EOF and SSH_MSG_CHANNEL_CLOSE (RFC 4254, 9)
EOF, CLOSE = 96, 97


@pytest.fixture(scope="module")
def identity() -> Identity:
    return Identity.fresh()


@pytest.fixture
def peer(identity: Identity) -> Iterator[SshPeer]:
    with SshPeer(identity) as peer:
        yield peer


@pytest.fixture
def shell(identity: Identity, peer: SshPeer) -> Iterator[GuestShell]:
    with GuestShell.connect(peer.port, identity, Deadline(60)) as shell:
        yield shell


def test_status_and_both_streams(shell: GuestShell) -> None:
    done = shell.run("printf 'a\\0b'; echo oops >&2; exit 3", deadline=Deadline(60))
    assert (done.status, done.stdout, done.stderr) == (3, b"a\0b", b"oops\n")


def test_stdin_reaches_the_command_while_it_prints(shell: GuestShell) -> None:
    data = bytes(range(256)) * 40_000
    done = shell.run("cat; cat >&2", stdin=data, deadline=Deadline(60))
    assert done.stdout == data and done.status == 0


def test_no_stdin_is_an_empty_one(shell: GuestShell) -> None:
    assert shell.run("cat; echo end", deadline=Deadline(60)).stdout == b"end\n"


def test_no_end_of_input_follows_the_close_of_a_command_that_is_already_over(
    shell: GuestShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    # dropbear ends the whole connection for an EOF of a channel that it no longer knows.
    sent: list[int] = []
    closed = threading.Event()
    send = paramiko.Transport._send_user_message

    def watched(transport: paramiko.Transport, message: paramiko.Message) -> None:
        kind = message.asbytes()[0]
        if transport is shell._transport:
            if kind == EOF:
                # Until our answer to the server's CLOSE has been sent, unless that has to wait for this.
                closed.wait(2)
            sent.append(kind)
        send(transport, message)
        if kind == CLOSE and transport is shell._transport:
            closed.set()

    monkeypatch.setattr(paramiko.Transport, "_send_user_message", watched)
    shell.run("true", deadline=Deadline(60))
    assert sent.index(EOF) < sent.index(CLOSE)


def test_commands_run_side_by_side(shell: GuestShell) -> None:
    answers: list[bytes] = []

    def ask(word: str) -> None:
        answers.append(shell.run(f"echo {word}", deadline=Deadline(60)).stdout)

    threads = [threading.Thread(target=ask, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [b"0\n", b"1\n", b"2\n", b"3\n"]


def test_must_raises_with_what_was_said(shell: GuestShell) -> None:
    assert shell.must("echo yes", deadline=Deadline(60)) == b"yes\n"
    with pytest.raises(GuestError, match=r"'echo no >&2; exit 9' failed in the guest \(status 9\): no"):
        shell.must("echo no >&2; exit 9", deadline=Deadline(60))


def test_too_much_output(shell: GuestShell) -> None:
    with pytest.raises(GuestError, match="printed more than 1000 bytes"):
        shell.run("while :; do echo xxxxxxxxxxxxxxxx; done", deadline=Deadline(60), limit=1000)


def test_deadline(shell: GuestShell) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExpired, match=r"waiting for 'sleep 300' in the guest"):
        shell.run("sleep 300", deadline=Deadline(3))
    assert time.monotonic() - started < 100
    assert shell.run("echo still", deadline=Deadline(60)).stdout == b"still\n"


def test_lost_connection(shell: GuestShell, peer: SshPeer) -> None:
    peer.on_command = peer.hang_up
    with pytest.raises(GuestError, match="lost the guest while it ran 'sleep 30'"):
        shell.run("sleep 30", deadline=Deadline(60))
    with pytest.raises(GuestError, match=r"cannot run 'true' in the guest: .*the guest's SSH server has hung up"):
        shell.run("true", deadline=Deadline(60))


def test_who_hung_up_and_answers_again_is_asked_why(
    shell: GuestShell, peer: SshPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.guest.ssh._SERVER_LOG", "echo before; echo 'Exit (root): out of something'")
    peer.hang_up()
    answer = r"it answers again, and its SSH server's log ends with: before / Exit \(root\): out of something$"
    with pytest.raises(GuestError, match=answer):
        shell.run("true", deadline=Deadline(60))


def test_who_hung_up_for_good_is_not_waited_for(shell: GuestShell, peer: SshPeer) -> None:
    started = time.monotonic()
    peer.listener.shutdown(socket.SHUT_RDWR)
    peer.hang_up()
    with pytest.raises(GuestError, match="it no longer answers: cannot connect to the guest's SSH port"):
        shell.run("true", deadline=Deadline(300))
    assert time.monotonic() - started < 100


def test_a_connection_that_breaks_while_the_channel_is_closed(
    shell: GuestShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = paramiko.Channel.close

    def close(channel: paramiko.Channel) -> None:
        closed(channel)
        if channel.transport is shell._transport:
            raise EOFError

    monkeypatch.setattr(paramiko.Channel, "close", close)
    assert shell.run("echo done", deadline=Deadline(60)).stdout == b"done\n"
    with pytest.raises(DeadlineExpired):
        shell.run("sleep 30", deadline=Deadline(0.1))


def test_another_host_key_is_refused(identity: Identity) -> None:
    impostor = Identity(client=identity.client, host=KeyPair.fresh())
    with (
        SshPeer(impostor) as peer,
        pytest.raises(GuestError, match="cannot log into the guest: Bad host key from server"),
    ):
        GuestShell.connect(peer.port, identity, Deadline(60))


def test_another_client_key_is_refused(identity: Identity, peer: SshPeer) -> None:
    stranger = Identity(client=KeyPair.fresh(), host=identity.host)
    with pytest.raises(GuestError, match="cannot log into the guest: Authentication failed"):
        GuestShell.connect(peer.port, stranger, Deadline(60))


def test_nobody_listens(identity: Identity) -> None:
    # Bound, but not listening: the port is nobody else's.
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        with pytest.raises(GuestError, match=f"cannot connect to the guest's SSH port {port}"):
            GuestShell.connect(port, identity, Deadline(60))


def test_a_mute_server_runs_into_the_deadline(identity: Identity) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises((DeadlineExpired, GuestError)):
        GuestShell.connect(mute.getsockname()[1], identity, Deadline(0.5))


def test_waits_for_the_console_first(identity: Identity, peer: SshPeer) -> None:
    here, there = socket.socketpair()
    with here, there, Console(here, lambda line: None) as console:
        timer = threading.Timer(0.2, there.sendall, (b"[    1.0] memhp: ready\r\n",))
        timer.start()
        with GuestShell.connect(peer.port, identity, Deadline(60), console) as shell:
            assert shell.run("echo hello", deadline=Deadline(60)).stdout == b"hello\n"


def test_a_guest_that_wakes_is_logged_into_meanwhile(identity: Identity, peer: SshPeer) -> None:
    here, there = socket.socketpair()
    with here, there, Console(here, lambda line: None) as console:
        timer = threading.Timer(0.3, there.sendall, (b"[    1.0] memhp: ready\r\n",))
        timer.start()
        with GuestShell.connect(peer.port, identity, Deadline(60), console, waking=True) as shell:
            assert console.lines()[-1].text.endswith("memhp: ready")
            assert shell.run("echo hello", deadline=Deadline(60)).stdout == b"hello\n"


@pytest.mark.parametrize("answers", [True, False], ids=["logged in", "mute"])
def test_a_guest_that_does_not_wake_is_given_up_at_once(answers: bool, identity: Identity, peer: SshPeer) -> None:
    here, there = socket.socketpair()
    with (
        here,
        there,
        socket.create_server(("127.0.0.1", 0)) as mute,
        Console(here, lambda line: None) as console,
    ):
        port = peer.port if answers else mute.getsockname()[1]
        timer = threading.Timer(0.3, there.sendall, (b"[    1.0] memhp: failed: sleep: no seed\r\n",))
        timer.start()
        with pytest.raises(GuestError, match="gave up: sleep: no seed"):
            GuestShell.connect(port, identity, Deadline(60), console, waking=True)


def test_a_panic_ends_a_command_at_once(identity: Identity, peer: SshPeer) -> None:
    here, there = socket.socketpair()
    with here, there, Console(here, lambda line: None) as console:
        there.sendall(b"memhp: ready\n")
        with GuestShell.connect(peer.port, identity, Deadline(60), console) as shell:
            peer.on_command = lambda: there.sendall(b"Kernel panic - not syncing: Fatal exception\n")
            started = time.monotonic()
            with pytest.raises(GuestError, match=r"the guest panicked: Kernel panic .*\(while it ran 'sleep 300'\)"):
                shell.run("sleep 300", deadline=Deadline(300))
            assert time.monotonic() - started < 100
