# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb that resets the machine, and the two that only look: dump and check."""

from __future__ import annotations

from dataclasses import dataclass

from harness.check import DumpReport
from harness.deadline import Deadline
from harness.model.devices.pmem import Pmem
from harness.parsers.elf_core import load_segments
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.scenarios.verbs.plan import Impossible, Plan
from harness.scenarios.verbs.verb import Line, Verb
from harness.units import MIB, AddrRange, intersect_ranges, subtract_ranges


@dataclass(frozen=True, slots=True)
class RebootVerb(Verb):
    """Reset the machine and connect to the rebooted guest, with its devices."""

    name = "reboot"
    summary = "reset the machine with all plugged devices; the following steps run on the rebooted kernel"
    line = Line("reboot")

    def follow(self, plan: Plan, expect: str = "done") -> None:
        for id, device in plan.devices.items():
            if device.kind.persistent:
                message = f"the model cannot follow the namespace of {id!r} through a boot"
                raise Impossible(None, message, "unplug it first")
        for id in plan.loads:
            raise Impossible(None, f"the load {id!r} does not survive a boot", "unload it first")
        for id in plan.held:
            raise Impossible(None, f"the pages held as {id!r} do not survive a boot", "release them first")

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        session.reboot(deadline)
        return Outcome(note=f"another boot, of {len(session.model.devices)} devices as well")


@dataclass(frozen=True, slots=True)
class DumpVerb(Verb):
    """Read the segments of crash dumps, from the kernel and from QEMU."""

    name = "dump"
    summary = "compare the segments of crash dumps (/proc/kcore, QEMU's dump-guest-memory) with /proc/iomem"
    line = Line("dump")

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        kernel, shape = session.layout.kernel, session.layout.machine
        head = session.guest.shell.must("head -c 65536 /proc/kcore", deadline=deadline)
        segments = load_segments(head, "/proc/kcore")
        if kernel is not None:
            segments = tuple(one for one in segments if kernel.linear_window.covers(one.virtual))
        everything = AddrRange(0, max(shape.device_window().end, *(one.physical.end for one in segments)))
        window = shape.device_window()
        # QEMU refuses to dump nothing, and boot memory is always there.
        wanted = AddrRange(shape.arch.ram_base + shape.memory - 2 * MIB, window.end)
        dumped = load_segments(session.guest.machine.dump_head(wanted, deadline), "dump-guest-memory")
        pmem_ranges = [device.range for device in session.model.devices.values() if isinstance(device, Pmem)]
        outside = subtract_ranges(intersect_ranges([window], [one.physical for one in dumped]), pmem_ranges)
        physical = tuple(sorted(one.physical for one in segments))
        by_kernel = DumpReport("/proc/kcore", everything, physical)
        by_qemu = DumpReport("dump-guest-memory", window, tuple(outside))
        return Outcome(
            note=f"{len(physical)} segments in /proc/kcore, {len(dumped)} in QEMU's dump", dumps=(by_kernel, by_qemu)
        )


@dataclass(frozen=True, slots=True)
class CheckVerb(Verb):
    """Do nothing: only take a snapshot and check it."""

    name = "check"
    summary = "take a snapshot and check it, as after every step"
    line = Line("check")

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        return Outcome()
