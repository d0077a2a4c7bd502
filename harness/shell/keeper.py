# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps the guest of a failed run alive for ``memhp attach``.

``memhp run --keep`` forks at its start. The child, in a new session, does the run; the parent waits for its verdict,
forwards signals and exits with its status. When a guest fails, the child reports the status to the parent and stays:
it is the guest's keeper and still the parent of QEMU, so that neither can outlive the other. It ends when an attached
prompt ends (other than by ``detach``) or after the time of ``--keep-for``. A private folder lists the kept guests: a
socket, which only the same user may use, and a file that names the process and the bundle.

``memhp attach`` passes its own terminal to the keeper (SCM_RIGHTS), which runs the prompt on it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.bounded import MAX_SMALL, load_json, read_file, write_file
from harness.config.guest import GuestSpec
from harness.deadline import Deadline
from harness.errors import InfraError, UsageError
from harness.report.terminal_report import make_console
from harness.report.text import clean, pasted, tell
from harness.scenarios.session import Session
from harness.scratch import make_private
from harness.shell.commands import explore
from harness.shell.explorer import Explorer
from harness.shell.prompt import at_a_terminal, given_lines, state_dir, typed_lines

_PR_SET_PDEATHSIG = 1
_REQUEST_LIMIT = 1 << 16
#: environment variables of the terminal, not of the keeper
_TERMINAL = ("TERM", "COLORTERM", "NO_COLOR")
_INTERRUPT = b"i"


@dataclass(frozen=True, slots=True)
class Kept:
    """One kept guest: its keeper's process, its bundle, and the socket's ``path``."""

    pid: int
    bundle: str
    path: Path


def kept_dir() -> Path:
    """The private folder that lists the kept guests."""
    return state_dir() / "kept"


class ParentRelease:
    """Releases the waiting parent; called once, by a child that becomes a keeper."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self.status: int | None = None

    def __call__(self, status: int) -> None:
        """Have the parent exit with ``status``; this process continues without a parent and without output."""
        self.status = status
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        _die_with_parent(0)
        _connect(*[os.open(os.devnull, os.O_RDWR)] * 3)
        os.write(self._pipe, bytes([status]))
        os.close(self._pipe)


def split_off(work: Callable[[ParentRelease], int]) -> int:
    """Do ``work`` in a child and return its status: as soon as the child releases us, or when it ends.

    Ctrl-C and SIGTERM are forwarded to the child, which then ends as usual.
    """
    ours, theirs = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(ours)
        os.setsid()
        _die_with_parent(signal.SIGTERM)
        # Only our parent and an attached prompt send it: a run that was started in the background must not ignore it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if os.getppid() != parent:
            raise InfraError("the run's parent process died before the guest was kept")
        return work(ParentRelease(theirs))
    os.close(theirs)
    try:
        return _await(child, ours)
    finally:
        os.close(ours)


def _await(child: int, pipe: int) -> int:
    while True:
        try:
            status_byte = os.read(pipe, 1)
            if status_byte:
                return status_byte[0]
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        except KeyboardInterrupt:
            _signal(child, signal.SIGINT)
        except BaseException:
            # SIGTERM or SIGHUP: the child's exit status is still awaited.
            _signal(child, signal.SIGTERM)


def _signal(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)


def _die_with_parent(number: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise InfraError(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")


def _connect(*fds: int) -> None:
    """Make ``fds`` our standard streams, and close them."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    for fd in set(fds):
        os.close(fd)


@contextlib.contextmanager
def _listed(bundle: Path) -> Iterator[socket.socket]:
    """A listening socket, listed while the block lasts."""
    folder = kept_dir()
    make_private(folder)
    path = folder / f"{os.getpid()}.sock"
    entry = path.with_suffix(".json")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        # A killed keeper may have had our process id.
        path.unlink(missing_ok=True)
        with _short(path) as name:
            listener.bind(name)
        stack.callback(path.unlink, missing_ok=True)
        path.chmod(0o600)
        listener.listen(1)
        stack.callback(entry.unlink, missing_ok=True)
        write_file(entry, json.dumps({"pid": os.getpid(), "bundle": str(bundle.absolute())}) + "\n")
        yield listener


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A short name for a socket whose path may exceed the limit of a socket address."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def serve(session: Session, spec: GuestSpec, seconds: float) -> None:
    """Keep the guest until an attached prompt ends, or until ``seconds`` have passed and no prompt is attached."""
    limit = Deadline(seconds)
    with _listed(session.recorder.directory) as listener:
        explorer = Explorer(session, spec, make_console(sys.stdout), interactive=False, record="attached.yaml")
        explorer.story.remark("the steps before the prompt was attached, see scenario.yaml")
        with explorer.resources:
            _accept_prompts(listener, explorer, limit)


def _accept_prompts(listener: socket.socket, explorer: Explorer, limit: Deadline) -> None:
    while not limit.expired:
        listener.settimeout(max(0.001, limit.remaining()))
        try:
            peer, _ = listener.accept()
        except TimeoutError:
            return
        with peer:
            if _is_ours(peer) and not _attached(peer, explorer):
                return


def _is_ours(peer: socket.socket) -> bool:
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return bool(uid == os.geteuid())


def _attached(peer: socket.socket, explorer: Explorer) -> bool:
    """Run one prompt on the terminal that ``peer`` passes; True if the guest is to be kept afterwards."""
    peer.settimeout(10.0)
    try:
        data, fds, _, _ = socket.recv_fds(peer, _REQUEST_LIMIT, 3)
        request = load_json(data)
    except (OSError, ValueError):
        return True
    if len(fds) != 3:
        for fd in fds:
            os.close(fd)
        return True
    peer.settimeout(None)
    _connect(*fds)
    for name in _TERMINAL:
        os.environ.pop(name, None)
    os.environ.update({name: str(value) for name, value in request["environment"].items() if name in _TERMINAL})
    done = threading.Event()
    threading.Thread(target=_listen, args=(peer, done), daemon=True).start()
    try:
        status, keep = _prompt(explorer, request)
        done.set()
        with contextlib.suppress(OSError):
            peer.sendall(bytes([status, keep]))
        return keep
    finally:
        done.set()
        sys.stdout.flush()
        _connect(*[os.open(os.devnull, os.O_RDWR)] * 3)


def _listen(peer: socket.socket, done: threading.Event) -> None:
    """Turn a byte (Ctrl-C at the peer) into SIGINT, and the end of the peer into SIGTERM: nohup ignores SIGHUP."""
    while True:
        try:
            received = peer.recv(1)
        except OSError:
            received = b""
        if done.is_set():
            return
        if not received:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        os.kill(os.getpid(), signal.SIGINT)


def _prompt(explorer: Explorer, request: dict[str, Any]) -> tuple[int, bool]:
    texts = [str(text) for text in request["lines"]]
    explorer.interactive = not texts and at_a_terminal()
    explorer.console = make_console(sys.stdout, str(request["color"]))
    if explorer.interactive:
        explorer.say(f"attached to the guest of {clean(explorer.session.recorder.directory)}")
        explorer.say("quit and Ctrl-D end the guest, detach leaves it; help shows the rest")
        return explore(explorer, typed_lines(explorer, "quit"))
    return explore(explorer, given_lines(texts, None if texts else sys.stdin))


def kept_guests() -> list[Kept]:
    """Every kept guest, the newest last; removes entries of killed keepers."""
    found: list[tuple[float, Kept]] = []
    for entry in kept_dir().glob("*.json"):
        path = entry.with_suffix(".sock")
        try:
            with socket.socket(socket.AF_UNIX) as probe, _short(path) as name:
                # A keeper with an open prompt does not accept; do not wait for it.
                probe.setblocking(False)
                probe.connect(name)
            listed = load_json(read_file(entry, MAX_SMALL))
            found.append((entry.stat().st_mtime, Kept(int(listed["pid"]), str(listed["bundle"]), path)))
        except (ConnectionRefusedError, FileNotFoundError):
            # Nobody listens.
            for stale in (entry, path):
                stale.unlink(missing_ok=True)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return [kept for _, kept in sorted(found, key=lambda pair: pair[0])]


def find_kept(bundle: str | None) -> Kept:
    """The kept guest of ``bundle``, or the newest one if None. Raises UsageError."""
    guests = kept_guests()
    if bundle is None:
        if not guests:
            raise UsageError("no guest is kept", hint="memhp run --keep keeps a failing guest")
        return guests[-1]
    wanted = str(Path(bundle).absolute())
    for kept in guests:
        if kept.bundle == wanted:
            return kept
    hint = "kept: " + (", ".join(kept.bundle for kept in guests) or "none")
    raise UsageError(f"no guest of {bundle} is kept", hint=hint)


def attach_to(kept: Kept, lines: Sequence[str], color: str) -> int:
    """Pass our standard streams to the keeper and wait for the end of its prompt; returns the exit status."""
    environment = {name: os.environ[name] for name in _TERMINAL if name in os.environ}
    request = json.dumps({"lines": list(lines), "color": color, "environment": environment}).encode()
    with socket.socket(socket.AF_UNIX) as peer:
        try:
            with _short(kept.path) as name:
                peer.connect(name)
            socket.send_fds(peer, [request], [0, 1, 2])
        except OSError as error:
            raise InfraError(f"the keeper {kept.pid} does not answer: {error.strerror}") from None
        while True:
            try:
                answer = peer.recv(2)
                break
            except KeyboardInterrupt:
                peer.sendall(_INTERRUPT)
    if len(answer) != 2:
        raise InfraError(f"the keeper of the guest (process {kept.pid}) ended", hint=f"see {kept.bundle}")
    if answer[1]:
        tell("the guest is still kept")
    else:
        _await_end(kept)
    return answer[0]


def _await_end(kept: Kept) -> None:
    """Wait until the keeper has ended the guest."""
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(kept.pid)
        try:
            import select

            select.select([fd], [], [], 20.0)
        finally:
            os.close(fd)


def keeping_note(bundle: Path, seconds: float) -> str:
    """The message about a guest that is kept."""
    until = time.strftime("%H:%M:%S", time.localtime(time.time() + seconds))
    return f"the guest is kept until {until} by process {os.getpid()}: memhp attach {pasted(bundle)}"
