# SPDX-License-Identifier: GPL-2.0-or-later
"""The outcome of one action, before anything is checked."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.check import DumpReport, OfflineReport, ResizeReport, Slope, TouchReport, UnplugReport


@dataclass
class Outcome:
    """How it ended: ``ending`` is one of ``check.findings.EXPECTATIONS``.

    done: the guest did it; refused: the guest refused; failed: the guest tried and failed; qemu-refused: QEMU refused,
    and the guest was not asked. ``pending``: the guest is still working, so its state cannot be predicted yet. ``note``
    is a remark for people. ``alarms`` are the console's alarming lines of a kernel that died of the action, ``trace``
    all lines from the first alarm on. ``stacks`` is what the kernel of a guest that stopped answering printed about its
    tasks and CPUs. ``inconclusive`` is the reason if the step proves nothing although it succeeded, else "". ``due`` is
    the reason if this kernel must refuse, else "". The reports are evidence for the checks.
    """

    ending: str = "done"
    note: str = ""
    pending: bool = False
    alarms: tuple[str, ...] = ()
    trace: tuple[str, ...] = ()
    stacks: tuple[str, ...] = ()
    inconclusive: str = ""
    due: str = ""
    unplugs: list[UnplugReport] = field(default_factory=list)
    resizes: list[ResizeReport] = field(default_factory=list)
    touches: list[TouchReport] = field(default_factory=list)
    offlines: list[OfflineReport] = field(default_factory=list)
    slopes: tuple[Slope, ...] = ()
    unread: tuple[str, ...] = ()
    dumps: tuple[DumpReport, ...] = ()

    def refuse(self, note: str, ending: str = "refused") -> None:
        """Record a refusal; the first one counts."""
        if self.ending == "done":
            self.ending, self.note = ending, note
