# SPDX-License-Identifier: GPL-2.0-or-later
"""What one action came to, before anything was checked."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.check import DumpReport, OfflineReport, ResizeReport, Slope, TouchReport, UnplugReport


@dataclass
class Outcome:
    """How it ended: ``ending`` is one of ``check.findings.EXPECTATIONS``.

    done: the guest did it; refused: the guest would not; failed: it tried, and had to give up; qemu-refused: QEMU would
    not, and the guest was not asked.
    ``pending`` tells that the guest is still at work, so that no state can be expected of it yet. ``note`` says in
    words what a person wants to know of it. ``alarms`` are the console's lines of a kernel that died of the action, so
    that nothing more could be seen of it, ``trace`` all its lines from there on. ``inconclusive`` says why the step
    proves nothing although all went well, "" where it does. ``due`` says why a refusal is what this kernel owes, "" if
    it is not. The reports are evidence for the checks.
    """

    ending: str = "done"
    note: str = ""
    pending: bool = False
    alarms: tuple[str, ...] = ()
    trace: tuple[str, ...] = ()
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
        """Take note of a refusal; the first one stays."""
        if self.ending == "done":
            self.ending, self.note = ending, note
