# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of one QEMU process, from launch to reaping."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from harness import proc
from harness.deadline import Deadline
from harness.errors import DeadlineExpired, LaunchError, QemuError, UsageError
from harness.qemu.cmdline import Channels, command_line
from harness.qemu.cpu_threads import cpu_threads
from harness.qemu.cpu_times import CpuTimes
from harness.qemu.devices.device import parse_memory_devices
from harness.qemu.machine_spec import MachineSpec
from harness.qemu.qmp import QmpSession
from harness.qemu.saved_machine import STATE, copy_sparse, migrate, new_memory, pack, unpack
from harness.state import MemoryDevice
from harness.units import AddrRange

#: seconds that QEMU may take to exit after ``quit``, then after SIGTERM
QUIT_SECONDS = 5.0
TERMINATE_SECONDS = 2.0
#: QEMU closes its sockets a moment before it can be reaped; its exit status is worth the wait
_EXIT_SECONDS = 3.0
#: seconds that QEMU may take to free the memory of an unplugged device, and between two checks
_FREED_SECONDS = 20.0
_BETWEEN = 0.005

#: bytes of a dump that are read: the headers come first, the guest's memory follows
_DUMP_HEAD = 64 << 10

_FORWARD = re.compile(r"^\s*TCP\[HOST_FORWARD\]\s+\d+\s+\S+\s+(\d+)\s+\S+\s+22\b", re.MULTILINE)
_RAMBLOCK = re.compile(
    r"^\s*(?:(\S+)\s+)??\d+ [KMG]iB\s+(?:0x[0-9a-f]{16}\s+){3}(0x[0-9a-f]{16})\s+r[wo]\s*$", re.MULTILINE
)
_HOST_ADDRESS = re.compile(r"Host virtual address for \S+ \(.*\) is (0x[0-9a-f]+)\s*")


@dataclass(frozen=True, slots=True)
class _Backends:
    """The memfd of each backend, with its inode, when devices used them at ``places``."""

    places: Mapping[str, int]
    files: Mapping[str, tuple[Path, int]]

    def still_there(self) -> bool:
        """False if a descriptor was closed, or is that of another file by now."""
        try:
            return all(path.stat().st_ino == inode for path, inode in self.files.values())
        except OSError:
            return False


class Machine:
    """A running QEMU. Get one with ``launch`` in a ``with`` statement; leaving the block always ends QEMU.

    ``workdir`` holds console.log, qmp.jsonl, qemu.stderr and qemu.stdout afterwards. ``console`` is a connected
    socket with the guest's serial port; a reader must drain it, or the guest stops when its buffer is full.
    """

    def __init__(self, spec: MachineSpec, workdir: Path) -> None:
        """Use ``launch`` instead: this starts nothing."""
        self.spec = spec
        self.workdir = workdir
        self.console_log = workdir / "console.log"
        self.stderr_log = workdir / "qemu.stderr"
        self.argv: tuple[str, ...] = ()
        self.console: socket.socket
        self.qmp: QmpSession
        self.memory: dict[str, int] = {}
        self.cpu_times: CpuTimes
        self._dropped: set[str] = set()
        self._found: _Backends | None = None
        self._child: proc.Child | None = None
        self._cleanup = contextlib.ExitStack()
        self._ending = threading.Lock()

    @classmethod
    def launch(
        cls,
        spec: MachineSpec,
        workdir: Path,
        deadline: Deadline,
        *,
        own_memory: bool = False,
        snapshot: Path | None = None,
        incoming: bool = False,
    ) -> Machine:
        """Start ``spec`` with its files below ``workdir`` (created, mode 0700) and return once QMP answers.

        With ``own_memory`` the harness creates the files of the boot RAM (``memory``: descriptors by backend), so that
        the machine can be saved. ``snapshot`` is the folder of a machine saved from the same spec: it is restored, with
        its vCPUs paused. With ``incoming`` QEMU waits for the caller to restore a machine. Raises UsageError if a file
        of the spec is missing, LaunchError (argv, exit status, tails of stderr and console) if QEMU does not come up by
        ``deadline``, QemuError if it is not the process that was started.
        """
        for role, path in spec.files:
            if not path.is_file():
                raise UsageError(f"the {role} {path} is not a file", hint="check the path, or run memhp fetch")
        machine = cls(spec, workdir)
        try:
            machine._start(deadline, own_memory, snapshot, incoming)
        except BaseException:
            machine.kill()
            raise
        return machine

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.quit(Deadline(QUIT_SECONDS + TERMINATE_SECONDS))
        else:
            self.kill()

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        return self._child is not None and self._child.poll() is None

    def fileno(self) -> int:
        """QEMU's pidfd: readable once QEMU has ended."""
        return self._process.fileno()

    def ssh_port(self, deadline: Deadline) -> int:
        """The port on 127.0.0.1 that QEMU picked and forwards to the guest's port 22; raises QemuError."""
        return parse_forward(self.qmp.hmp("info usernet", deadline=deadline))

    def backend_fds(self, devices: Iterable[MemoryDevice], deadline: Deadline) -> dict[str, Path]:
        """Map the id of each memory backend to its memfd, as ``/proc/PID/fd/N``, to be opened or stat'ed.

        Covers the backends of boot RAM and of ``devices``, which are all memory devices. The id leads to the address of
        QEMU's mapping (HMP ``info ramblock``, or ``gpa2hva`` if the block has no name), the address to an inode
        (/proc/PID/maps), and the inode to a descriptor. They are found again only when a backend came or went. Raises
        QemuError if QEMU is gone or does not report addresses (before 8.1).
        """
        places = {device.backend: device.range.start for device in devices}
        if self._found is None or self._found.places != places or not self._found.still_there():
            self._found = self._find_backends(places, deadline)
        return {name: path for name, (path, _) in self._found.files.items()}

    def _find_backends(self, places: Mapping[str, int], deadline: Deadline) -> _Backends:
        addresses = self._backend_addresses(self._ram_blocks(deadline), places, deadline)
        return _Backends(places, self._memfds_at(addresses))

    def add_backend(self, arguments: Mapping[str, object], deadline: Deadline) -> None:
        """Create a memory backend: ``arguments`` are object-add's.

        If a backend of the same name was deleted before, wait until QEMU has freed its memory. QEMU frees it after an
        RCU grace period (0.2 s are common), and since v10.0 it hands the memfd recorded under a name to the next
        backend of that name, then closes that descriptor when it frees the old one (memfd_backend_memory_alloc in
        backends/hostmem-memfd.c, qemu_ram_free in system/physmem.c). Raises QmpRefused, QemuError, DeadlineExpired.
        """
        idle, limit = threading.Event(), deadline.at_most(_FREED_SECONDS)
        while arguments["id"] in self._dropped and (kept := self._unowned_blocks(deadline)):
            limit.check(f"QEMU to free the old memory of {arguments['id']}", f"RAM blocks of no device: {len(kept)}")
            idle.wait(_BETWEEN)
        self._found = None
        self.qmp.execute("object-add", arguments, deadline=deadline)

    def drop_backend(self, name: str, deadline: Deadline) -> None:
        """Delete the memory backend ``name``, which no device uses any more. Raises QmpRefused, DeadlineExpired."""
        self._found = None
        self.qmp.execute("object-del", {"id": name}, deadline=deadline)
        self._dropped.add(name)

    def _ram_blocks(self, deadline: Deadline) -> list[tuple[str, int]]:
        """Name and address of QEMU's RAM blocks."""
        blocks = parse_ramblocks(self.qmp.hmp("info ramblock", deadline=deadline))
        if not blocks:
            raise QemuError(
                f"QEMU {self.spec.qemu.version} does not report where it maps its memory", hint="use QEMU 8.1 or later"
            )
        return blocks

    def _unowned_blocks(self, deadline: Deadline) -> set[int]:
        """The addresses of RAM blocks that have no name and no device, as those of unplugged devices."""
        blocks = self._ram_blocks(deadline)
        nameless = {address for name, address in blocks if not name}
        if not nameless:
            return nameless
        devices = parse_memory_devices(self.qmp.execute("query-memory-devices", deadline=deadline))
        places = {device.backend: device.range.start for device in devices}
        return nameless - set(self._backend_addresses(blocks, places, deadline).values())

    def _backend_addresses(
        self, blocks: Iterable[tuple[str, int]], places: Mapping[str, int], deadline: Deadline
    ) -> dict[str, int]:
        """The address at which QEMU maps each backend of boot RAM and of a memory device, by its physical address."""
        # The RAM block of virtio-mem is named DEVICE-PATH/ID, all others are named ID.
        named = {name.rpartition("/")[2]: address for name, address in blocks if name}
        addresses = {backend: named[backend] for backend in self.spec.boot_backends if backend in named}
        for backend, place in places.items():
            if backend in named:
                addresses[backend] = named[backend]
            else:
                answer = self.qmp.hmp(f"gpa2hva {place:#x}", deadline=deadline)
                addresses[backend] = parse_host_address(answer)
        return addresses

    def _memfds_at(self, addresses: Mapping[str, int]) -> dict[str, tuple[Path, int]]:
        """The descriptor, as ``/proc/PID/fd/N``, and the inode of the memfd that QEMU maps at each address."""
        proc_dir = Path("/proc") / str(self.pid)
        try:
            inodes = find_inodes((proc_dir / "maps").read_text(), addresses)
            found: dict[int, Path] = {}
            for entry in (proc_dir / "fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if os.readlink(entry).startswith("/memfd:"):
                        found[entry.stat().st_ino] = entry
        except OSError as error:
            raise QemuError(f"cannot inspect QEMU (pid {self.pid}): {error}") from error
        return {name: (found[inode], inode) for name, inode in inodes.items() if inode in found}

    @contextlib.contextmanager
    def paused(self, deadline: Deadline) -> Iterator[None]:
        """Hold all vCPUs while the block runs; a machine that did not run stays as it is.

        Raises QemuError, DeadlineExpired.
        """
        since = self.qmp.seq
        self.qmp.execute("stop", deadline=deadline)
        # The event comes before the answer, and only if it ran (do_vm_stop, system/cpus.c, QEMU 10.0).
        ran = any(event.name == "STOP" for event in self.qmp.events(since))
        try:
            yield
        finally:
            if ran:
                self.qmp.execute("cont", deadline=deadline)

    def save(self, directory: Path, deadline: Deadline) -> None:
        """Stop the machine and write it to ``directory``; it must have been launched with ``own_memory``.

        Raises QemuError if QEMU cannot migrate it or it was launched without, QmpRefused, DeadlineExpired.
        """
        if not self.memory:
            raise QemuError("QEMU allocated the machine's memory itself", hint="launch it with own_memory")
        self.qmp.execute("stop", deadline=deadline)
        migrate(self.qmp, directory / STATE, with_memory=False, deadline=deadline)
        for name, fd in self.memory.items():
            pack(fd, directory, name)

    def dump_head(self, wanted: AddrRange, deadline: Deadline) -> bytes:
        """The first 64 KiB of a dump (QMP dump-guest-memory) of physical ``wanted``, which begin with its headers.

        QEMU refuses unless the machine has memory there. Raises QmpRefused, QemuError, DeadlineExpired.
        """
        path = self.workdir / "guest.dump"
        arguments = {"paging": False, "protocol": f"file:{path}", "begin": wanted.start, "length": wanted.size}
        try:
            self.qmp.execute("dump-guest-memory", arguments, deadline=deadline)
            with path.open("rb") as dump:
                return dump.read(_DUMP_HEAD)
        except OSError as error:
            raise QemuError(f"cannot read the dump {path}: {error.strerror}") from error
        finally:
            path.unlink(missing_ok=True)

    def press_sysrq(self, key: str, deadline: Deadline) -> None:
        """Send a break and ``key`` over the serial console: SysRq (uart_handle_break, linux/serial_core.h, v6.12).

        A second break before the first key is read would cancel the first. Raises QemuError if QEMU does not answer.
        """
        self.qmp.execute("chardev-send-break", {"id": "console"}, deadline=deadline)
        try:
            self.console.sendall(key.encode("ascii"))
        except OSError as error:
            raise QemuError(f"QEMU's serial console is closed: {error.strerror}") from error

    def quit(self, deadline: Deadline) -> int:
        """End QEMU: politely over QMP, then by SIGTERM, then by SIGKILL; reap it and return its return code."""
        with self._ending:
            if self._child is not None and self._child.poll() is None:
                with contextlib.suppress(DeadlineExpired):
                    polite = deadline.at_most(QUIT_SECONDS)
                    self.qmp.quit(deadline=polite)
                    self._child.wait(polite)
            if self._child is not None and self._child.poll() is None:
                self._child.terminate()
                with contextlib.suppress(DeadlineExpired):
                    self._child.wait(deadline.at_most(TERMINATE_SECONDS))
            return self._end()

    def kill(self) -> int:
        """End QEMU with SIGKILL, reap it and return its return code."""
        with self._ending:
            if self._child is not None:
                self._child.kill()
            return self._end()

    def exit_report(self) -> str:
        """What is known about QEMU's exit: its status and the tail of stderr; says so if it still runs."""
        if self._child is None:
            return "QEMU was never started"
        with contextlib.suppress(DeadlineExpired):
            self._child.wait(Deadline(_EXIT_SECONDS))
        code = self._child.returncode
        end = "QEMU still runs" if code is None else f"QEMU {proc.describe_status(code)}"
        return f"{end}\n{proc.tail_file(self.stderr_log)}".rstrip("\n")

    @property
    def _process(self) -> proc.Child:
        if self._child is None:
            raise QemuError("QEMU was never started")
        return self._child

    def _end(self) -> int:
        # QMP is closed only after the process is gone.
        code = 0 if self._child is None else self._child.reap()
        self._cleanup.close()
        return code

    def _start(self, deadline: Deadline, own_memory: bool, snapshot: Path | None, incoming: bool) -> None:
        self.workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(self.workdir.stat().st_mode) & 0o077:
            raise UsageError(
                f"{self.workdir} is accessible to other users", hint=f"chmod 700 {shlex.quote(str(self.workdir))}"
            )
        if own_memory or snapshot is not None:
            self.memory = new_memory({name: place.size for name, place in self.spec.boot_ram().items()})
            self._cleanup.callback(self._close_memory)
        with ThreadPoolExecutor(1, thread_name_prefix="memhp-unpack") as pool:
            # Starting QEMU takes about as long as filling its memory.
            filled = None if snapshot is None else pool.submit(self._fill_memory, snapshot)
            sock, log = self._spawn(incoming or snapshot is not None), self.workdir / "qmp.jsonl"
            try:
                self.qmp = QmpSession(sock, log=log, deadline=deadline, exit_report=self.exit_report)
            except (QemuError, DeadlineExpired) as error:
                raise self._launch_error(error, deadline) from error
            self._cleanup.callback(self.qmp.close)
            threads = cpu_threads(self.qmp, self.pid, self.spec.qemu.argv[-1], deadline)
            self.cpu_times = CpuTimes(self.pid, threads)
            self._cleanup.callback(self.cpu_times.close)
            if snapshot is not None and filled is not None:
                filled.result()
                migrate(self.qmp, snapshot / STATE, incoming=True, with_memory=False, deadline=deadline)

    def _spawn(self, incoming: bool) -> socket.socket:
        """Start the process and return our end of its QMP socket."""
        with contextlib.ExitStack() as theirs:
            ours: list[socket.socket] = []
            fds: list[int] = []
            for _ in range(2):
                here, there = socket.socketpair()
                ours.append(self._cleanup.enter_context(here))
                fds.append(theirs.enter_context(there).fileno())
            qmp, self.console = ours
            variables = None if incoming else self._copy_variables()
            channels = Channels(fds[0], fds[1], self.console_log, variables, self.memory, incoming)
            self.argv = tuple(command_line(self.spec, channels))
            fds += self.memory.values()
            stdout = self.workdir / "qemu.stdout"
            self._child = proc.spawn(self.argv, pass_fds=fds, stdout=stdout, stderr=self.stderr_log)
        return qmp

    def _fill_memory(self, snapshot: Path) -> None:
        for name, fd in self.memory.items():
            unpack(snapshot, name, fd)

    def _close_memory(self) -> None:
        while self.memory:
            os.close(self.memory.popitem()[1])

    def _copy_variables(self) -> Path | None:
        if self.spec.firmware is None:
            return None
        target = self.workdir / "firmware-variables.fd"
        copy_sparse(self.spec.firmware.vars, target)
        self._cleanup.callback(target.unlink, missing_ok=True)
        return target

    def _launch_error(self, error: Exception, deadline: Deadline) -> LaunchError:
        if isinstance(error, DeadlineExpired):
            end = f"no answer on QMP within {deadline.seconds:.1f} s\n{proc.tail_file(self.stderr_log)}".rstrip("\n")
        else:
            end = self.exit_report()
        printed = proc.tail_file(self.console_log)
        console = f"\nlast of the console:\n{printed}" if printed else ""
        return LaunchError(f"{shlex.join(self.argv)}\ndid not come up: {end}{console}")


def parse_forward(text: str) -> int:
    """Return the host port of the one forward to the guest's port 22 in HMP's ``info usernet``; raises QemuError."""
    ports = _FORWARD.findall(text)
    if len(ports) != 1:
        raise QemuError(f"QEMU forwards {len(ports)} ports to the guest's port 22, expected one:\n{text}")
    return int(ports[0])


def parse_ramblocks(text: str) -> list[tuple[str, int]]:
    """Name ("" if none) and address of each RAM block in HMP's ``info ramblock``, if it has any; raises QemuError."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or "HVA" not in lines[0]:
        return []
    found = _RAMBLOCK.findall(text)
    if len(found) != len(lines) - 1:
        raise QemuError(f"QEMU's list of RAM blocks has an unknown format:\n{text}")
    return [(name, int(address, 16)) for name, address in found]


def parse_host_address(text: str) -> int:
    """Return the address in the answer of HMP's ``gpa2hva``; raises QemuError."""
    match = _HOST_ADDRESS.fullmatch(text)
    if match is None:
        raise QemuError(f"QEMU does not report where it maps a memory device: {text.strip()}")
    return int(match[1], 16)


def find_inodes(maps: str, addresses: Mapping[str, int]) -> dict[str, int]:
    """The inode that /proc/PID/maps (proc(5)) has at each address, by name; none where no file is mapped."""
    found: dict[str, int] = {}
    spans: Iterable[list[str]] = (line.split(maxsplit=5) for line in maps.splitlines())
    for span, _, _, _, inode, *_ in spans:
        start, end = (int(text, 16) for text in span.split("-"))
        for name, address in addresses.items():
            if start <= address < end and int(inode):
                found[name] = int(inode)
    return found
