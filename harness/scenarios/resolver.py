# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of several guests, had once for all that take the same."""

from __future__ import annotations

from harness.config.guest import GuestSpec
from harness.errors import InfraError, UnsupportedError
from harness.progress import Progress
from harness.scenarios.boot import Parts, resolve


class Resolver:
    """Has the parts of guests, or the reason why there are none; remembers both."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._known: dict[tuple[object, ...], Parts | UnsupportedError | InfraError] = {}

    def resolve(self, spec: GuestSpec, needs: tuple[str, ...]) -> Parts | UnsupportedError | InfraError:
        """What ``harness.scenarios.boot.resolve`` returns or raises. Raises UsageError for a wrong request."""
        kernel = (spec.kernel, spec.build, spec.modules)
        key = (spec.arch, kernel, spec.qemu, spec.boot, needs)
        if key not in self._known:
            try:
                self._known[key] = resolve(spec, needs, self.progress)
            except (UnsupportedError, InfraError) as error:
                self._known[key] = error
        return self._known[key]
