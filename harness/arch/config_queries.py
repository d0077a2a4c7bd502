# SPDX-License-Identifier: GPL-2.0-or-later
"""Queries of a kernel's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.state import NotObserved

NO_CONFIG = NotObserved(
    "the kernel's configuration is unknown: it has no CONFIG_IKCONFIG_PROC, and no configuration file was found"
)


@dataclass(frozen=True, slots=True)
class Build:
    """A kernel's configuration: options by name without ``CONFIG_``, None if unknown.

    An unknown configuration is never guessed: each query returns NotObserved with the reason instead.
    """

    options: Mapping[str, str] | None

    def has(self, *names: str) -> bool | NotObserved:
        """True if any of the options is ``y``."""
        if self.options is None:
            return NO_CONFIG
        return any(self.options.get(name) == "y" for name in names)

    def value(self, name: str) -> str | NotObserved:
        """The value of the option, ``n`` if it is not set."""
        return NO_CONFIG if self.options is None else self.options.get(name, "n")

    def lacking(self, names: tuple[str, ...]) -> tuple[str, ...] | NotObserved:
        """Those of ``names`` that are neither built in nor a module."""
        if self.options is None:
            return NO_CONFIG
        return tuple(name for name in names if self.options.get(name) not in ("y", "m"))

    def number(self, name: str) -> int | NotObserved | None:
        """The numeric value of the option, None if it is not set; not observed if it is not a number."""
        if self.options is None:
            return NO_CONFIG
        text = self.options.get(name)
        if text is None:
            return None
        try:
            return int(text, 0)
        except ValueError:
            return NotObserved(f"CONFIG_{name} is not a number: {text[:40]!r}")
