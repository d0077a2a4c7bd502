# SPDX-License-Identifier: GPL-2.0-or-later
"""Versions of Linux, parsed only here."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: ``rc`` of a final release
_FINAL = 1 << 30

_RELEASE = re.compile(r"([0-9]{1,3})\.([0-9]{1,4})(?:\.([0-9]{1,4}))?(?:-rc([0-9]{1,3}))?")


@dataclass(frozen=True, slots=True, order=True)
class Release:
    """A version of Linux: 7.3-rc2 comes before 7.3, which comes before 7.3.1."""

    major: int
    minor: int
    patch: int = 0
    rc: int = _FINAL

    @property
    def branch(self) -> tuple[int, int]:
        """The stable branch: 6.12.117 belongs to 6.12."""
        return self.major, self.minor

    def __str__(self) -> str:
        patch = f".{self.patch}" if self.patch else ""
        return f"{self.major}.{self.minor}{patch}" + ("" if self.rc == _FINAL else f"-rc{self.rc}")


def parse_release(text: str, *, whole: bool = False) -> Release | None:
    """The version at the start of ``text`` (such as uname's), or with ``whole`` all of it; None if there is none."""
    match = _RELEASE.fullmatch(text) if whole else _RELEASE.match(text)
    if match is None:
        return None
    major, minor, patch, rc = match.groups()
    return Release(int(major), int(minor), int(patch or 0), _FINAL if rc is None else int(rc))
