# SPDX-License-Identifier: GPL-2.0-or-later
"""Suites of a real, signed archive in a folder: which one has a kernel, and in which packages. No network."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from apt_archive import PROGRAMS, Archive

from harness.arch import ARM64, RISCV64, ArchSpec
from harness.artifacts import apt
from harness.artifacts.apt import host_arch, suites_to_ask
from harness.artifacts.debian import find_source, find_stock
from harness.artifacts.qemu import find_qemu
from harness.config.selector import parse_kernel_name
from harness.errors import UsageError
from harness.progress import SilentProgress

QUIET = SilentProgress()
pytestmark = pytest.mark.skipif(
    any(shutil.which(name) is None for name in PROGRAMS), reason=f"one of {', '.join(PROGRAMS)} is not installed"
)

NEW, OLD_72, NEW_72 = "7.3.4+deb13-arm64", "7.2.9+deb13-arm64", "7.2.12+deb13-arm64"


def split_kernel(archive: Archive, release: str, version: str) -> None:
    """The packages of a kernel, as Debian splits them since 6.16."""
    parts = [f"linux-{part}-{release}" for part in ("base", "binary", "modules")]
    archive.add(f"linux-image-{release}", version, f"Depends: initramfs-tools | dracut, {', '.join(parts)}")
    for part in parts:
        archive.add(part, version)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    folder = tmp_path_factory.mktemp("suites")
    arches = sorted({"arm64", "riscv64", host_arch()})
    trixie = Archive(folder / "debian", folder / "gpg", "trixie", arches)
    trixie.make_key()
    trixie.add("linux-image-arm64", "6.12.117-1", "Depends: linux-image-6.12.117+deb13-arm64 (= 6.12.117-1)")
    trixie.add("linux-image-6.12.117+deb13-arm64", "6.12.117-1", "Depends: kmod, linux-base (>= 4.12)")
    trixie.add("linux-source", "6.12.117-1", "Depends: linux-source-6.12", arch="all")
    trixie.add("linux-source-6.12", "6.12.117-1", arch="all")
    trixie.publish()
    backports = dataclasses.replace(trixie, suite="trixie-backports")
    backports.add("linux-image-arm64", "7.3.4-1~bpo13+1", f"Depends: linux-base-arm64, linux-image-{NEW}")
    split_kernel(backports, NEW, "7.3.4-1~bpo13+1")
    split_kernel(backports, OLD_72, "7.2.9-1~bpo13+1")
    split_kernel(backports, NEW_72, "7.2.12-1~bpo13+1")
    split_kernel(backports, "7.2.99+deb13-cloud-arm64", "7.2.99-1~bpo13+1")
    backports.add("linux-source", "7.3.4-1~bpo13+1", "Depends: binutils, linux-source-7.3", arch="all")
    backports.add("linux-source-7.3", "7.3.4-1~bpo13+1", arch="all")
    backports.publish()
    bookworm = dataclasses.replace(trixie, suite="bookworm")
    bookworm.add("linux-image-arm64", "6.1.176-1", "Depends: linux-image-6.1.0-50-arm64 (= 6.1.176-1)")
    bookworm.add("linux-image-6.1.0-50-arm64", "6.1.176-1", "Depends: kmod")
    bookworm.add("linux-source-6.1", "6.1.176-1", arch="all")
    bookworm.publish()
    yield trixie
    subprocess.run(["gpgconf", "--homedir", str(trixie.home), "--kill", "all"], check=False, capture_output=True)


@pytest.fixture(autouse=True)
def cache(everything: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(apt, "_KEYRINGS", (everything.keys,))
    monkeypatch.setenv("MEMHP_MIRROR", everything.uri)
    monkeypatch.setenv("MEMHP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MEMHP_SUITE", raising=False)
    return tmp_path / "cache"


def stock(text: str, arch: ArchSpec = ARM64) -> tuple[str, list[str]]:
    source, packages = find_stock(arch, parse_kernel_name(text), QUIET)
    assert {package.name for package in source.closure(packages, QUIET, dependencies=False)} == set(packages)
    return source.suite, packages


def source_of(text: str) -> tuple[str, str]:
    source, package = find_source(parse_kernel_name(text), "linux-source-6.12", QUIET)
    return source.suite, package


def parts(release: str) -> list[str]:
    return [f"linux-{part}-{release}" for part in ("image", "base", "binary", "modules")]


def test_a_suites_own_stock_kernel() -> None:
    assert stock("debian") == ("trixie", ["linux-image-6.12.117+deb13-arm64"])
    assert stock("debian:trixie-backports") == ("trixie-backports", parts(NEW))
    assert stock("debian:bookworm") == ("bookworm", ["linux-image-6.1.0-50-arm64"])


def test_a_stock_kernel_of_a_version_is_the_newest_plain_one_of_the_first_suite_that_has_it() -> None:
    assert stock("debian:7.2") == ("trixie-backports", parts(NEW_72))
    assert stock("debian:6.1") == ("bookworm", ["linux-image-6.1.0-50-arm64"])
    assert stock("debian:6.12") == ("trixie", ["linux-image-6.12.117+deb13-arm64"])
    assert stock(f"linux-image-{OLD_72}") == ("trixie-backports", parts(OLD_72))


def test_sources() -> None:
    assert source_of("purpose") == ("trixie", "linux-source-6.12")
    assert source_of("purpose:7.3") == ("trixie-backports", "linux-source-7.3")
    assert source_of("purpose:linux-source-7.3@trixie-backports") == ("trixie-backports", "linux-source-7.3")
    assert source_of("purpose:trixie-backports") == ("trixie-backports", "linux-source-7.3")


def test_a_name_is_no_pattern() -> None:
    """APT finds linux-source-6.1 in linux-source-6.12, since it searches with regular expressions."""
    assert source_of("purpose:6.1") == ("bookworm", "linux-source-6.1")
    with pytest.raises(UsageError, match=r"purpose:6\.1@trixie: Debian trixie has no package linux-source-6\.1"):
        source_of("purpose:6.1@trixie")


def test_backports_are_not_their_release() -> None:
    with pytest.raises(UsageError, match=r"Debian trixie-backports has no package linux-source-6\.12"):
        source_of("purpose:6.12@trixie-backports")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("debian:7.9", r"--kernel debian:7\.9 is in none of the suites trixie, trixie-backports, bookworm: ", "@SUITE"),
        ("debian:7.2@bookworm", r"Debian bookworm has no package linux-image-7\.2…-arm64", "debian:VERSION@SUITE"),
        ("debian:trixi", r"--kernel debian:trixi: copy:\S+ has no suite trixi\n", "for example trixie-backports"),
        (
            "linux-image-none@trixie",
            "--kernel linux-image-none@trixie: Debian trixie has no package",
            "apt-cache search",
        ),
    ],
)
def test_what_is_not_there(text: str, message: str, hint: str, cache: Path) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        stock(text)
    assert hint in str(caught.value.hint)
    assert not list((cache / "apt").glob("*trixi-*")), "a misspelt suite must not leave files"


def test_a_suite_without_the_architecture() -> None:
    with pytest.raises(UsageError, match="debian:bookworm: Debian bookworm has no package linux-image-riscv64"):
        stock("debian:bookworm", RISCV64)


def test_a_qemu_of_a_suite_that_is_none() -> None:
    with pytest.raises(UsageError, match=r"--qemu debian:trixi: copy:\S+ has no suite trixi"):
        find_qemu(ARM64, explicit="debian:trixi", able=lambda binary: None, progress=QUIET)


def test_which_suites_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert suites_to_ask() == ("trixie", "trixie-backports", "bookworm")
    monkeypatch.setenv("MEMHP_SUITE", "bookworm")
    assert suites_to_ask() == ("bookworm", "bookworm-backports", "bullseye")
    monkeypatch.setenv("MEMHP_SUITE", "sid")
    assert suites_to_ask() == ("sid", "sid-backports")
