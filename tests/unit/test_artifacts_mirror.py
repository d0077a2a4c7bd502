# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding Debian's archive in a machine's APT sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.artifacts.mirror import SourceEntry, debian_mirror, parse_deb822, parse_list, read_sources
from harness.errors import ArtefactError, UsageError


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMHP_MIRROR", raising=False)


def etc(tmp_path: Path, **files: str) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    for name, text in files.items():
        name = name.replace("__", ".")
        place = tmp_path / name if name == "sources.list" else tmp_path / "sources.list.d" / name
        place.write_text(text)
    return tmp_path


DEB822 = """\
Types: deb
# a comment
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


def test_a_stanza_file(tmp_path: Path) -> None:
    assert debian_mirror(etc(tmp_path, debian__sources=DEB822)) == "http://mirror.example/debian"


def test_a_list_file(tmp_path: Path) -> None:
    text = "deb-src http://x/debian sid main\n# deb http://y/debian sid main\n"
    text += "deb http://deb.example/debian trixie main # x\n"
    assert debian_mirror(etc(tmp_path, sources__list=text)) == "http://deb.example/debian"


def test_others_that_publish_for_debian_are_passed_over(tmp_path: Path) -> None:
    others = (
        "deb [arch=amd64 signed-by=/k/docker.gpg] https://docker.example/linux/debian bookworm stable\n"
        "deb [signed-by=/k/chrome.gpg] https://dl.example/linux/chrome/deb/ stable main\n"
        "deb https://apt.example bookworm-pgdg main\n"
        "deb https://cloud.example/apt cloud-sdk-bookworm main\n"
    )
    assert debian_mirror(etc(tmp_path, a__list=others, debian__sources=DEB822)) == "http://mirror.example/debian"


def test_the_keyring_tells_an_archive_with_another_name(tmp_path: Path) -> None:
    text = (
        "deb http://one.example/debian bookworm main\n"
        "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://two.example/d bookworm main\n"
    )
    assert debian_mirror(etc(tmp_path, sources__list=text)) == "http://two.example/d"


def test_a_mirror_list_is_an_archive(tmp_path: Path) -> None:
    text = "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: trixie\nComponents: main\n"
    assert debian_mirror(etc(tmp_path, debian__sources=text)) == "mirror+file:///etc/apt/mirrors/debian.list"


def test_a_stanza_that_is_off_and_one_of_several_lines() -> None:
    text = "Enabled: no\nTypes: deb\nURIs: http://x/debian\nSuites: sid\nComponents: main\n"
    assert list(parse_deb822(text)) == []
    text = "Types: deb deb-src\nURIs: http://x/debian\n http://y/debian\nSuites:\n trixie\n sid\nComponents: main\n"
    suites = ("trixie", "sid")
    assert list(parse_deb822(text)) == [
        SourceEntry("http://x/debian", suites, ("main",), ""),
        SourceEntry("http://y/debian", suites, ("main",), ""),
    ]


def test_lines_that_are_no_entries_are_skipped() -> None:
    assert list(parse_list("deb\ndeb http://x\nwhat ever it is\n\n")) == []


def test_unreadable_and_foreign_files_are_skipped(tmp_path: Path) -> None:
    folder = etc(tmp_path, a__save="deb http://x/debian sid main", debian__sources=DEB822)
    (folder / "sources.list.d" / "dir.list").mkdir()
    assert [entry.uri for entry in read_sources(folder)] == [
        "http://mirror.example/debian/",
        "http://mirror.example/debian-security",
    ]


def test_a_machine_that_is_not_debian(tmp_path: Path) -> None:
    text = "deb http://archive.example/ubuntu noble main universe\n"
    with pytest.raises(ArtefactError, match=r"none of the 1 APT sources in .* is the Debian archive") as caught:
        debian_mirror(etc(tmp_path, sources__list=text))
    assert caught.value.hint is not None
    assert "MEMHP_MIRROR" in caught.value.hint


def test_the_users_own_mirror_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMHP_MIRROR", "https://own.example/debian/")
    assert debian_mirror(etc(tmp_path, debian__sources=DEB822)) == "https://own.example/debian"


@pytest.mark.parametrize("text", ["own.example/debian", "http://x/debian trixie", "http://x/[signed]", "cdrom:[x]/"])
def test_a_mirror_that_is_no_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MEMHP_MIRROR", text)
    with pytest.raises(UsageError, match="is not the URI of an archive"):
        debian_mirror(tmp_path)
