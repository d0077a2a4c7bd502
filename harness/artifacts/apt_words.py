# SPDX-License-Identifier: GPL-2.0-or-later
"""APT's output and its meaning: lists of files, progress, errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

from harness.errors import ArtefactError
from harness.progress import Task

_URI_ROW = re.compile(r"'([^']+)' (\S+) (\d+) (?:SHA256:([0-9a-f]{64}))?")
_STATUS_ROW = re.compile(r"dlstatus:\d+:([0-9.]+):")
_KEPT_SETTING = re.compile(
    r"Acquire::(?:https?|ftp|socks|tor|ForceIPv[46]|Check-Valid-Until|Min-ValidTime|Max-ValidTime)\b", re.IGNORECASE
)
_NO_PACKAGE = re.compile(
    r"Unable to locate package (\S+)"
    r"|Unable to find a source package for (\S+)"
    r"|Can't select candidate version from package (\S+)"
    r"|Package '?(\S+?)'? has no installation candidate"
    r"|Couldn't find any package by \w+ '([^']+)'"
    r"|Release '\S+' for '(\S+)' was not found"
)
_NO_SUITE = re.compile(r"The repository '\S+ (\S+) (?:In)?Release' does not have a Release file")
_SIGNATURE = re.compile(
    r"NO_PUBKEY|BADSIG|EXPKEYSIG|REVKEYSIG|not signed|isn't signed|[Ss]ignatures? (?:couldn't|were|by)|clearsigned"
    r"|Hash Sum mismatch|unexpected size"
)
_SYNCING = re.compile(r"Mirror sync in progress")
_STALE = re.compile(r"not valid yet|Release file .*(?:expired|no longer valid)")
_SPACE = re.compile(r"No space left|enough (?:free )?space")
_NETWORK = re.compile(
    r"resolv|connect to|Connection (?:failed|refused|timed|reset)|timed out|unreachable|not respond|initiate the conn"
    r"|Proxy|407 ",
    re.IGNORECASE,
)
_ABSENT = re.compile(r"\b40[34]\b|does not have a Release file|File not found")


class NetworkError(ArtefactError):
    """The mirror could not be reached."""


class NoPackage(ArtefactError):
    """A suite has no such package for this architecture."""


class NoSuite(ArtefactError):
    """The mirror has no such suite."""


def no_package(name: str, suite: str) -> NoPackage:
    """The error for a package that ``suite`` lacks."""
    return NoPackage(
        f"Debian {suite} has no package {name}",
        hint="check the name (apt-cache search); NAME@SUITE selects a suite, MEMHP_SUITE sets the default",
    )


@dataclass(frozen=True, slots=True)
class PackageFile:
    """One file of the archive; ``file`` is its local name, which carries package and version."""

    file: str
    uri: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """The package."""
        return self.file.split("_")[0]

    @property
    def version(self) -> str:
        """The Debian version."""
        return unquote(self.file.split("_")[1].removesuffix(".dsc"))


def parse_uris(said: str) -> tuple[PackageFile, ...]:
    """The files in the answer of ``apt-get --print-uris``, sorted; raises ArtefactError for one without a SHA-256."""
    files: list[PackageFile] = []
    for row in said.splitlines():
        match = _URI_ROW.match(row)
        if match is None:
            continue
        if match[4] is None or "/" in match[2] or match[2].startswith("."):
            raise ArtefactError(f"APT's answer has no SHA-256 or no plain file name: {row[:200]}")
        files.append(PackageFile(match[2], match[1], int(match[3]), match[4]))
    return tuple(sorted(files, key=lambda file: file.file))


def kept_settings(dump: str) -> list[str]:
    """The lines of ``apt-config dump`` that say how to reach a mirror; none that could weaken APT's checks."""
    return [
        row
        for row in dump.splitlines()
        if _KEPT_SETTING.match(row) and not re.search(r"verify-|allow", row.split()[0], re.IGNORECASE)
    ]


def watcher(task: Task) -> Callable[[str], None]:
    """A reader of APT's status lines (APT::Status-Fd) that moves ``task``, whose total is 100."""

    def on_line(row: str) -> None:
        match = _STATUS_ROW.match(row)
        if match is not None:
            task.update(done=float(match[1]))

    return on_line


def apt_error(said: str, mirror: str, suite: str) -> ArtefactError:
    """The error that APT's message ``said`` means, with a hint; a NetworkError if the mirror was not reached."""
    rows = [row for row in said.splitlines() if row.startswith(("E:", "W:", "Err:", "  "))]
    text = "\n".join(rows) or said
    package = _NO_PACKAGE.search(text)
    if package is not None:
        return no_package(next(group for group in package.groups() if group), suite)
    absent = _NO_SUITE.search(text)
    if absent is not None:
        return NoSuite(
            f"{mirror} has no suite {absent[1]}",
            hint="check the name (for example trixie-backports), or set MEMHP_MIRROR to a mirror that has it",
        )
    if _SYNCING.search(text):
        return ArtefactError(
            f"the package lists of {mirror} do not match its signature:\n{text}",
            hint="the mirror is being updated: try again in a few hours, or set MEMHP_MIRROR to another mirror",
        )
    if _SIGNATURE.search(text):
        return ArtefactError(
            f"files from {mirror} fail verification:\n{text}",
            hint="update the keys (sudo apt-get install debian-archive-keyring), or set MEMHP_MIRROR to another mirror",
        )
    if _STALE.search(text):
        return ArtefactError(
            f"{mirror} is out of date, or this machine's clock is wrong:\n{text}",
            hint="check the clock (date), or set MEMHP_MIRROR to another mirror",
        )
    if _SPACE.search(text):
        return ArtefactError(
            f"no space left for packages:\n{text}", hint="free some disk space, or set MEMHP_CACHE to a larger disk"
        )
    if _NETWORK.search(text):
        return NetworkError(
            f"cannot reach {mirror}:\n{text}",
            hint="check the network and APT's proxy settings, or set MEMHP_MIRROR to a reachable mirror",
        )
    if _ABSENT.search(text):
        return ArtefactError(
            f"{mirror} does not have the requested files:\n{text}",
            hint="try again, set MEMHP_MIRROR to a complete Debian mirror, or set MEMHP_SUITE to a suite that it has",
        )
    return ArtefactError(f"APT failed:\n{text}")
