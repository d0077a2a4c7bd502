# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host still sees of a guest that died or hangs: all that takes nothing but QEMU and the guest's memory.

The kernel may have stopped in the middle of a change, so nothing of it is judged.
"""

from __future__ import annotations

from harness.collect.hostside import KERNEL_SOURCES, KernelView, kernel_sources
from harness.collect.look import ask_qemu, format_absent
from harness.collect.sources import ABSENT
from harness.deadline import Deadline
from harness.errors import InfraError
from harness.kmem.physical_memory import PhysicalMemory
from harness.qemu.machine import Machine
from harness.state import NotObserved

#: the raw sources of such a look
LOST_SOURCES = ("devices", "backends", *KERNEL_SOURCES)


def look_at_lost(
    machine: Machine, kernel: KernelView, *, since: int | NotObserved, booted: int, deadline: Deadline
) -> dict[str, bytes]:
    """The raw sources of a snapshot without the guest, with the reasons for those that are missing.

    ``since`` is the number of the first message of the kernel's log that is wanted, ``booted`` that of QEMU's last
    event at a time when the kernel of this view had booted.
    """
    raw: dict[str, bytes] = {}
    try:
        raw, places = ask_qemu(machine, deadline)
        with PhysicalMemory(places) as memory:
            with machine.paused(deadline):
                copy = kernel.read(memory, since)
                if any(event.name == "RESET" for event in machine.qmp.events(booted)):
                    copy = NotObserved("the machine was reset, so this may be another kernel's memory")
            found, absent = kernel_sources(copy, memory)
        raw |= found
    except InfraError as error:
        absent = {name: error.message.replace("\n", " ") for name in LOST_SOURCES if name not in raw}
    raw[ABSENT] = format_absent(absent)
    return raw
