# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian mirror of this machine, from its own APT sources (sources.list(5), both formats)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from urllib.parse import urlsplit

from harness.errors import ArtefactError, UsageError

_ETC_APT = Path("/etc/apt")

#: Debian's names of releases, without suffixes such as -updates
RELEASES = frozenset(
    {"oldoldstable", "oldstable", "stable", "testing", "unstable", "sid"}
    | {"buster", "bullseye", "bookworm", "trixie", "forky", "duke"}
)

_OPTION_BLOCK = re.compile(r"\[([^]]*)\]")
_SCHEMES = ("http", "https", "ftp", "file", "copy", "mirror")


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """One ``deb`` line or stanza: a URI with its suites, components and the keyring it is signed by."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str


def debian_mirror(etc: Path = _ETC_APT) -> str:
    """The URI of the Debian archive: ``$MEMHP_MIRROR``, or from the machine's own sources.

    Raises UsageError for a MEMHP_MIRROR that is not a URI, ArtefactError if no source is Debian's archive.
    """
    own = os.environ.get("MEMHP_MIRROR")
    if own:
        if not _is_uri(own):
            raise UsageError(
                f"MEMHP_MIRROR={own!r} is not the URI of an archive", hint="for example http://HOST/debian"
            )
        return own.rstrip("/")
    entries = list(read_sources(etc))
    best = max(entries, key=_likeness, default=None)
    if best is None or _likeness(best) == 0:
        raise ArtefactError(
            f"none of the {len(entries)} APT sources in {etc} is the Debian archive",
            hint="set MEMHP_MIRROR to a Debian mirror, such as http://HOST/debian",
        )
    return best.uri.rstrip("/")


def read_sources(etc: Path = _ETC_APT) -> Iterator[SourceEntry]:
    """Every enabled entry for binary packages, in APT's order; entries that APT would reject are skipped."""
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        if path.suffix == ".list":
            yield from parse_list(text)
        elif path.suffix == ".sources":
            yield from parse_deb822(text)


def parse_list(text: str) -> Iterator[SourceEntry]:
    """The one-line form: ``deb [option=value …] uri suite component…``."""
    for line in text.splitlines():
        row = line.partition("#")[0].strip()
        block = _OPTION_BLOCK.search(row)
        options = dict(word.partition("=")[::2] for word in block[1].split()) if block is not None else {}
        words = _OPTION_BLOCK.sub(" ", row, count=1).split()
        if len(words) >= 4 and words[0] == "deb":
            yield SourceEntry(words[1], (words[2],), tuple(words[3:]), options.get("signed-by", ""))


def parse_deb822(text: str) -> Iterator[SourceEntry]:
    """The stanza form: ``Types``, ``URIs``, ``Suites``, ``Components``, ``Signed-By``."""
    for stanza in re.split(r"\n\s*\n", "\n".join(row for row in text.splitlines() if not row.startswith("#"))):
        # Its rules for fields are those of mail (deb822(5)).
        fields = HeaderParser().parsestr(stanza.lstrip("\n"))
        enabled = fields.get("Enabled", "yes").strip().lower() not in ("no", "false", "0")
        if enabled and "deb" in fields.get("Types", "").split():
            suites, components = (tuple(fields.get(name, "").split()) for name in ("Suites", "Components"))
            for uri in fields.get("URIs", "").split():
                yield SourceEntry(uri, suites, components, fields.get("Signed-By", "").strip())


def _is_uri(text: str) -> bool:
    parts = urlsplit(text)
    scheme = parts.scheme.rpartition("+")[0] or parts.scheme
    return scheme in (*_SCHEMES, "tor") and bool(parts.netloc or parts.path) and not re.search(r"[\s\[\]]", text)


def _likeness(entry: SourceEntry) -> int:
    """How much an entry looks like Debian's archive; 0 if it is not.

    Third parties publish packages for Debian's releases too, some with a component ``main``: Debian's keyring or the
    archive's usual last folder tells Debian's archive apart.
    """
    if not _is_uri(entry.uri) or "main" not in entry.components or not RELEASES & set(entry.suites):
        return 0
    last = urlsplit(entry.uri).path.rstrip("/").rpartition("/")[2]
    return 4 * ("debian-archive-keyring" in entry.signed_by) + 2 * (last in ("debian", "debian.list"))
