# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache: parts are built once and completely, verified on use; clear errors if it is not writable."""

from __future__ import annotations

import errno
import io
import os
import threading
from pathlib import Path

import pytest

from harness.artifacts.cache import MANIFEST, Cache, cache_root, hold_lock, scratch, verify
from harness.errors import ArtefactError, UsageError
from harness.progress import PlainProgress, SilentProgress, Task
from harness.shell.prompt import state_dir

QUIET = SilentProgress()


class Builder:
    def __init__(self, text: str = "payload") -> None:
        self.text = text
        self.calls = 0

    def __call__(self, out: Path) -> None:
        self.calls += 1
        (scratch(out) / "file").write_text("x")
        (out / "bin").mkdir()
        (out / "bin" / "tool").write_text(self.text)
        (out / "bin" / "tool").chmod(0o755)
        (out / "link").symlink_to("bin/tool")


def get(cache: Cache, builder: Builder, **inputs: str) -> Path:
    return cache.get("kind", "name", inputs, builder, QUIET, what="the part")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def damaged(path: Path, data: str) -> None:
    path.chmod(0o644)
    path.write_text(data)


def test_built_once_and_read_only(cache: Cache) -> None:
    builder = Builder()
    path = get(cache, builder, source="1")
    assert get(cache, builder, source="1") == path
    assert builder.calls == 1
    assert (path / "bin" / "tool").stat().st_mode & 0o777 == 0o555
    assert path.stat().st_mode & 0o222 == 0
    assert sorted(item.name for item in path.iterdir()) == ["bin", "link", MANIFEST]
    assert not list(path.parent.glob(".tmp-*"))


def test_other_inputs_are_another_entry(cache: Cache) -> None:
    builder = Builder()
    assert get(cache, builder, source="1") != get(cache, builder, source="2")
    assert builder.calls == 2
    assert cache.find("kind", "name", {"source": "3"}) is None


@pytest.mark.parametrize("data", ["payloat", "pay", "", "payload and more"])
def test_a_damaged_file_is_made_again(cache: Cache, data: str) -> None:
    builder = Builder()
    tool = get(cache, builder) / "bin" / "tool"
    damaged(tool, data)
    os.utime(tool, ns=(1, 1))
    assert cache.find("kind", "name", {}) is None
    assert (get(cache, builder) / "bin" / "tool").read_text() == "payload"
    assert builder.calls == 2


def test_a_copied_cache_with_other_times_is_still_good(cache: Cache) -> None:
    builder = Builder()
    os.utime(get(cache, builder) / "bin" / "tool", ns=(1, 1))
    get(cache, builder)
    assert builder.calls == 1


def test_only_full_verification_sees_a_change_behind_size_and_time(cache: Cache) -> None:
    path = get(cache, Builder())
    tool = path / "bin" / "tool"
    before = tool.stat().st_mtime_ns
    damaged(tool, "paylaod")
    os.utime(tool, ns=(before, before))
    assert verify(path) is None
    assert verify(path, full=True) == "bin/tool: changed since it was made"
    assert [entry.broken for entry in cache.entries(full=True)] == ["bin/tool: changed since it was made"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": {"bin/tool": {}}}', '{"files": 3}'])
def test_a_damaged_manifest_is_damage(cache: Cache, text: str) -> None:
    builder = Builder()
    damaged(get(cache, builder) / MANIFEST, text)
    get(cache, builder)
    assert builder.calls == 2


def test_missing_files_and_links(cache: Cache) -> None:
    path = get(cache, Builder())
    path.chmod(0o755)
    (path / "link").unlink()
    assert verify(path) == "link: not the original link"
    (path / "bin").chmod(0o755)
    (path / "bin" / "tool").unlink()
    assert verify(path) == "tool is missing"
    (path / "bin" / "tool").mkdir()
    assert verify(path) == "bin/tool: not a file"


def test_a_failed_build_leaves_nothing(cache: Cache) -> None:
    def fail(out: Path) -> None:
        (out / "half").write_text("x")
        raise ArtefactError("no")

    with pytest.raises(ArtefactError, match="no"):
        cache.get("kind", "name", {}, fail, QUIET, what="the part")
    assert list((cache.root / "kind").iterdir()) == []


def test_what_dead_builders_left_is_removed_and_what_living_ones_build_is_not(cache: Cache) -> None:
    path = get(cache, Builder(), source="1")
    own = path.parent / f".tmp-{path.name}-dead"
    other = path.parent / ".tmp-other-0123-dead"
    alive = path.parent / ".tmp-alive-0123-busy"
    for folder in (own, other, alive):
        (folder / "out" / "inner").mkdir(parents=True)
        (folder / "out" / "inner").chmod(0o555)
    (cache.root / "locks" / "kind-other-0123").touch()
    damaged(path / MANIFEST, "")
    with hold_lock(cache.root / "locks" / "kind-alive-0123", "alive", QUIET):
        get(cache, Builder(), source="1")
    assert not own.exists()
    assert not other.exists()
    assert alive.exists()


class Watched(PlainProgress):
    """Sets an event when memhp starts to wait."""

    def __init__(self) -> None:
        self.waiting = threading.Event()
        super().__init__(io.StringIO())

    def say(self, text: str) -> None:
        if text.startswith("Waiting for another memhp: the part"):
            self.waiting.set()


def test_two_at_once_build_once_and_the_second_says_that_it_waits(cache: Cache) -> None:
    started, second = threading.Event(), Watched()
    calls: list[str] = []

    def slow(out: Path) -> None:
        calls.append("built")
        started.set()
        assert second.waiting.wait(60)
        (out / "file").write_text("x")

    def run(progress: PlainProgress | SilentProgress, found: list[Path]) -> None:
        found.append(cache.get("kind", "name", {}, slow, progress, what="the part"))

    found: list[Path] = []
    first = threading.Thread(target=run, args=(QUIET, found))
    first.start()
    assert started.wait(60)
    run(second, found)
    first.join(60)
    assert calls == ["built"]
    assert found[0] == found[1]


def test_a_present_entry_needs_no_writable_cache(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    path = get(cache, Builder())

    def no_lock(*_: object) -> Task:
        raise AssertionError("took a lock")

    monkeypatch.setattr("harness.artifacts.cache.hold_lock", no_lock)
    assert get(cache, Builder()) == path


def test_a_cache_that_cannot_be_made_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match=r"cannot create the part: Not a directory: .*file/cache"):
        get(Cache(tmp_path / "file" / "cache"), Builder())


@pytest.mark.parametrize(
    ("number", "message", "hint"),
    [
        (errno.ENOSPC, "No space left on device: /x/y", "disk space"),
        (errno.EACCES, "Permission denied: /x/y", "writable folder"),
        (errno.EROFS, "Read-only file system: /x/y", "MEMHP_CACHE"),
    ],
)
def test_a_full_or_forbidden_disk_is_explained(cache: Cache, number: int, message: str, hint: str) -> None:
    def fail(_: Path) -> None:
        raise OSError(number, os.strerror(number), "/x/y")

    with pytest.raises(ArtefactError, match=f"cannot create the part: {message}") as caught:
        cache.get("kind", "name", {}, fail, QUIET, what="the part")
    assert caught.value.hint is not None
    assert hint in caught.value.hint


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MEMHP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == tmp_path / ".cache" / "memhp"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_root() == tmp_path / ".cache" / "memhp"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_root() == Path("/xdg/memhp")
    monkeypatch.setenv("MEMHP_CACHE", "/own")
    assert cache_root() == Path("/own")


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", nobody)
    for name in ("HOME", "MEMHP_CACHE", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for folder, variable in ((cache_root, "XDG_CACHE_HOME"), (state_dir, "XDG_STATE_HOME")):
        with pytest.raises(UsageError, match=f"no home directory\n  hint: export {variable}=/a/writable/folder"):
            folder()


def test_entries_that_are_of_no_use_any_more_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    made = [cache.get("kind", str(n), {}, Builder(), QUIET) for n in range(4)]
    for age, path in enumerate(made):
        os.utime(path, ns=(age, age))
    cache.use(made[0])
    cache.prune("kind", 2)
    assert [path.exists() for path in made] == [True, False, False, True]
    assert len(list((tmp_path / "kind").iterdir())) == 2
    cache.prune("nothing", 0)
