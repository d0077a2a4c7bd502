# SPDX-License-Identifier: GPL-2.0-or-later
"""Saved boot snapshots: each kind of guest is booted once, saved in the cache, and restored from then on.

A saved guest has no keys yet: every restored guest gets its own, fresh entropy and the time (harness.guest.identity).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.artifacts.cache import FORMAT, Cache, content_of
from harness.collect.hostside import KernelView
from harness.collect.look import collect_facts
from harness.collect.snapshot_folder import load_facts, save_facts
from harness.config.guest import GuestSpec
from harness.config.guest_parts import Firmware, QemuBinary
from harness.config.places import guest_scripts_dir
from harness.deadline import Deadline
from harness.errors import ArtefactError, GuestError, UnsupportedError
from harness.guest.console import ASLEEP, Console
from harness.guest.identity import Identity, wake
from harness.guest.overlay import overlay, write_initrd
from harness.guest.ssh import GuestShell
from harness.parsers.dmesg import alarming
from harness.progress import Progress
from harness.qemu.cmdline import Channels, command_line
from harness.qemu.machine import Machine
from harness.qemu.machine_spec import MachineSpec
from harness.scenarios.boot import BootedGuest, Connected, Parts, archives_of, facts_of, machine_shape, machine_spec
from harness.scratch import make_private, private_directory

KIND = "snapshots"
#: part of the cache key: increase it when the same parts are saved differently
RECIPE = "5"
#: number of saved guests that are kept, about 100 MB each; with 32, the tests found none of theirs again
KEPT = 96

INITRD = "initrd"
FACTS = "facts"
CONSOLE = "console.log"


def template(spec: GuestSpec, parts: Parts, timeout: float, progress: Progress) -> Path:
    """The folder of the saved guest for ``spec``: from the cache, or booted, saved and verified first.

    ``timeout`` limits that boot, seconds. Raises UnsupportedError if such a guest cannot be saved, the errors of
    booting, QemuError if QEMU cannot save or restore it, ArtefactError if the cache cannot be written,
    InfraError if the folder of saved guests is another user's.
    """
    machine = machine_spec(spec, parts, Path(INITRD))
    lack = why_not(machine)
    if lack is not None:
        raise UnsupportedError("restore", f"{spec.name} cannot be restored: {lack}")
    archives = archives_of(spec, parts)
    extra = overlay(None, guest_scripts_dir())
    cache = Cache()
    try:
        # A guest's memory is as private as its content.
        make_private(cache.root / KIND)
    except OSError as error:
        raise ArtefactError(f"cannot write to the cache: {error}", hint="see MEMHP_CACHE") from error

    def build(out: Path) -> None:
        deadline = Deadline(timeout)
        write_initrd(archives, extra, out / INITRD)
        resolved = dataclasses.replace(machine, initrd=out / INITRD)
        with progress.task(f"Booting {spec.name} once, to restore it from now on"):
            _boot_cleanly(resolved, parts, out, deadline)
        cache.prune(KIND, KEPT - 1)

    what = f"the saved boot of {spec.name}"
    entry = cache.get(KIND, spec.arch, inputs(machine, archives, extra), build, progress, what=what)
    cache.use(entry)
    return entry


class UncleanBoot(GuestError):
    """The kernel reported trouble during boot."""


def _boot_cleanly(machine: MachineSpec, parts: Parts, out: Path, deadline: Deadline) -> None:
    """Save a guest whose kernel booted without trouble; a boot disturbed by a race or a busy host is not kept."""
    for last in (False, False, True):
        try:
            _put_to_rest(machine, out, deadline)
            _try_out(machine, parts, out, deadline)
            return
        except UncleanBoot:
            if last:
                raise
            for path in out.iterdir():
                if path.name != INITRD:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def why_not(machine: MachineSpec) -> str | None:
    """Why ``machine`` cannot be saved and restored, None if it can."""
    if machine.cold_devices:
        return "it has memory devices from the start"
    if machine.backend:
        return "its boot memory has special options"
    if machine.paused:
        return "it starts paused"
    return None


def inputs(machine: MachineSpec, archives: Sequence[Path], extra: bytes) -> dict[str, str]:
    """The cache key of a saved guest: the content of all its files, and QEMU's command line."""
    files = dict(machine.files)
    found = {role: content_of(path) for role, path in files.items() if role != INITRD}
    found |= {f"program {number}": content_of(path) for number, path in enumerate(_programs(machine.qemu))}
    found |= {f"archive {number}": content_of(path) for number, path in enumerate(archives)}
    found["archive of the harness"] = hashlib.sha256(extra).hexdigest()
    found["command line"] = "\0".join(_anonymous(machine))
    found["recipe"] = f"{RECIPE} {FORMAT}"
    return found


def _programs(qemu: QemuBinary) -> list[Path]:
    """QEMU's own files and folders; its data files are not used here."""
    return [path for word in qemu.argv if os.path.isabs(word) and (path := Path(word)).exists()]


def _anonymous(machine: MachineSpec) -> list[str]:
    """The command line without paths: the same for the same guest, wherever its parts are."""
    plain = dataclasses.replace(
        machine,
        qemu=QemuBinary(("qemu",), None, "", ""),
        kernel=Path("kernel"),
        initrd=Path(INITRD),
        bios=machine.bios and Path("bios"),
        firmware=machine.firmware and Firmware(Path("code"), Path("vars")),
    )
    memory = dict.fromkeys(machine.boot_backends, 0)
    variables = None if machine.firmware is None else Path("variables")
    return command_line(plain, Channels(0, 0, Path(CONSOLE), variables, memory))


def _put_to_rest(machine: MachineSpec, out: Path, deadline: Deadline) -> None:
    with private_directory() as work, contextlib.ExitStack() as stack:
        running = stack.enter_context(Machine.launch(machine, work, deadline, own_memory=True))
        console = stack.enter_context(Console(running.console, alarming))
        console.wait_line(ASLEEP, deadline)
        running.save(out, deadline)
        require_clean(console)
        shutil.copy(running.console_log, out / CONSOLE)


def _try_out(machine: MachineSpec, parts: Parts, out: Path, deadline: Deadline) -> None:
    """Restore the guest that was just saved: only a working one goes into the cache, with its kernel's facts."""
    with private_directory() as work, restore_connected(machine, out, work, deadline) as up:
        save_facts(out / FACTS, facts_of(collect_facts(up.shell, machine.arch, deadline), parts.kernel))
        require_clean(up.console)


def require_clean(console: Console) -> None:
    """Raise UncleanBoot if the kernel reported trouble: every guest restored from it would inherit that.

    A stall on a busy host would be kept for good; a kernel that always reports trouble boots each time.
    """
    if console.alarms:
        raise UncleanBoot(f"its boot was not clean: {console.alarms[0].text.strip()[:200]}")


@contextlib.contextmanager
def restore_connected(machine: MachineSpec, saved: Path, workdir: Path, deadline: Deadline) -> Iterator[Connected]:
    """The first part of ``restore_guest``: up to the open SSH connection. Raises what it raises."""
    identity = Identity.fresh()
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(Machine.launch(machine, workdir, deadline, snapshot=saved))
        console = stack.enter_context(Console(running.console, alarming))
        port = running.ssh_port(deadline)
        wake(running.console, identity, deadline)
        running.qmp.execute("cont", deadline=deadline)
        shell = stack.enter_context(GuestShell.connect(port, identity, deadline, console, waking=True))
        yield Connected(running, console, shell)


def restored_spec(spec: GuestSpec, parts: Parts, saved: Path) -> MachineSpec:
    """The machine for restoring ``saved``: the same, with the initrd in that folder."""
    return machine_spec(spec, parts, saved / INITRD)


@contextlib.contextmanager
def restore_guest(spec: GuestSpec, parts: Parts, saved: Path, workdir: Path, timeout: float) -> Iterator[BootedGuest]:
    """Restore ``spec`` from ``saved``, the result of ``template``, and end it when the block is left.

    It has its own sockets, port, keys, entropy and clock; everything else is as saved. ``workdir`` and errors are as in
    ``boot_guest``; console.log begins with the boot of the saved guest.
    """
    deadline = Deadline(timeout)
    machine = restored_spec(spec, parts, saved)
    workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copyfile(saved / CONSOLE, workdir / CONSOLE)
    facts = load_facts(saved / FACTS, machine.arch)
    with restore_connected(machine, saved, workdir, deadline) as up:
        view = KernelView.open(up.machine, facts, deadline)
        shape = machine_shape(machine)
        yield BootedGuest(up.machine, up.console, up.shell, shape, facts, spec.boot, view, restored=True)
