# SPDX-License-Identifier: GPL-2.0-or-later
"""A signed Debian archive in a folder, for tests of code that reads archives."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("apt-get", "apt-cache", "dpkg-deb", "gpg", "gpgconf")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Archive:
    """A Debian archive with its own key; ``publish`` rewrites the indices of ``suite`` for the packages in its pool.

    Backports are marked like Debian's: APT installs packages from there only on request.
    """

    root: Path
    home: Path
    suite: str = "trixie"
    arches: list[str] = field(default_factory=lambda: ["arm64"])

    @property
    def pool(self) -> Path:
        return self.root / "pool" / self.suite

    @property
    def keys(self) -> Path:
        return self.home / "keys.gpg"

    @property
    def uri(self) -> str:
        return f"copy:{self.root}"

    def gpg(self, *arguments: str) -> None:
        command = ["gpg", "--homedir", str(self.home), "--batch", "--yes", "--quiet", *arguments]
        subprocess.run(command, check=True, capture_output=True)

    def make_key(self) -> None:
        self.home.mkdir(mode=0o700)
        self.gpg("--passphrase", "", "--quick-gen-key", "Test <test@example.org>", "ed25519", "sign", "never")
        self.gpg("--output", str(self.keys), "--export")

    def add(self, name: str, version: str, *fields: str, mode: int = 0o755, arch: str = "arm64") -> Path:
        tree = self.home / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        (tree / "DEBIAN").mkdir(parents=True)
        rows = [f"Package: {name}", f"Version: {version}", f"Architecture: {arch}", "Maintainer: Test", *fields]
        (tree / "DEBIAN" / "control").write_text("\n".join([*rows, "Description: a test", ""]))
        (tree / "DEBIAN" / "postinst").write_text(f"#!/bin/sh\ntouch {self.home}/ran\n")
        for part in ("", "postinst"):
            # dpkg-deb refuses what only its owner may read, as files are with a umask of 077.
            (tree / "DEBIAN" / part).chmod(0o755)
        (tree / "usr" / "bin").mkdir(parents=True)
        (tree / "usr" / "bin" / name).write_text(version)
        (tree / "usr" / "bin" / name).chmod(mode)
        plain = version.partition(":")[2] or version
        path = self.pool / f"{name}_{plain}_{arch}.deb"
        path.parent.mkdir(parents=True, exist_ok=True)
        command = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(path)]
        subprocess.run(command, check=True, capture_output=True)
        return path

    def publish(self) -> None:
        folder = self.root / "dists" / self.suite
        indices = {"main/source/Sources": "\n".join(self._source(path) for path in self._pool("*.dsc"))}
        for arch in self.arches:
            packages = [path for kind in (arch, "all") for path in self._pool(f"*_{kind}.deb")]
            indices[f"main/binary-{arch}/Packages"] = "\n".join(self._stanza(path) for path in packages)
        rows = [f"Suite: {self.suite}", f"Codename: {self.suite}", "Components: main"]
        rows += [f"Architectures: {' '.join(self.arches)}", "Date: Thu, 01 Jan 2026 00:00:00 UTC"]
        if self.suite.endswith("-backports"):
            rows += ["NotAutomatic: yes", "ButAutomaticUpgrades: yes"]
        rows.append("SHA256:")
        for name, text in indices.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            rows.append(f" {digest(path)} {path.stat().st_size} {name}")
        (folder / "Release").write_text("\n".join(rows) + "\n")
        self.gpg("--output", str(folder / "InRelease"), "--clearsign", str(folder / "Release"))
        (folder / "Release").unlink()

    def _pool(self, pattern: str) -> list[Path]:
        return sorted(self.pool.glob(pattern))

    def _stanza(self, path: Path) -> str:
        said = subprocess.run(["dpkg-deb", "--field", str(path)], check=True, capture_output=True, text=True).stdout
        where = path.relative_to(self.root)
        return f"{said}Filename: {where}\nSize: {path.stat().st_size}\nSHA256: {digest(path)}\n"

    def _source(self, path: Path) -> str:
        name, version = path.stem.split("_")
        files = f"Checksums-Sha256:\n {digest(path)} {path.stat().st_size} {path.name}\n"
        old = f"Files:\n {hashlib.md5(path.read_bytes()).hexdigest()} {path.stat().st_size} {path.name}\n"
        told = f"Package: {name}\nBinary: {name}\nVersion: {version}\nFormat: 1.0\nDirectory: pool/{self.suite}\n"
        return f"{told}{old}{files}"
