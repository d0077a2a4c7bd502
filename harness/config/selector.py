# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of kernels and QEMUs that come from Debian: one grammar, the suite a part of it.

::

    debian                      from the default suite         linux-image-…[@SUITE]     that package
    debian:SUITE                from another suite, such as debian:trixie-backports
    debian:7.2[@SUITE]          the newest kernel of that version (without a suite: from the first that has one)
    purpose                     built from the default suite's long-term source
    purpose:7.3[@SUITE]         from linux-source-7.3; the package's full name works as well
    purpose:SUITE               from the source of that suite's own kernel
    purpose…+FLAVOUR            with one more fragment; repeatable
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from harness.errors import UsageError

DEBIAN = "debian"
PURPOSE = "purpose"
IMAGE_PREFIX = "linux-image-"
SOURCE_PREFIX = "linux-source-"

_VERSION = re.compile(r"\d+\.\d+")
_SUITE = re.compile(r"[a-z][a-z0-9.-]*")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_GRAMMAR = "for example debian:trixie-backports, debian:7.2, linux-image-…@SUITE, purpose:7.3 or purpose:6.1@bookworm"


@dataclass(frozen=True, slots=True)
class DebianName:
    """One parsed name; ``text`` as given.

    ``package`` is the named package, ``version`` a kernel's major and minor number (``7.2``), ``suite`` a Debian suite;
    each None if the name does not specify it. ``flavours`` are those of a purpose-built kernel.
    """

    kind: Literal["debian", "purpose"]
    text: str
    package: str | None = None
    version: str | None = None
    suite: str | None = None
    flavours: tuple[str, ...] = ()


def is_debian_name(text: str) -> bool:
    """Whether ``text`` is a name of this grammar rather than a path; it may be invalid."""
    word = re.split("[:@+]", text, maxsplit=1)[0]
    return word in (DEBIAN, PURPOSE) or text.startswith(IMAGE_PREFIX)


def parse_kernel_name(text: str) -> DebianName:
    """Parse a kernel's name; raises UsageError for an invalid one."""
    assert is_debian_name(text)
    if text.startswith(IMAGE_PREFIX):
        package, at, suite = text.partition("@")
        return DebianName("debian", text, _package(text, package, IMAGE_PREFIX), suite=_suite(text, suite, at))
    # Only a purpose-built kernel has flavours: names of Debian packages may contain a plus.
    plain, *flavours = text.split("+") if text.startswith(PURPOSE) else [text]
    head, at, suite = plain.partition("@")
    kind, colon, what = head.partition(":")
    named = _suite(text, suite, at)
    if not colon:
        return DebianName(_kind(kind), text, suite=named, flavours=tuple(flavours))
    if _VERSION.fullmatch(what):
        return DebianName(_kind(kind), text, version=what, suite=named, flavours=tuple(flavours))
    prefix = IMAGE_PREFIX if kind == DEBIAN else SOURCE_PREFIX
    if what.startswith(prefix):
        return DebianName(_kind(kind), text, _package(text, what, prefix), suite=named, flavours=tuple(flavours))
    if named is not None:
        raise UsageError(f"{text}: {what!r} is neither a version nor a {prefix}… package", hint=_GRAMMAR)
    return DebianName(_kind(kind), text, suite=_suite(text, what, colon), flavours=tuple(flavours))


def parse_qemu_name(text: str) -> DebianName:
    """Parse a QEMU's name, ``debian`` or ``debian:SUITE``; raises UsageError for anything else."""
    name = parse_kernel_name(text)
    if name.kind != DEBIAN or name.package is not None or name.version is not None:
        raise UsageError(f"{text} does not name a QEMU", hint="use debian:SUITE (such as debian:trixie), or a path")
    return name


def _kind(word: str) -> Literal["debian", "purpose"]:
    return "debian" if word == DEBIAN else "purpose"


def _suite(text: str, suite: str, mark: str) -> str | None:
    if not mark:
        return None
    if not _SUITE.fullmatch(suite):
        raise UsageError(f"{text}: {suite!r} is not the name of a Debian suite", hint=_GRAMMAR)
    return suite


def _package(text: str, package: str, prefix: str) -> str:
    if not _PACKAGE.fullmatch(package) or package == prefix:
        raise UsageError(f"{text}: {package!r} is not the name of a Debian package", hint=_GRAMMAR)
    return package
