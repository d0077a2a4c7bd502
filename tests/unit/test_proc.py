# SPDX-License-Identifier: GPL-2.0-or-later
"""Child processes, with real ones."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from harness import proc
from harness.deadline import Deadline
from harness.errors import DeadlineExpired, InfraError


def sh(script: str, **options: object) -> proc.Completed:
    return proc.run(["sh", "-c", script], deadline=Deadline(60), **options)  # type: ignore[arg-type]


def ended(pidfd: int, seconds: float = 60) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def test_run_returns_both_streams() -> None:
    assert sh("echo out; echo err >&2") == proc.Completed(0, b"out\n", b"err\n")


def test_run_feeds_stdin_larger_than_a_pipe() -> None:
    data = bytes(range(256)) * 4096
    assert proc.run(["cat"], deadline=Deadline(60), stdin=data).stdout == data


def test_run_survives_a_child_that_reads_nothing() -> None:
    assert sh("exec <&-; echo done", stdin=b"x" * (1 << 20)).stdout == b"done\n"


def test_run_has_an_empty_stdin_by_default() -> None:
    assert sh("cat").stdout == b""


def test_failure_names_argv_status_and_stderr() -> None:
    with pytest.raises(InfraError) as caught:
        sh("echo no such luck >&2; exit 3")
    assert caught.value.message == "sh -c 'echo no such luck >&2; exit 3' exited with status 3:\nno such luck"


def test_failure_shows_stdout_if_stderr_is_silent() -> None:
    with pytest.raises(InfraError, match="only stdout"):
        sh("echo only stdout; exit 1")


def test_failure_names_the_signal() -> None:
    with pytest.raises(InfraError, match="was killed by SIGSEGV"):
        sh("kill -SEGV $$")


def test_check_false_returns_the_status() -> None:
    assert sh("exit 7", check=False).returncode == 7
    assert sh("kill -KILL $$", check=False).returncode == -signal.SIGKILL


def test_unknown_program() -> None:
    with pytest.raises(InfraError, match="no such program: memhp-no-such") as caught:
        proc.run(["memhp-no-such", "a b"], deadline=Deadline(60))
    assert "'a b'" in caught.value.message
    assert caught.value.hint == "install memhp-no-such"


def test_a_host_without_setpriv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc.shutil, "which", lambda name, path=None: None)
    with pytest.raises(InfraError, match="no such program: setpriv\n  hint: install util-linux"):
        proc.run(["true"], deadline=Deadline(60))


def test_unknown_directory(tmp_path: Path) -> None:
    with pytest.raises(InfraError, match=r"no such directory: .*/gone"):
        proc.run(["true"], deadline=Deadline(60), cwd=tmp_path / "gone")


def test_not_a_program(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(b"\x7fELF nonsense")
    bad.chmod(0o755)
    with pytest.raises(InfraError, match=r"exited with status 126:\nmemhp: .*Exec format error"):
        proc.run([str(bad)], deadline=Deadline(60))


def test_deadline_names_argv_and_the_last_line_and_kills_the_group() -> None:
    deadline, pids = Deadline(60), []

    def expire(line: str) -> None:
        pids.append(int(line))
        deadline._end = time.monotonic()

    with pytest.raises(DeadlineExpired) as caught:
        proc.run(["sh", "-c", "sleep 1000 & echo $!; wait"], deadline=deadline, on_line=expire)
    [pid] = pids
    assert "the end of sh -c 'sleep 1000" in caught.value.message
    assert caught.value.last_seen == str(pid)
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with os.fdopen(pidfd):
        assert ended(pidfd)


def test_lines_come_while_the_child_runs(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    lines = []

    def answer(line: str) -> None:
        lines.append(line)
        if line == "ask":
            fifo.write_text("reply")

    sh(f"echo ask; cat {fifo}", on_line=answer)
    assert lines == ["ask", "reply"]


def test_a_raising_callback_kills_the_child() -> None:
    pids = []

    def explode(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sh("echo $$; exec sleep 1000", on_line=explode)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_log_has_command_and_both_streams(tmp_path: Path) -> None:
    log = tmp_path / "log"
    sh("echo out; echo err >&2", log=log)
    sh("true", log=log)
    text = log.read_text().splitlines()
    assert text[0] == "$ sh -c 'echo out; echo err >&2'"
    assert sorted(text[1:3]) == ["err", "out"]
    assert text[3] == "$ sh -c true"


def test_environment_and_directory(tmp_path: Path) -> None:
    done = sh("pwd; echo $WORD", cwd=tmp_path, env={"PATH": os.environ["PATH"], "WORD": "x"})
    assert done.stdout.decode().split() == [str(tmp_path), "x"]


def test_programs_speak_one_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LANGUAGE", "de")
    assert sh("echo $LC_ALL $LANGUAGE").stdout == b"C.UTF-8\n"


def test_signals_are_back_to_default_and_the_session_is_its_own() -> None:
    out = sh("grep SigIgn /proc/self/status; cut -d' ' -f6 /proc/$$/stat; echo $$").stdout.decode().split()
    assert int(out[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0
    assert out[2] == out[3]


def test_tail_defuses_control_characters_and_limits() -> None:
    assert proc.tail(b"a\nb\x1b[31mc\n") == "a\nb\\x1b[31mc"
    assert proc.tail(b"1\n2\n3\n", lines=2) == "2\n3"
    assert proc.tail(b"x" * 100, limit=10) == "…" + "x" * 10


def test_tail_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100_000 + b"\nlast\n")
    assert proc.tail_file(tmp_path / "f", lines=1) == "last"
    assert proc.tail_file(tmp_path / "none") == ""


def test_describe_status() -> None:
    assert proc.describe_status(-9) == "was killed by SIGKILL"
    assert proc.describe_status(-100) == "was killed by signal 100"


def spawned(tmp_path: Path, *argv: str, **options: object) -> proc.Child:
    return proc.spawn(argv, stdout=tmp_path / "out", stderr=tmp_path / "err", **options)  # type: ignore[arg-type]


def test_child_is_reaped_on_exit(tmp_path: Path) -> None:
    with spawned(tmp_path, "sleep", "1000") as child:
        assert child.poll() is None
        pid = child.pid
    assert child.returncode == -signal.SIGKILL
    assert child.reap() == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_child_wait_is_event_driven_and_bounded(tmp_path: Path) -> None:
    with spawned(tmp_path, "sleep", "1000") as child:
        with pytest.raises(DeadlineExpired, match="the end of sleep 1000"):
            child.wait(Deadline(0.05))
        child.terminate()
        assert child.wait(Deadline(60)) == -signal.SIGTERM
        assert child.wait(Deadline(0)) == -signal.SIGTERM
        child.terminate()
        child.kill()


def test_child_writes_files_and_inherits_descriptors(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as source:
        script = f"echo out; echo err >&2; echo through >/proc/self/fd/{writer}"
        with spawned(tmp_path, "sh", "-c", script, pass_fds=[writer]) as child:
            os.close(writer)
            assert child.wait(Deadline(60)) == 0
        assert source.read() == b"through\n"
    assert (tmp_path / "out").read_text() == "out\n"
    assert (tmp_path / "err").read_text() == "err\n"


def test_child_outlives_the_thread_that_asked_for_it(tmp_path: Path) -> None:
    children: list[proc.Child] = []
    thread = threading.Thread(target=lambda: children.append(spawned(tmp_path, "sleep", "1000")))
    thread.start()
    thread.join()
    with children[0] as child, pytest.raises(DeadlineExpired):
        child.wait(Deadline(0.3))


def test_sigkill_of_the_harness_leaves_no_orphan(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        from harness import proc
        folder = Path({str(tmp_path)!r})
        child = proc.spawn(["sleep", "1000"], stdout=folder / "out", stderr=folder / "err")
        print(child.pid, flush=True)
        sys.stdin.read()
        """
    )
    root = Path(proc.__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        with os.fdopen(pidfd):
            assert not ended(pidfd, 0.2)
            parent.kill()
            assert ended(pidfd)


def test_a_child_whose_parent_is_gone_already_never_starts(tmp_path: Path) -> None:
    marker = tmp_path / "started"
    argv = ["sh", "-c", proc._LAUNCHER, "memhp", "1", "/usr/bin/touch", str(marker)]
    done = subprocess.run(argv, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"the parent died before its child was ready" in done.stderr
    assert not marker.exists()
