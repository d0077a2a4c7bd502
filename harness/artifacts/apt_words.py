# SPDX-License-Identifier: GPL-2.0-or-later
"""APT's output and its meaning: lists of files, progress, errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from harness.errors import ArtefactError
from harness.progress import Task

_URI_ROW = re.compile(r"'[^']+' (\S+) (\d+) (?:SHA256:([0-9a-f]{64}))?")
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
class Package:
    """One file of the archive: its path after the download, whose name carries package and version, size and hash."""

    path: Path
    size: int = 0
    sha256: str = ""

    @property
    def name(self) -> str:
        return self.path.name.split("_")[0]

    @property
    def version(self) -> str:
        return unquote(self.path.name.split("_")[1].removesuffix(".dsc"))


def parse_uris(said: str, folder: Path = Path()) -> list[Package]:
    """The files that ``apt-get --print-uris`` lists, sorted; raises ArtefactError for one without a SHA-256."""
    files = []
    for row in said.splitlines():
        match = _URI_ROW.match(row)
        if match is None:
            continue
        name, size, sha256 = match.groups()
        if sha256 is None or "/" in name or name.startswith("."):
            raise ArtefactError(f"APT's answer has no SHA-256 or no plain file name: {row[:200]}")
        files.append(Package(folder / name, int(size), sha256))
    return sorted(files, key=lambda file: file.path.name)


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


#: patterns of APT's messages, in the order of the search: the error, its meaning, what to do
_COMPLAINTS: tuple[tuple[str, type[ArtefactError], str, str], ...] = (
    (
        "Mirror sync in progress",
        ArtefactError,
        "the package lists of {mirror} do not match its signature",
        "the mirror is being updated: try again in a few hours, or set MEMHP_MIRROR to another mirror",
    ),
    (
        "NO_PUBKEY|BADSIG|EXPKEYSIG|REVKEYSIG|not signed|isn't signed|[Ss]ignatures? (?:couldn't|were|by)|clearsigned"
        "|Hash Sum mismatch|unexpected size",
        ArtefactError,
        "files from {mirror} fail verification",
        "update the keys (sudo apt-get install debian-archive-keyring), or set MEMHP_MIRROR to another mirror",
    ),
    (
        "not valid yet|Release file .*(?:expired|no longer valid)",
        ArtefactError,
        "{mirror} is out of date, or this machine's clock is wrong",
        "check the clock (date), or set MEMHP_MIRROR to another mirror",
    ),
    (
        "No space left|enough (?:free )?space",
        ArtefactError,
        "no space left for packages",
        "free some disk space, or set MEMHP_CACHE to a larger disk",
    ),
    (
        "(?i:resolv|connect to|Connection (?:failed|refused|timed|reset)|timed out|unreachable|not respond"
        "|initiate the conn|Proxy|407 )",
        NetworkError,
        "cannot reach {mirror}",
        "check the network and APT's proxy settings, or set MEMHP_MIRROR to a reachable mirror",
    ),
    (
        r"\b40[34]\b|does not have a Release file|File not found",
        ArtefactError,
        "{mirror} does not have the requested files",
        "try again, set MEMHP_MIRROR to a complete Debian mirror, or set MEMHP_SUITE to a suite that it has",
    ),
)


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
    for pattern, kind, meaning, remedy in _COMPLAINTS:
        if re.search(pattern, text):
            return kind(f"{meaning.format(mirror=mirror)}:\n{text}", hint=remedy)
    return ArtefactError(f"APT failed:\n{text}")
