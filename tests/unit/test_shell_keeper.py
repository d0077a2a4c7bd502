# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that keep a guest after a run: exit statuses, signals, and lists without stale entries."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

import harness
from harness.errors import InfraError, UsageError
from harness.shell import keeper
from harness.shell.keeper import Kept, _listen, attach_to, find_kept, keeping_note, kept_dir, kept_guests


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def split(body: str, before: str = "") -> subprocess.Popen[str]:
    """A process that runs ``before``, and then ``body``, the function work(release), in split_off."""
    code = f"import os, sys, signal, time\n{before}\nfrom harness.shell.keeper import split_off\ndef work(release):\n"
    code += textwrap.indent(textwrap.dedent(body), "    ") + "\nsys.exit(split_off(work))\n"
    environment = {**os.environ, "PYTHONPATH": str(Path(harness.__file__).parents[1])}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("return 3", 3),
        ("release(1)\nreturn 0", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
    ],
    ids=["ended", "released", "killed"],
)
def test_the_parent_ends_with_the_status_of_the_run(body: str, status: int) -> None:
    with split(body) as process:
        process.communicate(timeout=300)
    assert process.returncode == status


def test_a_released_child_goes_on_without_our_terminal() -> None:
    with split("print(os.getpid(), flush=True)\nrelease(1)\nsignal.pause()") as process:
        out, _ = process.communicate(timeout=300)
    child = int(out)
    try:
        assert process.returncode == 1
        assert os.readlink(f"/proc/{child}/fd/1") == "/dev/null"
    finally:
        os.kill(child, signal.SIGKILL)


def test_ctrl_c_reaches_the_child() -> None:
    body = "try:\n    print('up', flush=True)\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    return 130"
    with split(body) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=300)
    assert process.returncode == 130


def test_ctrl_c_at_an_attached_prompt_ends_a_command_of_a_keeper_that_was_started_in_the_background() -> None:
    body = "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    return 0\nexcept KeyboardInterrupt:\n    return 130"
    with split(body, "signal.signal(signal.SIGINT, signal.SIG_IGN)") as process:
        process.communicate(timeout=300)
    assert process.returncode == 130


def test_the_end_of_an_attached_terminal_reaches_a_keeper_under_nohup() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.close()
        before = {number: signal.signal(number, _ended) for number in (signal.SIGTERM, signal.SIGHUP)}
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with pytest.raises(InterruptedError):
                _listen(ours, threading.Event())
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _ended(number: int, frame: object) -> None:
    raise InterruptedError


def test_a_child_does_not_outlive_a_parent_that_is_killed() -> None:
    with split("print(os.getpid(), flush=True)\ntime.sleep(60)") as process:
        assert process.stdout is not None
        child = os.pidfd_open(int(process.stdout.readline()))
        process.kill()
        process.communicate(timeout=300)
    import select

    assert select.select([child], [], [], 60.0)[0]
    os.close(child)


def test_the_list_forgets_keepers_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = kept_dir()
    folder.mkdir(parents=True)
    (folder / "1.json").write_text("{}")
    (folder / "1.sock").touch()
    assert kept_guests() == [] and list(folder.iterdir()) == []
    with pytest.raises(UsageError, match=r"no guest is kept\n  hint: memhp run --keep"):
        find_kept(None)
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(folder)
        listener.bind("2.sock")
        listener.listen(4)
        (folder / "2.json").write_text(json.dumps({"pid": 2, "bundle": "/b"}))
        assert find_kept(None) == find_kept("/b") == Kept(2, "/b", folder / "2.sock")
        with pytest.raises(UsageError, match="no guest of /c is kept\n  hint: kept: /b"):
            find_kept("/c")


def test_a_keeper_that_starts_keeps_its_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = kept_dir()
    folder.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(folder)
        listener.bind("3.sock")
        listener.listen(4)
        (folder / "3.json").touch()
        assert kept_guests() == [] and (folder / "3.sock").is_socket()
        (folder / "3.json").write_text(json.dumps({"pid": 3, "bundle": "/b"}))
        assert find_kept(None).pid == 3


def test_a_keeper_that_could_not_be_asked_keeps_its_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = kept_dir()
    folder.mkdir(parents=True)
    for name in ("4.sock", "4.json"):
        (folder / name).touch()

    def no_more_files(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", no_more_files)
    assert kept_guests() == [] and len(list(folder.iterdir())) == 2


def test_a_keeper_is_listed_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = kept_dir()
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    # Of a keeper that had this process id and was killed.
    (folder / f"{os.getpid()}.sock").touch()
    written: list[list[Kept]] = []
    rename = Path.replace

    def replace(path: Path, target: Path) -> Path:
        assert path.read_text().endswith("}\n")
        written.append(kept_guests())
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    with keeper._listed(tmp_path / "bundle"):
        assert find_kept(None).bundle == str(tmp_path / "bundle")
        assert folder.stat().st_mode & 0o777 == 0o700
    assert written == [[]] and list(folder.iterdir()) == []


def test_a_keeper_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(InfraError, match="the keeper 7 does not answer"):
        attach_to(Kept(7, "/b", tmp_path / "7.sock"), (), "auto")
    assert "memhp attach /b" in keeping_note(Path("/b"), 60.0)
