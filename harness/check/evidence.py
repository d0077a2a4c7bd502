# SPDX-License-Identifier: GPL-2.0-or-later
"""The input of the checks of one step."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from fractions import Fraction

from harness.check.witnesses import Views, views_of
from harness.model.boot_layout import BootLayout
from harness.model.expected import ExpectedState
from harness.state import GuestState, HostTime
from harness.units import AddrRange


@dataclass(frozen=True, slots=True)
class UnplugReport:
    """One unplug request of device ``id`` and the events that could end it, in order of arrival.

    ``endings`` holds the name of each terminal event (DEVICE_DELETED, MEM_UNPLUG_ERROR, DEVICE_UNPLUG_GUEST_ERROR,
    ACPI_OST_REFUSED); ``refused`` tells whether the device is still there.
    """

    id: str
    endings: tuple[str, ...]
    refused: bool


@dataclass(frozen=True, slots=True)
class ResizeReport:
    """One change of requested-size: ``size`` is the plugged size in bytes, by QEMU, after the wait."""

    id: str
    requested: int
    size: int
    qemu_refused: str | None = None


@dataclass(frozen=True, slots=True)
class TouchReport:
    """Memory allocated, written and read back in the guest: ``used`` counts bytes that lay in each wanted range."""

    pages: int
    mismatches: int
    used: tuple[tuple[AddrRange, int], ...]


@dataclass(frozen=True, slots=True)
class OfflineReport:
    """A request to offline the online memory block ``index``: ``error`` is None, or the errno's name."""

    index: int
    error: str | None


@dataclass(frozen=True, slots=True)
class DumpReport:
    """The physical ranges of ``source``'s PT_LOAD segments, as far as they lie in ``scope``."""

    source: str
    scope: AddrRange
    ranges: tuple[AddrRange, ...]


@dataclass(frozen=True, slots=True)
class Slope:
    """The line through a counter's values over the rounds of a soak: ``each`` per round."""

    name: str
    each: Fraction
    unit: str

    @property
    def leaks(self) -> bool:
        """True if it is not level."""
        return self.each != 0

    @property
    def spelled(self) -> str:
        """``4096 bytes a round``."""
        each = self.each
        number = str(each.numerator) if each.denominator == 1 else f"{float(each):.2f}"
        return f"{number} {self.unit} a round"


@dataclass(frozen=True)
class Evidence:
    """The evidence of one step: the ``expected`` and the ``observed`` state.

    ``before`` is the snapshot of the previous step, None if there is none; after an action that ``failed``, nothing
    may differ from it. ``slopes`` are those of a soak's rounds, ``unread`` says which of its counters were not read,
    and why. ``alarms`` are the console's lines of a kernel that died in the step: ``observed`` is then older.
    ``host`` is what the host gave QEMU before each report of a watchdog.
    """

    layout: BootLayout
    expected: ExpectedState
    observed: GuestState
    unplugs: tuple[UnplugReport, ...] = ()
    resizes: tuple[ResizeReport, ...] = ()
    touches: tuple[TouchReport, ...] = ()
    offlines: tuple[OfflineReport, ...] = ()
    dumps: tuple[DumpReport, ...] = ()
    slopes: tuple[Slope, ...] = ()
    unread: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()
    host: tuple[HostTime, ...] = ()
    failed: bool = False
    before: GuestState | None = None

    @functools.cached_property
    def views(self) -> Views:
        """The page tables of this step and of the boot, indexed once for all checks."""
        return views_of(self.layout, self.observed)
