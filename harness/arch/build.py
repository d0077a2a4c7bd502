# SPDX-License-Identifier: GPL-2.0-or-later
"""The one reader of a kernel's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.state import NotObserved

NO_CONFIG = NotObserved("the kernel's configuration is unknown: it has no CONFIG_IKCONFIG_PROC, and no file tells it")


@dataclass(frozen=True, slots=True)
class Build:
    """How a kernel was configured: options by name without ``CONFIG_``, None if nothing tells.

    What is not observed here is never guessed: each question answers with the reason instead.
    """

    options: Mapping[str, str] | None

    def has(self, *names: str) -> bool | NotObserved:
        """True if any of the options is ``y``."""
        if self.options is None:
            return NO_CONFIG
        return any(self.options.get(name) == "y" for name in names)

    def value(self, name: str) -> str | NotObserved:
        """What the option is set to, ``n`` if it is not."""
        return NO_CONFIG if self.options is None else self.options.get(name, "n")

    def lacking(self, names: tuple[str, ...]) -> tuple[str, ...] | NotObserved:
        """Those of ``names`` that are neither built in nor a module."""
        if self.options is None:
            return NO_CONFIG
        return tuple(name for name in names if self.options.get(name) not in ("y", "m"))

    def number(self, name: str) -> int | NotObserved | None:
        """The number that the option is set to, None if it is not set; not observed for what is no number."""
        if self.options is None:
            return NO_CONFIG
        text = self.options.get(name)
        if text is None:
            return None
        try:
            return int(text, 0)
        except ValueError:
            return NotObserved(f"CONFIG_{name} is no number: {text[:40]!r}")
