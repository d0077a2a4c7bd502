# SPDX-License-Identifier: GPL-2.0-or-later
"""Child processes that cannot outlive the harness: bounded runs and long-lived children.

Every child dies with the harness, even if the harness gets SIGKILL: it asks the kernel for PR_SET_PDEATHSIG before it
executes its program. That request is tied to the *thread* that forked (prctl(2)), so one daemon thread that lives as
long as the process does all the forking. Each child leads its own session: Ctrl-C on the terminal reaches only the
harness, which then ends its children in order.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import queue
import selectors
import shlex
import shutil
import signal
import subprocess
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from harness.deadline import Deadline
from harness.errors import DeadlineExpired, InfraError

# Helper programs run between fork and the program: preexec_fn is not safe in a process with threads.
_LAUNCHER = """
if [ "$PPID" != "$1" ]; then
	echo "the parent died before its child was ready" >&2
	exit 1
fi
shift
exec "$@"
"""

_CHUNK = 1 << 16
#: bytes that a program may print: the largest output is an unpacked kernel
MAX_OUTPUT = 256 << 20


@dataclass(frozen=True, slots=True)
class Completed:
    """How a program ended: ``returncode`` is its exit status, or minus the number of the signal that killed it."""

    returncode: int
    stdout: bytes
    stderr: bytes


def describe_status(returncode: int) -> str:
    """Say how a program ended: ``exited with status 3``, ``was killed by SIGKILL``."""
    if returncode >= 0:
        return f"exited with status {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"


def tail(data: bytes, *, lines: int = 20, limit: int = 4000) -> str:
    """The last ``lines`` lines of ``data``, at most ``limit`` characters, fit for a terminal.

    Control characters other than newline and tab are shown as ``\\xNN``, so that hostile output cannot steer one.
    """
    text = "\n".join(data[-16 * limit :].decode("utf-8", "replace").splitlines()[-lines:])
    shown = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
    return shown if len(shown) <= limit else "…" + shown[-limit:]


def tail_file(path: Path, *, lines: int = 20, limit: int = 4000) -> str:
    """``tail`` of a file; a file that cannot be read gives an empty text."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 16 * limit))
            return tail(file.read(), lines=lines, limit=limit)
    except OSError:
        return ""


class _Forker:
    """The one thread that forks. Daemon, so that it never keeps the harness alive."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._jobs: queue.SimpleQueue[tuple[Callable[[], subprocess.Popen[bytes]], Future[subprocess.Popen[bytes]]]]
        self._jobs = queue.SimpleQueue()
        threading.Thread(target=self._loop, name="memhp-forker", daemon=True).start()

    def _loop(self) -> None:
        while True:
            job, future = self._jobs.get()
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
            del job, future

    def start(self, job: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        future: Future[subprocess.Popen[bytes]] = Future()
        self._jobs.put((job, future))
        try:
            return future.result()
        except BaseException:
            # Ctrl-C while the thread was forking: no other code will ever see that child.
            future.add_done_callback(_discard)
            raise


def _discard(future: Future[subprocess.Popen[bytes]]) -> None:
    if future.exception() is None:
        popen = future.result()
        popen.kill()
        popen.wait()
        _close_pipes(popen)


def _close_pipes(popen: subprocess.Popen[bytes]) -> None:
    for pipe in (popen.stdin, popen.stdout, popen.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


_forker_lock = threading.Lock()
_forker: _Forker | None = None


def _fork(
    argv: Sequence[str], *, env: Mapping[str, str] | None, cwd: Path | str | None = None, **streams: Any
) -> subprocess.Popen[bytes]:
    global _forker
    with _forker_lock:
        # A forked copy of this process has this object, but not its thread.
        if _forker is None or _forker.pid != os.getpid():
            _forker = _Forker()
        forker = _forker
    setpriv = shutil.which("setpriv") or shutil.which("setpriv", path=os.defpath)
    if setpriv is None:
        raise InfraError("cannot run anything: no such program: setpriv", hint="install util-linux")
    program = shutil.which(argv[0], path=None if env is None else env.get("PATH", os.defpath))
    if program is None:
        raise InfraError(f"cannot run {shlex.join(argv)}: no such program: {argv[0]}", hint=f"install {argv[0]}")
    if cwd is not None and not Path(cwd).is_dir():
        raise InfraError(f"cannot run {shlex.join(argv)}: no such directory: {cwd}")
    if env is None:
        # Messages that are read here or quoted in ours are in one language. Of "C.UTF-8", gettext honours LANGUAGE.
        env = {name: value for name, value in os.environ.items() if name != "LANGUAGE"} | {"LC_ALL": "C.UTF-8"}
    launcher = [setpriv, "--pdeathsig", "KILL", "/bin/sh", "-c", _LAUNCHER, "memhp", str(os.getpid())]
    wrapped = [*launcher, os.path.abspath(program), *argv[1:]]
    try:
        return forker.start(lambda: subprocess.Popen(wrapped, env=env, cwd=cwd, start_new_session=True, **streams))
    except OSError as error:
        raise InfraError(f"cannot run {shlex.join(argv)}: {error.strerror}") from error


class Group:
    """Children started in a thread's ``with group:``, which another thread may end all at once."""

    def __init__(self) -> None:
        self._children: weakref.WeakSet[Child] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._over = False
        self._tokens: dict[int, contextvars.Token[Group | None]] = {}

    def __enter__(self) -> Group:
        self._tokens[threading.get_ident()] = _group.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _group.reset(self._tokens.pop(threading.get_ident()))

    def kill(self) -> None:
        """Kill every child of the group, and future ones as they start; threads that wait for one are woken."""
        with self._lock:
            self._over = True
            children = list(self._children)
        for child in children:
            child.kill()

    def add(self, child: Child) -> None:
        """Add ``child`` to the group."""
        with self._lock:
            self._children.add(child)
            over = self._over
        if over:
            child.kill()


_group: contextvars.ContextVar[Group | None] = contextvars.ContextVar("memhp-children", default=None)


class Child:
    """A long-lived child process; a context manager that always leaves with the child dead and reaped."""

    def __init__(self, argv: Sequence[str], popen: subprocess.Popen[bytes]) -> None:
        self.argv = tuple(argv)
        self._popen = popen
        self._lock = threading.Lock()
        self._pidfd = -1
        try:
            self._pidfd = os.pidfd_open(popen.pid)
        except BaseException:
            self.reap()
            raise
        group = _group.get()
        if group is not None:
            group.add(self)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.reap()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """As in Completed; None until ``poll`` or another method has seen the child end."""
        return self._popen.returncode

    def fileno(self) -> int:
        """The child's pidfd: readable once the child has ended; valid until ``reap``."""
        return self._pidfd

    def poll(self) -> int | None:
        """The return code if the child has ended, else None; never blocks."""
        with self._lock:
            return self._popen.poll()

    def wait(self, deadline: Deadline) -> int:
        """Wait for the child's end and return its return code; raises DeadlineExpired."""
        if self._popen.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._pidfd, selectors.EVENT_READ)
                if not selector.select(deadline.remaining()):
                    raise DeadlineExpired(f"the end of {shlex.join(self.argv)}", deadline.seconds)
        with self._lock:
            return self._popen.wait()

    def terminate(self) -> None:
        """Send SIGTERM; no effect if the child has ended."""
        with self._lock:
            if self._popen.returncode is None:
                self._popen.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the child and its whole process group; no effect if the child has ended."""
        with self._lock:
            if self._popen.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._popen.pid, signal.SIGKILL)

    def reap(self) -> int:
        """Kill the child if it is alive, reap it, release everything; return the return code. May be called again."""
        self.kill()
        with self._lock:
            code = self._popen.wait()
            _close_pipes(self._popen)
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1
        return code


def spawn(
    argv: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    stdout: Path,
    stderr: Path,
    env: Mapping[str, str] | None = None,
) -> Child:
    """Start ``argv``, output appended to two files, input empty; raises InfraError if there is no such program."""
    with stdout.open("ab") as out, stderr.open("ab") as err:
        popen = _fork(argv, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, pass_fds=tuple(pass_fds))
    return Child(argv, popen)


def run(
    argv: Sequence[str],
    *,
    deadline: Deadline,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    log: Path | None = None,
    check: bool = True,
    on_line: Callable[[str], None] | None = None,
) -> Completed:
    """Run ``argv`` to its end and return its status and output.

    ``log`` gets the command line and both streams appended as they come; ``on_line`` gets each line of stdout, without
    its newline, as it comes. However this call ends, the child is dead and reaped. Raises InfraError (argv, status or
    signal, tail of stderr) if there is no such program or, with ``check``, if it fails; DeadlineExpired (argv, last
    line seen) if it takes too long, InfraError for more than MAX_OUTPUT.
    """
    with contextlib.ExitStack() as stack:
        sink = None if log is None else stack.enter_context(log.open("ab", buffering=0))
        if sink is not None:
            sink.write(f"$ {shlex.join(argv)}\n".encode())
        pipe, given = subprocess.PIPE, subprocess.DEVNULL if stdin is None else subprocess.PIPE
        popen = _fork(argv, env=env, cwd=cwd, stdin=given, stdout=pipe, stderr=pipe)
        child = stack.enter_context(Child(argv, popen))
        stdout, stderr = _converse(child, popen, deadline, stdin or b"", sink, on_line)
        code = child.wait(deadline)
    if check and code != 0:
        said = tail(stderr) or tail(stdout)
        raise InfraError(f"{shlex.join(argv)} {describe_status(code)}" + (f":\n{said}" if said else ""))
    return Completed(code, stdout, stderr)


def _converse(
    child: Child,
    popen: subprocess.Popen[bytes],
    deadline: Deadline,
    stdin: bytes,
    log: IO[bytes] | None,
    on_line: Callable[[str], None] | None,
) -> tuple[bytes, bytes]:
    """Feed and drain the child's pipes until both outputs are closed."""
    assert popen.stdout is not None and popen.stderr is not None
    seen = {popen.stdout: bytearray(), popen.stderr: bytearray()}
    rest = memoryview(stdin)
    line_start = 0
    with selectors.DefaultSelector() as selector:
        for pipe in seen:
            selector.register(pipe, selectors.EVENT_READ)
        if popen.stdin is not None:
            os.set_blocking(popen.stdin.fileno(), False)
            selector.register(popen.stdin, selectors.EVENT_WRITE)
        while selector.get_map():
            ready = selector.select(deadline.remaining())
            if not ready and deadline.expired:
                last = tail(bytes(seen[popen.stderr] or seen[popen.stdout]), lines=1)
                raise DeadlineExpired(f"the end of {shlex.join(child.argv)}", deadline.seconds, last_seen=last or None)
            for key, _ in ready:
                if key.fileobj is popen.stdin:
                    rest = _feed(popen.stdin, rest)
                    if not rest:
                        selector.unregister(popen.stdin)
                        with contextlib.suppress(BrokenPipeError):
                            popen.stdin.close()
                    continue
                data = os.read(key.fd, _CHUNK)
                if not data:
                    selector.unregister(key.fileobj)
                    continue
                seen[key.fileobj] += data  # type: ignore[index]
                if sum(map(len, seen.values())) > MAX_OUTPUT:
                    raise InfraError(f"{shlex.join(child.argv)} printed more than {MAX_OUTPUT >> 20} MiB")
                if log is not None:
                    log.write(data)
                if on_line is not None and key.fileobj is popen.stdout:
                    line_start = _hand_out(seen[popen.stdout], line_start, on_line)
    if on_line is not None and line_start < len(seen[popen.stdout]):
        on_line(seen[popen.stdout][line_start:].decode("utf-8", "replace"))
    return bytes(seen[popen.stdout]), bytes(seen[popen.stderr])


def _feed(pipe: IO[bytes], data: memoryview) -> memoryview:
    if not data:
        return data
    try:
        return data[os.write(pipe.fileno(), data[:_CHUNK]) :]
    except BlockingIOError:
        return data
    except BrokenPipeError:
        # The child does not read the rest; its exit status says whether that is an error.
        return data[:0]


def _hand_out(data: bytearray, start: int, on_line: Callable[[str], None]) -> int:
    while (end := data.find(b"\n", start)) >= 0:
        on_line(data[start:end].decode("utf-8", "replace").rstrip("\r"))
        start = end + 1
    return start
