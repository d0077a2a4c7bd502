# SPDX-License-Identifier: GPL-2.0-or-later
"""``drgn`` at the prompt: a debugger on the paused guest's memory, read from the host."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from harness.arch import ArchSpec
from harness.collect.hostside import regions
from harness.errors import UnsupportedError
from harness.kmem.memory import PhysicalMemory
from harness.qemu.memdev import memory_devices
from harness.shell.explorer import Explorer
from harness.state import NotObserved

if TYPE_CHECKING:
    import drgn

#: where an unstripped kernel with debug info may lie, from the Image
_PLACES = ("vmlinux", "../../../vmlinux")


def find_debug_info(image: Path) -> Path | None:
    """The vmlinux that belongs to the kernel ``image``: beside it, or at the top of the tree it was built in."""
    for place in _PLACES:
        path = image.parent / place
        if path.is_file():
            return path.resolve()
    return None


def require_drgn() -> None:
    """Raise UnsupportedError unless drgn is installed."""
    if importlib.util.find_spec("drgn") is None:
        raise UnsupportedError("drgn", "drgn is not installed", hint="pip install -e '.[drgn]'")


def open_drgn(explorer: Explorer) -> None:
    """drgn's own prompt on the guest, which is paused meanwhile; raises UnsupportedError with what is missing."""
    require_drgn()
    guest = explorer.session.guest
    image = guest.machine.spec.kernel
    debug_info = find_debug_info(image)
    if debug_info is None:
        raise UnsupportedError(
            "drgn",
            f"there is no debug info for the kernel {image}",
            hint=f"a kernel built with CONFIG_DEBUG_INFO, its vmlinux in {shlex.quote(str(image.parent))}",
        )
    if isinstance(guest.facts.vmcoreinfo, NotObserved):
        raise UnsupportedError("drgn", f"this kernel tells no vmcoreinfo: {guest.facts.vmcoreinfo.reason}")
    if not explorer.interactive:
        raise UnsupportedError("drgn", "drgn's prompt needs a terminal", hint="run memhp shell in one, without -c")
    deadline = explorer.session.deadline()
    machine = guest.machine
    places = regions(machine, memory_devices(machine, deadline=deadline), machine.backend_fds(deadline))
    note = "".join(f"{name}={value}\n" for name, value in guest.facts.vmcoreinfo.items())
    with PhysicalMemory(places) as memory, machine.paused(deadline):
        _interact(memory, note, machine.spec.arch, debug_info)


def open_program(memory: PhysicalMemory, note: str, arch: ArchSpec) -> drgn.Program:
    """drgn's program of the kernel whose physical memory is ``memory`` and whose vmcoreinfo is ``note``."""
    import drgn

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        return bytes(memory.read(address, count))

    # Both call an architecture by the name that uname(1) has for it.
    platform = drgn.Platform(getattr(drgn.Architecture, arch.qemu_target.upper()))
    program = drgn.Program(platform, vmcoreinfo=note)
    for place in memory.ranges:
        program.add_memory_segment(place.start, place.size, read, True)
    return program


def _interact(memory: PhysicalMemory, note: str, arch: ArchSpec, debug_info: Path) -> None:
    from drgn.cli import run_interactive

    program = open_program(memory, note, arch)
    program.load_debug_info([str(debug_info)])
    run_interactive(program)
