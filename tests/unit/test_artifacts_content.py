# SPDX-License-Identifier: GPL-2.0-or-later
"""Cache keys depend on content, not on paths or times."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from harness.artifacts.cache import MANIFEST, Cache, content_of, hash_file
from harness.errors import UsageError
from harness.progress import SilentProgress


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("x")
    assert content_of(tmp_path / "a") == content_of(tmp_path / "b") == hash_file(tmp_path / "a")
    before = content_of(tmp_path / "a")
    (tmp_path / "a").write_text("y")
    os.utime(tmp_path / "a", ns=(1, 1))
    assert content_of(tmp_path / "a") != before


def test_a_folder_is_its_names_and_contents(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "file").write_text("x")
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")
    (tmp_path / "two" / "sub" / "file").rename(tmp_path / "two" / "sub" / "other")
    assert content_of(tmp_path / "one") != content_of(tmp_path / "two")


def test_an_entry_of_the_cache_is_taken_at_its_word_while_nothing_has_touched_it(tmp_path: Path) -> None:
    def build(out: Path) -> None:
        (out / "bin").mkdir()
        (out / "bin" / "program").write_text("x")

    path = Cache(tmp_path).get("kind", "name", {}, build, SilentProgress()) / "bin" / "program"
    plain = hash_file(path)
    assert content_of(path) == plain
    path.chmod(0o644)
    path.write_text("longer")
    assert content_of(path) == hash_file(path) != plain


def forged(folder: Path) -> Path:
    """A file whose manifest has the hash of other content, with the same size and time."""
    folder.mkdir(parents=True)
    (folder / "Image").write_text("x")
    seen = (folder / "Image").stat()
    said = {"size": seen.st_size, "mtime_ns": seen.st_mtime_ns, "sha256": "0" * 64}
    (folder / MANIFEST).write_text(json.dumps({"files": {"Image": said}}))
    return folder / "Image"


def test_a_manifest_counts_inside_the_users_own_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMHP_CACHE", str(tmp_path / "cache"))
    inside, outside = (
        forged(tmp_path / "cache" / "kernel" / "entry"),
        forged(tmp_path / "elsewhere" / "kernel" / "entry"),
    )
    (tmp_path / "cache").chmod(0o755)
    assert content_of(inside) == "0" * 64
    assert content_of(outside) == hash_file(outside)
    for mode in (0o777, 0o770):
        (tmp_path / "cache").chmod(mode)
        another = forged(tmp_path / "cache" / "kernel" / f"entry-{mode}")
        assert content_of(another) == hash_file(another), "other users can write to this cache"


def test_no_manifest_beside_or_above_the_cache_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("MEMHP_CACHE", str(cache))
    image = forged(cache)
    cache.chmod(0o755)
    assert content_of(image) == hash_file(image)
    said = json.loads((cache / MANIFEST).read_text())["files"]["Image"]
    (cache / MANIFEST).unlink()
    (cache / "kernel").mkdir()
    for place in (cache / "Image2", cache / "kernel" / "Image3"):
        image.rename(place)
        image = place
        (tmp_path / MANIFEST).write_text(json.dumps({"files": {str(place.relative_to(tmp_path)): said}}))
        assert content_of(place) == hash_file(place)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*gone: No such file"):
        content_of(tmp_path / "gone")
