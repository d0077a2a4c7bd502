# SPDX-License-Identifier: GPL-2.0-or-later
"""Resolves the parts of several guests, once for equal guests."""

from __future__ import annotations

from harness.config.guest import GuestSpec
from harness.errors import InfraError, UnsupportedError
from harness.progress import Progress
from harness.scenarios.boot import Parts, resolve


class Resolver:
    """Resolves and remembers the parts of guests, or the reason for a failure."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._known: dict[tuple[object, ...], Parts | UnsupportedError | InfraError] = {}

    def resolve(self, spec: GuestSpec, needs: tuple[str, ...]) -> Parts | UnsupportedError | InfraError:
        """The result of ``harness.scenarios.boot.resolve``, or its error. Raises UsageError for an invalid request."""
        kernel = (spec.kernel, spec.build, spec.modules)
        key = (spec.arch, kernel, spec.qemu, spec.boot, needs)
        if key not in self._known:
            try:
                self._known[key] = resolve(spec, needs, self.progress)
            except (UnsupportedError, InfraError) as error:
                self._known[key] = error
        return self._known[key]
