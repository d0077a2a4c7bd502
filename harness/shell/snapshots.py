# SPDX-License-Identifier: GPL-2.0-or-later
"""``snapshot NAME`` and ``restore NAME``: the whole guest, including plugged memory, saved to files.

The guest is migrated to a file, with its memory, and continues. To restore it, a new QEMU starts with the same devices
on its command line, loads the file and replaces the old one. Devices that QEMU cannot migrate are refused: virtio-pmem
has no migration state (hw/virtio/virtio-pmem.c, QEMU 10.0).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.deadline import Deadline
from harness.errors import InfraError, UnsupportedError, UsageError
from harness.guest.console import Console
from harness.model.devices.device import VirtioDevice
from harness.model.memory_model import MemoryModel
from harness.parsers.dmesg import alarming
from harness.qemu.devices.device import KINDS, BackendOptions, DeviceSpec, backend_id
from harness.qemu.machine import Machine
from harness.qemu.saved_machine import migrate
from harness.scenarios.session import Session
from harness.scratch import private_directory
from harness.shell.explorer import Explorer, Mark, SavedGuest, plan_of
from harness.units import format_size

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
#: maximum number of snapshots; each takes the disk space of the guest's used memory
MAX_SNAPSHOTS = 8


def _name(rest: str, verb: str) -> str:
    if not _NAME.fullmatch(rest):
        raise UsageError(f"{verb}: invalid name: {rest[:60]!r}", hint="use letters, digits, '-', '_' and '.'")
    return rest


def take(explorer: Explorer, rest: str) -> None:
    """Save the guest; raises UsageError, UnsupportedError, QemuError."""
    name = _name(rest, "snapshot")
    session = explorer.session
    deadline = session.deadline()
    if name not in explorer.saved and len(explorer.saved) >= MAX_SNAPSHOTS:
        raise UsageError(f"too many snapshots: the limit is {MAX_SNAPSHOTS}", hint="reuse a name")
    devices = devices_of(session.model, backings(session, deadline))
    folder = _folder(explorer)
    file, machine = folder / f"{name}.state", session.guest.machine
    with _explained(), machine.paused(deadline):
        migrate(machine.qmp, file, with_memory=True, deadline=deadline)
    explorer.saved[name] = SavedGuest(
        file,
        session.guest,
        copy.deepcopy(session.model),
        session.state,
        dict(session.loads),
        dict(session.load_kinds),
        set(session.held),
        session.number,
        explorer.story.mark,
        dataclasses.replace(machine.spec, cold_devices=devices),
    )
    explorer.kept = [*(kept for kept in explorer.kept if kept.name != name), Mark(name, session.state)]
    explorer.say(f"snapshot {name}: {format_size(file.stat().st_blocks * 512)} on disk")


def _folder(explorer: Explorer) -> Path:
    if explorer.folder is None:
        explorer.folder = explorer.resources.enter_context(private_directory())
    return explorer.folder


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InfraError(f"cannot write the snapshot: {error}", hint="set TMPDIR to another folder") from error


def backings(session: Session, deadline: Deadline) -> dict[str, BackendOptions]:
    """The backend options of each device's memory, read from QEMU: hugetlb and its page size, or none."""

    def ask(id: str, name: str) -> Any:
        about = {"path": f"/objects/{backend_id(id)}", "property": name}
        return session.guest.machine.qmp.execute("qom-get", about, deadline=deadline)

    return {
        id: (("hugetlb", "on"), ("hugetlbsize", format_size(ask(id, "hugetlbsize")))) if ask(id, "hugetlb") else ()
        for id in session.model.devices
    }


def devices_of(model: MemoryModel, backings: Mapping[str, BackendOptions]) -> tuple[DeviceSpec, ...]:
    """The memory devices of ``model``, for a machine that starts with them at the same addresses.

    Raises UnsupportedError for a virtio-pmem device.
    """
    found = []
    for device in model.devices.values():
        known, kind = device.qmp(), KINDS[device.kind]
        if not kind.migrates:
            message = f"QEMU cannot save the {kind.name} device {device.id}"
            raise UnsupportedError("snapshot", message, hint=f"unplug {device.id} first")
        port = device.port if isinstance(device, VirtioDevice) else None
        found.append(kind.from_known(known, port, backings[device.id]))
    return tuple(found)


def restore(explorer: Explorer, rest: str) -> None:
    """Replace the guest by a snapshot; raises UsageError, and LaunchError or QemuError if QEMU fails."""
    name = _name(rest, "restore")
    saved = explorer.saved.get(name)
    if saved is None:
        raise UsageError(f"unknown snapshot {name!r}", hint=f"known: {', '.join(explorer.saved) or 'none yet'}")
    session = explorer.session
    deadline = session.deadline()
    explorer.restores += 1
    workdir = session.recorder.directory / f"restored-{explorer.restores}"
    with contextlib.ExitStack() as stack:
        machine = stack.enter_context(Machine.launch(saved.spec, workdir, deadline, incoming=True))
        migrate(machine.qmp, saved.file, incoming=True, with_memory=True, deadline=deadline)
        console = stack.enter_context(Console(machine.console, alarming, up=True))
        machine.qmp.execute("cont", deadline=deadline)
        shell = stack.enter_context(session.guest.shell.connect_copy(machine.ssh_port(deadline), deadline, console))
        old = session.guest
        session.guest = dataclasses.replace(saved.guest, machine=machine, console=console, shell=shell)
        old.shell.close()
        old.machine.kill()
        explorer.resources.push(stack.pop_all())
    _rewind(explorer, session, saved)
    explorer.look(f"restore {name}")


def _rewind(explorer: Explorer, session: Session, saved: SavedGuest) -> None:
    session.model = copy.deepcopy(saved.model)
    session.layout = session.model.layout
    session.state, session.loads, session.held = saved.state, dict(saved.loads), set(saved.held)
    session.load_kinds = dict(saved.load_kinds)
    session.recorder.undo(saved.number)
    session.number = saved.number
    explorer.story.cut(saved.story)
    explorer.plan = plan_of(session, explorer.spec)
