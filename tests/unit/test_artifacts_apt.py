# SPDX-License-Identifier: GPL-2.0-or-later
"""The private APT with a real, signed archive in a folder; mirrors; explanations of APT's errors. No network."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from apt_archive import PROGRAMS, Archive, digest

from harness import proc
from harness.artifacts import apt, mirror
from harness.artifacts.apt import Package, PrivateApt, default_suite, fingerprints, keyring, unpack
from harness.artifacts.apt_words import NetworkError, apt_error, kept_settings, parse_uris, watcher
from harness.errors import ArtefactError, UsageError
from harness.progress import SilentProgress

QUIET = SilentProgress()
needs_apt = pytest.mark.skipif(
    any(shutil.which(name) is None for name in PROGRAMS), reason=f"one of {', '.join(PROGRAMS)} is not installed"
)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    folder = tmp_path_factory.mktemp("archive")
    archive = Archive(folder / "debian", folder / "gpg")
    archive.make_key()
    archive.add("tool", "1:2.0-1", "Depends: library (>= 1)", "Recommends: unwanted")
    archive.add("library", "1.5", mode=0o4755)
    archive.add("unwanted", "1")
    for version in ("9.0-1", "10.0-1"):
        (archive.pool / f"qemu_{version}.dsc").write_text(f"Format: 1.0\nSource: qemu\nVersion: {version}\n")
    archive.publish()
    yield archive
    subprocess.run(["gpgconf", "--homedir", str(archive.home), "--kill", "all"], check=False, capture_output=True)


@pytest.fixture
def archive(pristine: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    monkeypatch.setattr(apt, "_KEYRINGS", (pristine.keys,))
    shutil.copytree(pristine.root, tmp_path / "debian")
    return Archive(tmp_path / "debian", pristine.home)


def private(archive: Archive, tmp_path: Path) -> PrivateApt:
    return PrivateApt(tmp_path / "apt", "arm64", mirror=archive.uri, suite=archive.suite)


def make_stale(tmp_path: Path) -> None:
    for stamp in (tmp_path / "apt").glob("*/updated"):
        os.utime(stamp, (0, 0))


def list_ages(tmp_path: Path) -> list[float]:
    return [time.time() - stamp.stat().st_mtime for stamp in (tmp_path / "apt").glob("*/updated")]


@needs_apt
def test_a_package_and_what_it_depends_on(archive: Archive, tmp_path: Path) -> None:
    source = private(archive, tmp_path)
    wanted = source.closure(["tool"], QUIET)
    assert [(package.name, package.version) for package in wanted] == [("library", "1.5"), ("tool", "1:2.0-1")]
    assert not any(package.path.exists() for package in wanted)
    assert source.download(["tool"], QUIET) == wanted
    assert all(digest(package.path) == package.sha256 for package in wanted)
    assert fingerprints(wanted)["package library_1.5_arm64.deb"] == wanted[0].sha256
    assert source.depends("tool", QUIET) == ["library"]
    assert source.depends("library", QUIET) == []
    # Packages that are downloaded already count, too.
    assert source.closure(["tool"], QUIET) == wanted


@needs_apt
def test_a_package_alone(archive: Archive, tmp_path: Path) -> None:
    [package] = private(archive, tmp_path).download(["tool"], QUIET, dependencies=False)
    assert (package.name, package.version, package.path.is_file()) == ("tool", "1:2.0-1", True)


@needs_apt
def test_unpacking_runs_no_script_and_leaves_no_set_user_id(archive: Archive, tmp_path: Path) -> None:
    packages = private(archive, tmp_path).download(["tool"], QUIET)
    unpack(packages, tmp_path / "root", QUIET)
    assert (tmp_path / "root/usr/bin/tool").read_text() == "1:2.0-1"
    assert (tmp_path / "root/usr/bin/library").stat().st_mode & 0o7777 == 0o755
    assert not (archive.home / "ran").exists()


@needs_apt
def test_a_file_that_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "bad.deb").write_text("nonsense")
    with pytest.raises(ArtefactError, match=r"cannot unpack bad\.deb: .*"):
        unpack([Package(tmp_path / "bad.deb")], tmp_path / "root", QUIET)


@needs_apt
def test_the_newest_source(archive: Archive, tmp_path: Path) -> None:
    source = private(archive, tmp_path)
    assert not source.knows_sources()
    assert source.source_version("qemu", QUIET) == "10.0-1"
    assert source.knows_sources()
    (tmp_path / "here").mkdir()
    assert source.source("qemu", "10.0-1", tmp_path / "here", QUIET) == tmp_path / "here" / "qemu_10.0-1.dsc"
    with pytest.raises(ArtefactError, match="Debian trixie has no package nonesuch"):
        source.source_version("nonesuch", QUIET)


@needs_apt
def test_packages_that_are_not_there_or_have_no_name(archive: Archive, tmp_path: Path) -> None:
    source = private(archive, tmp_path)
    for dependencies in (True, False):
        with pytest.raises(ArtefactError, match="Debian trixie has no package nonesuch") as caught:
            source.closure(["nonesuch"], QUIET, dependencies=dependencies)
        assert caught.value.hint is not None and "MEMHP_SUITE" in caught.value.hint
    for name in ("-o=evil", "a b", "../x", ""):
        with pytest.raises(UsageError, match="is not the name of a Debian package"):
            source.closure([name], QUIET)


@needs_apt
def test_a_package_that_was_tampered_with(archive: Archive, tmp_path: Path) -> None:
    source = private(archive, tmp_path)
    [deb] = archive.pool.glob("library_*.deb")
    data = deb.read_bytes()
    deb.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ArtefactError, match=r"files from copy:.* fail verification") as caught:
        source.download(["library"], QUIET)
    assert "Hash Sum mismatch" in str(caught.value)
    assert not list((tmp_path / "apt").rglob("archives/library*"))


@needs_apt
def test_a_download_damaged_later_is_fetched_again(archive: Archive, tmp_path: Path) -> None:
    source = private(archive, tmp_path)
    [package] = source.download(["library"], QUIET)
    data = package.path.read_bytes()
    package.path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    source.download(["library"], QUIET)
    assert package.path.read_bytes() == data


@needs_apt
def test_an_archive_signed_by_somebody_else(
    archive: Archive, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Archive(archive.root, tmp_path_factory.mktemp("other") / "gpg")
    other.make_key()
    try:
        monkeypatch.setattr(apt, "_KEYRINGS", (other.keys,))
        with pytest.raises(ArtefactError, match=r"files from copy:.* fail verification") as caught:
            private(archive, tmp_path).closure(["tool"], QUIET)
    finally:
        subprocess.run(["gpgconf", "--homedir", str(other.home), "--kill", "all"], check=False, capture_output=True)
    assert caught.value.hint is not None and "debian-archive-keyring" in caught.value.hint


@needs_apt
def test_an_unsigned_archive(archive: Archive, tmp_path: Path) -> None:
    (archive.root / "dists/trixie/InRelease").unlink()
    with pytest.raises(ArtefactError):
        private(archive, tmp_path).closure(["tool"], QUIET)


@needs_apt
def test_lists_are_read_again_when_they_are_a_day_old(archive: Archive, tmp_path: Path) -> None:
    source = private(archive, tmp_path)
    assert list_ages(tmp_path) == []
    source.closure(["library"], QUIET)
    archive.add("library", "1.6")
    archive.publish()
    assert [package.version for package in source.closure(["library"], QUIET)] == ["1.5"]
    make_stale(tmp_path)
    assert [package.version for package in source.closure(["library"], QUIET)] == ["1.6"]
    [age] = list_ages(tmp_path)
    assert age < 60


@needs_apt
def test_apt_is_asked_once_as_long_as_the_lists_are_the_same(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers() -> tuple[object, ...]:
        source = private(archive, tmp_path)
        return source.closure(["tool"], QUIET), source.depends("tool", QUIET), source.names("l", QUIET)

    asked: list[object] = []
    first, run = answers(), proc.run
    monkeypatch.setattr(proc, "run", lambda argv, **options: asked.append(argv) or run(argv, **options))
    assert (answers(), asked) == (first, [])
    make_stale(tmp_path)
    assert answers() == first
    assert {"pkgnames", "show", "--print-uris"} < {word for argv in asked for word in argv}


@needs_apt
def test_no_network(tmp_path: Path, archive: Archive) -> None:
    unreachable = PrivateApt(tmp_path / "apt", "arm64", mirror="http://127.0.0.1:9/debian", suite="trixie")
    with pytest.raises(NetworkError, match=r"cannot reach http://127\.0\.0\.1:9/debian") as caught:
        unreachable.closure(["tool"], QUIET)
    assert caught.value.hint is not None and "MEMHP_MIRROR" in caught.value.hint


@needs_apt
def test_the_machines_hooks_do_not_run(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "host.conf"
    config.write_text(f'APT::Update::Pre-Invoke {{ "touch {tmp_path}/ran"; }};\nAPT::Default-Release "bookworm";\n')
    monkeypatch.setenv("APT_CONFIG", str(config))
    private(archive, tmp_path).closure(["tool"], QUIET)
    assert not (tmp_path / "ran").exists()


def test_a_state_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "apt").write_text("in the way")
    with pytest.raises(ArtefactError, match=r"cannot use .*/apt/") as caught:
        PrivateApt(tmp_path / "apt", "arm64", mirror="copy:/nowhere", suite="trixie").closure(["tool"], QUIET)
    assert caught.value.hint == "set MEMHP_CACHE to a writable folder with several GB free"


def test_the_keyring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "_KEYRINGS", (tmp_path / "a.gpg", tmp_path / "b.pgp"))
    with pytest.raises(ArtefactError, match=r"a\.gpg is missing: packages .* cannot be verified") as caught:
        keyring()
    assert caught.value.hint == "sudo apt-get install debian-archive-keyring"
    (tmp_path / "b.pgp").touch()
    assert keyring() == tmp_path / "b.pgp"


def test_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMHP_SUITE", raising=False)
    assert default_suite() == "trixie"
    monkeypatch.setenv("MEMHP_SUITE", "forky")
    assert default_suite() == "forky"
    monkeypatch.setenv("MEMHP_SUITE", "../x")
    with pytest.raises(UsageError, match=r"MEMHP_SUITE='\.\./x' is not the name of a Debian release"):
        default_suite()


HASH = "0" * 64


def test_uris() -> None:
    [file] = parse_uris(f"Reading lists...\n'http://m/pool/a_2_arm64.deb' a_1%3a2_arm64.deb 7 SHA256:{HASH}\n")
    assert (file.name, file.version, file.size, file.sha256) == ("a", "1:2", 7, HASH)


@pytest.mark.parametrize("rest", ["a.deb 7 MD5Sum:00", "a.deb 7 ", f"../a 7 SHA256:{HASH}", f".a 7 SHA256:{HASH}"])
def test_uris_that_cannot_be_trusted(rest: str) -> None:
    with pytest.raises(ArtefactError, match="APT's answer has no SHA-256 or no plain file name"):
        parse_uris(f"'http://m/a.deb' {rest}\n")


def test_settings_of_the_machine_that_are_kept() -> None:
    kept = ['Acquire::http::Proxy "http://p:3128";', 'Acquire::ForceIPv4 "true";']
    dropped = [
        'Acquire::https::Verify-Peer "false";',
        'Acquire::AllowInsecureRepositories "1";',
        'APT::Update::Post-Invoke:: "rm -rf /";',
        'DPkg::Pre-Invoke:: "x";',
        'APT::Default-Release "bookworm";',
    ]
    assert kept_settings("\n".join([*dropped, *kept])) == kept


def test_progress_of_a_download() -> None:
    class Seen:
        done: float | None = None

        def advance(self, amount: float = 1) -> None:
            raise AssertionError

        def update(self, *, done: float | None = None, total: float | None = None, note: str | None = None) -> None:
            self.done = done

    seen = Seen()
    on_line = watcher(seen)
    on_line("Reading package lists...")
    assert seen.done is None
    on_line("dlstatus:1:42.5:Retrieving file 1 of 2")
    assert seen.done == 42.5


@pytest.mark.parametrize(
    ("said", "message", "hint"),
    [
        ("E: Unable to locate package x", "Debian s has no package x", "MEMHP_SUITE"),
        ("E: Unable to find a source package for x", "Debian s has no package x", "MEMHP_SUITE"),
        ("E: Package 'x' has no installation candidate", "Debian s has no package x", "MEMHP_SUITE"),
        ("E: The repository 'm s InRelease' is not signed.", "files from m fail verification", "keyring"),
        (
            "E: Failed to fetch m/Packages.xz  File has unexpected size (1 != 2). Mirror sync in progress?",
            "the package lists of m do not match its signature",
            "in a few hours",
        ),
        ("W: GPG error: NO_PUBKEY 6ED0E7B82643E131", "files from m fail verification", "keyring"),
        ("E: Release file for m is not valid yet (invalid for 3h)", "m is out of date", "clock"),
        ("E: Release file for m is expired (invalid since 3d)", "m is out of date", "clock"),
        ("E: You don't have enough free space in /c/", "no space left for packages", "MEMHP_CACHE"),
        ("E: write (28: No space left on device)", "no space left for packages", "MEMHP_CACHE"),
        ("Err:1 m s InRelease\n  Could not resolve 'm'", "cannot reach m", "proxy"),
        ("E: Failed to fetch m  407  Proxy Authentication Required", "cannot reach m", "proxy"),
        ("E: The repository 'm s Release' does not have a Release file.", "m has no suite s", "trixie-backports"),
        ("E: Failed to fetch m/a.deb  404  Not Found", "m does not have the requested files", "try again"),
        ("E: Something else", "APT failed:\nE: Something else", None),
        ("no prefix at all", "APT failed:\nno prefix at all", None),
    ],
)
def test_complaints(said: str, message: str, hint: str | None) -> None:
    error = apt_error(said, "m", "s")
    assert message in error.message
    assert isinstance(error, NetworkError) == message.startswith("cannot reach")
    assert error.hint is None if hint is None else error.hint is not None and hint in error.hint


def sources(etc: Path, **files: str) -> Path:
    (etc / "sources.list.d").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = etc / "sources.list" if name == "main" else etc / "sources.list.d" / name.replace("__", ".")
        path.write_text(text)
    return etc


@pytest.fixture
def no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMHP_MIRROR", raising=False)


ARCHIVE = "/usr/share/keyrings/debian-archive-keyring.gpg"
STANZA = "Types: deb\nURIs: http://m.example/debian\nSuites: trixie trixie-updates\nComponents: main\n"


@pytest.mark.usefixtures("no_mirror")
@pytest.mark.parametrize(
    "files",
    [
        {"main": "deb http://m.example/debian/ trixie main contrib\n"},
        {"main": "  deb [arch=amd64 signed-by=/k.gpg] http://m.example/debian stable main # why\n"},
        {"main": "# deb http://old.example/debian bookworm main\ndeb http://m.example/debian bookworm main\n"},
        {"main": "deb cdrom:[Debian 13]/ trixie main\ndeb http://m.example/debian trixie main\n"},
        {"debian__sources": f"# first\n{STANZA}# Signed-By: none\n"},
        {
            "debian__sources": STANZA.replace("URIs: http", "URIs:\n http").replace(
                "Components: main", "components:\n main"
            )
        },
        {"debian__sources": f"{STANZA.replace('m.example', 'off.example')}Enabled: no\n\n{STANZA}"},
        {"debian__sources": STANZA.replace("deb\n", "deb-src\n").replace("m.ex", "src.ex") + "\n" + STANZA},
        {"a__list": "deb https://third.example/php/ trixie main\n", "b__sources": STANZA},
        {
            "a__list": "deb https://third.example/tools/debian trixie main\n",
            "b__sources": f"{STANZA}Signed-By: {ARCHIVE}\n",
        },
        {"a__list": "deb https://third.example/debian trixie stable\n", "b__sources": STANZA},
        {"a__list": "deb http://third.example/debian trixie-pgdg main\n", "b__sources": STANZA},
        {"a__list__disabled": "deb http://off.example/debian trixie main\n", "b__sources": STANZA},
    ],
)
def test_the_mirror_among_the_machines_sources(tmp_path: Path, files: dict[str, str]) -> None:
    assert mirror.debian_mirror(sources(tmp_path, **files)) == "http://m.example/debian"


@pytest.mark.usefixtures("no_mirror")
@pytest.mark.parametrize(
    ("files", "number"),
    [
        ({}, 0),
        ({"main": "deb http://m.example/ubuntu noble main\n"}, 1),
        ({"main": "deb http://m.example/debian\n"}, 0),
        ({"debian__sources": f"{STANZA}Enabled: no\n"}, 0),
    ],
)
def test_no_mirror(tmp_path: Path, files: dict[str, str], number: int) -> None:
    with pytest.raises(ArtefactError) as caught:
        mirror.debian_mirror(sources(tmp_path, **files))
    assert caught.value.message == f"none of the {number} APT sources in {tmp_path} is the Debian archive"
    assert caught.value.hint == "set MEMHP_MIRROR to a Debian mirror, such as http://HOST/debian"


def test_the_users_mirror_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMHP_MIRROR", "https://own.example/d/")
    assert mirror.debian_mirror(sources(tmp_path, main="deb http://m.example/debian trixie main")) == (
        "https://own.example/d"
    )
    for wrong in ("own.example/debian", "http://", "http://h/ trixie main", "deb http://h/debian"):
        monkeypatch.setenv("MEMHP_MIRROR", wrong)
        with pytest.raises(UsageError, match=r"MEMHP_MIRROR=.* is not the URI of an archive"):
            mirror.debian_mirror(tmp_path)
