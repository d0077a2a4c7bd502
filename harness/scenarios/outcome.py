# SPDX-License-Identifier: GPL-2.0-or-later
"""The outcome of one action, before anything is checked."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.check import DumpReport, OfflineReport, ResizeReport, Slope, TouchReport, UnplugReport
from harness.state import HostTime
from harness.units import AddrRange


@dataclass(frozen=True, slots=True)
class Rejection:
    """What QEMU or the guest ``said`` as it refused something, "" if only the kernel's log can tell.

    ``place`` is the physical memory that was refused, None if it is unknown.
    """

    said: str
    place: AddrRange | None = None


@dataclass
class Outcome:
    """How it ended: ``ending`` is one of ``check.findings.EXPECTATIONS``.

    done: the guest did it; refused: the guest refused; failed: the guest tried and failed; qemu-refused: QEMU refused,
    and the guest was not asked. ``pending``: the guest is still working, so its state cannot be predicted yet.
    ``settled``: only writes to the states of memory blocks did it, and they have returned. ``note`` is a remark for
    people. ``alarms`` are the console's alarming lines of a kernel that died of the action, ``trace``
    all lines from the first alarm on. ``stacks`` is what the kernel of a guest that stopped answering printed about its
    tasks and CPUs. ``host`` is what the host gave QEMU before each report of a watchdog. ``inconclusive`` is the reason
    if the step proves nothing although it succeeded, else "". ``due`` is the reason if this kernel must refuse, else
    "". ``refusals`` are those of the step, each one; ``says`` are texts of the refusal that is meant, () if any is. The
    reports are evidence for the checks.
    """

    ending: str = "done"
    note: str = ""
    pending: bool = False
    settled: bool = False
    alarms: tuple[str, ...] = ()
    trace: tuple[str, ...] = ()
    stacks: tuple[str, ...] = ()
    host: tuple[HostTime, ...] = ()
    inconclusive: str = ""
    due: str = ""
    refusals: list[Rejection] = field(default_factory=list)
    says: tuple[str, ...] = ()
    unplugs: list[UnplugReport] = field(default_factory=list)
    resizes: list[ResizeReport] = field(default_factory=list)
    touches: list[TouchReport] = field(default_factory=list)
    offlines: list[OfflineReport] = field(default_factory=list)
    slopes: tuple[Slope, ...] = ()
    unread: tuple[str, ...] = ()
    dumps: tuple[DumpReport, ...] = ()

    def refuse(
        self, note: str, ending: str = "refused", *, said: str | None = None, place: AddrRange | None = None
    ) -> None:
        """Record a ``Rejection`` (``said`` is ``note`` if None); ``note`` and ``ending`` of the first one count."""
        self.refusals.append(Rejection(note if said is None else said, place))
        if self.ending == "done":
            self.ending, self.note = ending, note
