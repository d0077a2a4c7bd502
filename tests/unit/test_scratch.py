# SPDX-License-Identifier: GPL-2.0-or-later
"""Private folders: inaccessible to others, removed at the end, or at the next start if their creator was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import harness
from harness.errors import InfraError
from harness.scratch import make_private, private_directory, sweep


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_private_and_goes_with_its_block(elsewhere: Path) -> None:
    with pytest.raises(KeyError), private_directory() as path:
        assert path.stat().st_mode & 0o777 == 0o700
        (path / "initrd").write_text("x")
        raise KeyError
    assert list(elsewhere.iterdir()) == []


def test_an_old_folder_is_taken_from_others(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = elsewhere / "deep" / "snapshots"
    old.mkdir(parents=True)
    old.chmod(0o755)
    (elsewhere / "link").symlink_to(old)
    make_private(elsewhere / "link")
    assert old.stat().st_mode & 0o7777 == 0o700
    make_private(elsewhere / "new" / "folder")
    assert (elsewhere / "new" / "folder").stat().st_mode & 0o7777 == 0o700
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(InfraError, match=rf"snapshots belongs to another user \(uid {os.getuid()}\)\n  hint: "):
        make_private(old)


def test_a_signal_right_after_it_is_made_leaves_nothing(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = os.mkdir

    def interrupted(path: Path, mode: int) -> None:
        mkdir(path, mode)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt), private_directory():
        raise AssertionError("not reached")
    assert list(elsewhere.iterdir()) == []


def test_what_a_killed_run_left_is_removed_by_the_next(elsewhere: Path) -> None:
    code = (
        "import sys\nfrom harness.scratch import make_private, private_directory\nwith private_directory() as path:\n"
    )
    code += "    print(path, flush=True)\n    sys.stdin.read()\n"
    environment = {**os.environ, "TMPDIR": str(elsewhere), "PYTHONPATH": str(Path(harness.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        theirs = Path(child.stdout.readline().strip())
        sweep(elsewhere)
        assert theirs.is_dir(), "it is still in use"
        child.send_signal(signal.SIGKILL)
    assert theirs.is_dir()
    with private_directory() as ours:
        assert not theirs.exists() and ours.is_dir()


def test_what_is_not_ours_or_just_being_made_stays(elsewhere: Path) -> None:
    names = ("memhp-scratch-new", "memhp-scratch-almost", "memhp-scratch-old", "memhp-scratch-older", "memhp-other")
    fresh, almost, old, older, other = (elsewhere / name for name in names)
    for path in (fresh, almost, old, older, other):
        path.mkdir()
    (almost / ".new").touch()
    (older / ".new").touch()
    os.utime(old, (0, 0))
    os.utime(older, (0, 0))
    (elsewhere / "memhp-scratch-link").symlink_to(other)
    (other / ".in-use").symlink_to("/etc/hostname")
    sweep(elsewhere)
    assert fresh.is_dir() and almost.is_dir() and other.is_dir()
    assert not old.exists() and not older.exists()
