# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host reads of a guest's kernel without asking it: page tables, from the guest's memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.arch import ArchSpec
from harness.arch.pagetable import TableFormat
from harness.deadline import Deadline
from harness.kmem.memory import PhysicalMemory, Region
from harness.kmem.walk import TableImage, copy_tables, walk
from harness.parsers.hosttables import SECTIONS, TABLES, format_tables
from harness.qemu.machine import Machine
from harness.state import KernelFacts, MemoryDevice, NotObserved
from harness.units import AddrRange

PAUSE = "pause"
#: raw sources that come from the guest's memory
KERNEL_SOURCES = (TABLES, SECTIONS, PAUSE)


@dataclass(frozen=True, slots=True)
class HostCopy:
    """Copies of the kernel's own structures, made while the guest stood still for ``pause`` seconds."""

    tables: TableImage
    pause: float


def table_format(arch: ArchSpec, facts: KernelFacts) -> TableFormat | NotObserved:
    """Where and how this boot keeps its page tables, NotObserved where the kernel does not tell."""
    if isinstance(facts.vmcoreinfo, NotObserved):
        return facts.vmcoreinfo
    try:
        return arch.table_format(facts.vmcoreinfo, facts.page_size)
    except KeyError as missing:
        return NotObserved(f"the kernel's vmcoreinfo has no {missing.args[0]}")
    except ValueError as wrong:
        return NotObserved(f"the kernel's vmcoreinfo is not understood: {wrong}")


def regions(machine: Machine, devices: Iterable[MemoryDevice], fds: Mapping[str, Path]) -> list[Region]:
    """The guest's physical memory: boot RAM, then each plugged device, and the file behind each."""
    places = machine.spec.boot_ram() | {
        device.backend: AddrRange.sized(device.range.start, device.max_size) for device in devices
    }
    return [Region(place, fds[backend]) for backend, place in places.items() if backend in fds]


def read_kernel(
    machine: Machine, places: Iterable[Region], facts: KernelFacts, deadline: Deadline
) -> tuple[dict[str, bytes], dict[str, str]]:
    """The raw sources of KERNEL_SOURCES, and why the others of them could not be read.

    The guest is paused for as long as copying takes; everything else happens while it runs again. Raises QemuError,
    DeadlineExpired, InfraError for memory that cannot be mapped.
    """
    tables = table_format(machine.spec.arch, facts)
    if isinstance(tables, NotObserved):
        return {}, dict.fromkeys(KERNEL_SOURCES, tables.reason)
    with PhysicalMemory(places) as memory:
        copy = _copy(machine, memory, tables, deadline)
    found = {
        TABLES: format_tables(walk(copy.tables).to_state()).encode(),
        PAUSE: f"{copy.pause:.6f}\n".encode(),
    }
    return found, {SECTIONS: "not read"}


def _copy(machine: Machine, memory: PhysicalMemory, tables: TableFormat, deadline: Deadline) -> HostCopy:
    with machine.paused(deadline):
        started = time.monotonic()
        image = copy_tables(memory, tables)
        pause = time.monotonic() - started
    return HostCopy(image, pause)
