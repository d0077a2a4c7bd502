# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests need of the machine, ``make test`` installs: none is skipped there for want of a program."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from apt_archive import PROGRAMS

ROOT = Path(__file__).parents[2]
#: program: its Debian package; dash is essential
PACKAGES = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "cc": "gcc",
    "chromium": "chromium",
    "cpio": "cpio",
    "dash": "",
    "dpkg-deb": "dpkg",
    "git": "git",
    "google-chrome": "",
    "gpg": "gnupg",
    "gpgconf": "gnupg",
    "ninja": "ninja-build",
    "patch": "patch",
    "readelf": "binutils",
    "zstd": "zstd",
}


def asked_for() -> Iterator[str]:
    """The programs that tests look for, by name."""
    yield from PROGRAMS
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "shutil.which":
                yield from (word.value for word in node.args if isinstance(word, ast.Constant))


def test_every_program_that_a_test_looks_for_is_installed() -> None:
    assert set(asked_for()) == PACKAGES.keys()
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    installed = re.findall(r"^(?:TEST_)?PACKAGES := (.*)$", text, re.MULTILINE)
    assert len(installed) == 2
    assert set(PACKAGES.values()) <= {"", *" ".join(installed).split()}
