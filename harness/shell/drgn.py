# SPDX-License-Identifier: GPL-2.0-or-later
"""``drgn`` at the prompt: a debugger on the paused guest's memory, read from the host."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.arch import ArchSpec
from harness.arch.pagetable import TableFormat
from harness.collect.hostside import current_regions, table_format
from harness.errors import UnsupportedError
from harness.kmem.address import PageMap
from harness.kmem.physical_memory import OutsideMemory, PhysicalMemory
from harness.kmem.table_walk import copy_tables, walk
from harness.shell.explorer import Explorer
from harness.state import NotObserved
from harness.units import AddrRange

if TYPE_CHECKING:
    import drgn

#: virtual addresses of the kernel
_KERNEL = AddrRange(1 << 63, 1 << 64)


def require_drgn() -> None:
    """Raise UnsupportedError unless drgn is installed."""
    if importlib.util.find_spec("drgn") is None:
        raise UnsupportedError("drgn", "drgn is not installed", hint="pip install -e '.[drgn]'")


def open_drgn(explorer: Explorer, vmlinux: Path | None = None) -> None:
    """Run drgn's own prompt on the paused guest, with the debug info of ``vmlinux``.

    Without ``vmlinux``, it is looked for beside the Image. Raises UnsupportedError for what is missing.
    """
    require_drgn()
    guest = explorer.session.guest
    spec = guest.machine.spec
    debug_info = vmlinux or next(spec.beside("vmlinux"), None)
    if debug_info is None or not debug_info.is_file():
        what = f"the kernel {spec.packed or spec.kernel}" if vmlinux is None else f"this kernel at {vmlinux}"
        raise UnsupportedError(
            "drgn",
            f"no debug info for {what}",
            hint="drgn path/to/vmlinux of a kernel built with CONFIG_DEBUG_INFO, or use --kernel purpose+dwarf",
        )
    if isinstance(guest.facts.vmcoreinfo, NotObserved):
        raise UnsupportedError("drgn", f"this kernel has no vmcoreinfo: {guest.facts.vmcoreinfo.reason}")
    if not explorer.interactive:
        raise UnsupportedError("drgn", "drgn's prompt needs a terminal", hint="run memhp shell in one, without -c")
    tables = table_format(guest.machine.spec.arch, guest.facts)
    if isinstance(tables, NotObserved):
        raise UnsupportedError("drgn", f"this kernel's page tables cannot be read: {tables.reason}")
    deadline = explorer.session.deadline()
    machine = guest.machine
    places = current_regions(machine, deadline)
    note = "".join(f"{name}={value}\n" for name, value in guest.facts.vmcoreinfo.items())
    with PhysicalMemory(places) as memory, machine.paused(deadline):
        program = open_program(memory, note, machine.spec.arch, tables)
        _interact(program, debug_info)


def open_program(memory: PhysicalMemory, note: str, arch: ArchSpec, tables: TableFormat) -> drgn.Program:
    """A drgn program for the kernel with the physical memory ``memory`` and the vmcoreinfo ``note``.

    The kernel's virtual addresses are translated by the current contents of ``tables``: drgn does not support the page
    tables of every architecture and paging mode.
    """
    import drgn

    # QEMU and drgn name architectures as uname(1) does.
    platform = drgn.Platform(getattr(drgn.Architecture, arch.qemu_target.upper()))
    program = drgn.Program(platform)

    def read(address: int, count: int) -> bytes:
        try:
            return memory.read(address, count)
        except OutsideMemory as error:
            raise drgn.FaultError("no guest memory at this address", address) from error

    mappings = PageMap(walk(copy_tables(memory, tables)).mappings())

    def read_virtual(address: int, count: int, offset: int, physical: bool) -> bytes:
        starts = [piece.start for piece in AddrRange.sized(address, count).chunks(tables.page_size)]
        places, found = mappings.translate(np.array(starts, dtype=np.uint64))
        if not found.all():
            raise drgn.FaultError("not mapped by the kernel", starts[int(np.argmin(found))])
        ends = [*starts[1:], address + count]
        return b"".join(read(place, end - at) for place, at, end in zip(places.tolist(), starts, ends, strict=True))

    # drgn offers its kernel helpers only for a program marked as a kernel.
    program.set_linux_kernel_custom(note, False)
    for place in memory.ranges:
        program.add_memory_segment(place.start, place.size, lambda address, count, *_: read(address, count), True)
    program.add_memory_segment(_KERNEL.start, _KERNEL.size, read_virtual, False)
    return program


def _interact(program: drgn.Program, debug_info: Path) -> None:
    from drgn.cli import run_interactive

    program.load_debug_info([str(debug_info)])
    run_interactive(program)
