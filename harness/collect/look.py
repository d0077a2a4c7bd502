# SPDX-License-Identifier: GPL-2.0-or-later
"""One look at a guest: all of the guest's sources in one round trip, QEMU's reports, and the console's alarms."""

from __future__ import annotations

import contextlib
import itertools
import json
import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from harness.arch import ArchSpec, arch_named
from harness.bounded import MAX_CONFIG, gunzip, load_json
from harness.codec import Codec
from harness.collect.hostside import KERNEL_SOURCES, Glance, KernelView, kernel_sources, regions
from harness.collect.kernel_log import LOG, SPAN
from harness.collect.looks import left_out_in
from harness.collect.parse_cache import ParseCache
from harness.collect.sources import ABSENT, FACT_SOURCES, MISSING, STATE_SOURCES, Frame, new_boundary, parse_frames
from harness.deadline import Deadline
from harness.errors import GuestError, ParseError
from harness.guest.console import Console
from harness.guest.overlay import SCRIPTS
from harness.guest.ssh import Shell
from harness.guest.waits import GuestWait
from harness.kmem.physical_memory import PhysicalMemory, Region
from harness.parsers.blocks import HOST_BLOCKS, parse_blocks
from harness.parsers.dax import parse_dax
from harness.parsers.dmesg import parse_dmesg
from harness.parsers.hosttables import (
    SECTIONS,
    TABLES,
    parse_section_faults,
    parse_sections,
    parse_struct_pages,
    parse_tables,
)
from harness.parsers.iomem import HOST_IOMEM, looks_torn, parse_iomem
from harness.parsers.kernel_config import parse_config
from harness.parsers.meminfo import parse_meminfo
from harness.parsers.notes import STRICT, Notes
from harness.parsers.ptdump import parse_ptdump
from harness.parsers.slabinfo import parse_slabinfo
from harness.parsers.vmcoreinfo import note_from_kcore, parse_vmcoreinfo
from harness.parsers.vmstat import parse_vmstat
from harness.parsers.zoneinfo import parse_zoneinfo
from harness.qemu.machine import Machine
from harness.qemu.memdev import memory_devices
from harness.state import LEFT_OUT, Garbled, GuestState, KernelFacts, KernelRecords, MemoryDevice, NotObserved, Unknown

T = TypeVar("T")

#: what the host reads: sources, the guest's memory, and where in it to look
_Outside = tuple[dict[str, bytes], PhysicalMemory | None, Glance | None]

_AT_PAGESZ = 6
#: most reads of /proc/iomem, if it seems to have changed while it was read
_READS = 4


def collect_facts(shell: Shell, arch: ArchSpec, deadline: Deadline) -> KernelFacts:
    """Read at once what does not change while a kernel runs; raises GuestError, ParseError, DeadlineExpired."""
    frames = _run(shell, FACT_SOURCES, deadline)
    notes = Notes()
    text = {name: frame.data.decode(errors="replace") for name, frame in frames.items() if frame.status == "ok"}
    note: Mapping[str, str] | NotObserved = NotObserved(_reason(frames["kcore"]))
    try:
        if "kcore" in text:
            note = parse_vmcoreinfo(note_from_kcore(frames["kcore"].data), notes)
    except ParseError as error:
        note = NotObserved(error.message)
    config = frames["config"]
    facts = KernelFacts(
        arch=arch.name,
        release=text.get("release", "").strip(),
        cmdline=text.get("cmdline", "").strip(),
        page_size=_page_size(frames["auxv"].data),
        memory_block_size=_parse_block_size(text["block_size"]) if "block_size" in text else 0,
        config=parse_config(_unpack_config(config.data), notes) if config.status == "ok" else None,
        vmcoreinfo=note,
        parameters=parse_parameters(text.get("parameters", ""), notes),
        files=parse_settings(text.get("settings", ""), notes),
    )
    for line in notes.garbled:
        notes.add_unknown(line.source, "line with characters of no text", line.text)
    return replace(facts, unknown=notes.unknown)


def collect_state(
    shell: Shell,
    machine: Machine | None,
    console: Console | None,
    *,
    facts: KernelFacts,
    deadline: Deadline,
    sources: Iterable[str] = STATE_SOURCES,
    kernel: KernelView | None = None,
    stray: int = 0,
    since: int | NotObserved = 0,
    log: Frame | None = None,
    keep: Callable[[Mapping[str, bytes]], None] = lambda raw: None,
    cache: ParseCache | None = None,
    left_out: Collection[str] = (),
    waits: Sequence[GuestWait] = (),
) -> GuestState:
    """Take a snapshot. ``sources`` (of STATE_SOURCES) are the sources to read in the guest.

    With ``kernel``, the host locates what it reads itself while the guest answers, and reads it last, with the guest
    paused for a moment: an idle kernel does not change in between. Without ``machine`` or ``console``, their sources
    are not observed. The kernel log's lines and the console's alarms are those since the last snapshot of this guest,
    the former after ``log``, what a snapshot outside of the steps has read of them. ``stray`` is the number of page
    tables by which the last snapshot's count exceeded those found, ``since`` the end of its ``log_span``. If a source
    cannot be parsed, ``keep`` is called with the raw sources before the error is raised, and the console's alarms stay
    new. ``cache`` is as in ``parse_state``; ``left_out`` are the ``sources`` that a fast look omits. First of all, in
    the same message, the guest does ``waits``: nothing is read before they are over.
    Raises GuestError, QemuError, ParseError, DeadlineExpired, and what the judges of ``waits`` raise.
    """
    wanted = tuple(dict.fromkeys(("boot_id", "uptime", *(name for name in sources if name not in left_out))))
    with contextlib.ExitStack() as stack:
        with ThreadPoolExecutor(1, thread_name_prefix="memhp-host") as pool:
            from_host: list[Future[_Outside]] = []

            def look_from_outside() -> None:
                from_host.append(pool.submit(_look_from_outside, machine, kernel, cache, stack, deadline))

            if not waits:
                look_from_outside()
            frames = _run(shell, wanted, deadline, waits, look_from_outside)
            if log is not None and "dmesg" in frames:
                frames["dmesg"] = log.followed_by(frames["dmesg"])
            if "iomem" in frames:
                frames["iomem"] = _settled_iomem(shell, frames["iomem"], deadline)
            raw, memory, glance = from_host[0].result()
        seen: dict[str, bytes] = {}
        unseen = dict.fromkeys(KERNEL_SOURCES, "the guest's memory was not read")
        if machine is not None and kernel is not None and memory is not None:
            copy = kernel.copy(machine, memory, deadline, glance, stray=stray, since=since)
            if cache is not None and glance is not None:
                cache.glance = glance.after(copy)
            decoded = None if cache is None else cache.tables
            seen, unseen = kernel_sources(copy, memory, frames.get("dmesg"), decoded)
    raw |= seen
    absent = {name: "QEMU was not asked" for name in ("devices", "backends") if name not in raw}
    absent |= unseen
    alarms = () if console is None else console.new_alarms()
    if console is None:
        absent["console"] = "the console was not read"
    else:
        raw["console"] = _to_json([line.text for line in alarms])
    for name in STATE_SOURCES:
        if name not in wanted:
            absent[name] = LEFT_OUT if name in left_out else "not asked for"
    for name, frame in frames.items():
        if frame.status in ("ok", "lost"):
            raw[name] = frame.data
        if frame.status != "ok":
            absent[name] = _reason(frame)
    raw[ABSENT] = format_absent(absent)
    try:
        return parse_state(raw, facts, cache)
    except ParseError:
        keep(raw)
        if console is not None:
            console.mark_new(alarms)
        raise


def _settled_iomem(shell: Shell, frame: Frame, deadline: Deadline) -> Frame:
    """/proc/iomem, read again if its tree seems to have changed while it was read; a kernel bug shows every time."""
    for _ in range(_READS - 1):
        if not looks_torn(frame.data.decode(errors="replace")):
            break
        before, frame = frame, _run(shell, ("iomem",), deadline)["iomem"]
        if frame.data == before.data:
            break
    return frame


def parse_state(raw: Mapping[str, bytes], facts: KernelFacts, cache: ParseCache | None = None) -> GuestState:
    """Parse the raw sources of a snapshot, just taken or saved.

    ``cache`` has what was parsed of an earlier snapshot of the same guest. A source is not observed if it is in the
    "absent" list or missing from ``raw``, or if its lines are too garbled to be parsed; garbled lines are findings.
    Raises ParseError for a source that cannot be parsed for any other reason, and GuestError for a snapshot without
    boot id or uptime.
    """
    absent = _parse_absent(raw.get(ABSENT, b""))
    cache = ParseCache() if cache is None else cache
    unknown: list[Unknown] = []
    garbled: list[Garbled] = []

    def noted(name: str, parser: Callable[[str, Notes], T], part: str = "") -> T | NotObserved:
        if name in absent or name not in raw:
            return NotObserved(absent.get(name, "not in this snapshot"))
        found = cache.parsed(part or name, raw[name], parser)
        unknown.extend(found.unknown)
        garbled.extend(found.garbled)
        return found.value

    def parsed(name: str, parser: Callable[[str], T], part: str = "") -> T | NotObserved:
        return noted(name, lambda text, notes: parser(text), part)

    arch = arch_named(facts.arch)
    boot_id, uptime = parsed("boot_id", str.strip), parsed("uptime", _parse_uptime)
    if isinstance(boot_id, NotObserved) or isinstance(uptime, NotObserved):
        raise GuestError("the snapshot has no boot id or no uptime")
    # The lines that the kernel's log still has are checked, even if others were overwritten.
    dmesg_lost, log_lost = (absent.pop(name) if name in absent and name in raw else "" for name in ("dmesg", LOG))
    no_dax_bus = absent.get("dax") == _missing("dax")
    state = GuestState(
        raw=raw,
        boot_id=boot_id,
        uptime=uptime,
        iomem=noted("iomem", parse_iomem),
        blocks=noted("blocks", parse_blocks),
        auto_online=parsed("auto_online", str.strip),
        zones=noted("zoneinfo", parse_zoneinfo),
        meminfo=noted("meminfo", parse_meminfo),
        vmstat=noted("vmstat", parse_vmstat),
        slabs=noted("slabinfo", parse_slabinfo),
        page_tables=noted("ptdump", lambda text, notes: parse_ptdump(text, arch, notes)),
        # Without the bus (its module is loaded with the first device) there is no device on it.
        dax=() if no_dax_bus else noted("dax", parse_dax),
        dmesg=noted("dmesg", parse_dmesg),
        devices=parsed("devices", _json_of("devices", tuple[MemoryDevice, ...], "a list of memory devices")),
        backends=parsed("backends", _json_of("backends", dict[str, int], "a map of numbers")),
        console=parsed("console", _json_of("console", tuple[str, ...], "a list of lines")),
        host_tables=parsed(TABLES, parse_tables),
        sections=parsed(SECTIONS, parse_sections),
        section_faults=parsed(SECTIONS, parse_section_faults, "section_faults"),
        struct_pages=parsed(SECTIONS, parse_struct_pages, "struct_pages"),
        pause=parsed("pause", _parse_pause),
        records=KernelRecords(
            iomem=noted("host_iomem", lambda text, notes: parse_iomem(text, notes, source=HOST_IOMEM)),
            blocks=noted("host_blocks", lambda text, notes: parse_blocks(text, notes, source=HOST_BLOCKS)),
            zones=parsed("host_zoneinfo", parse_zoneinfo),
            vmstat=parsed("host_vmstat", parse_vmstat),
            meminfo=parsed("host_meminfo", parse_meminfo),
            log=noted(LOG, parse_dmesg),
            log_span=parsed(SPAN, _parse_span),
            log_lost=log_lost,
        ),
    )
    state = replace(state, unknown=tuple(unknown), garbled=tuple(garbled), dmesg_lost=dmesg_lost)
    return replace(state, left_out=left_out_in(state, absent))


def parse_parameters(text: str, notes: Notes = STRICT) -> dict[str, str]:
    """Map ``module.parameter`` to its value; lines are ``module/parameters/parameter:value``, others are unknown."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        path, colon, value = line.partition(":")
        parts = path.split("/")
        if colon and len(parts) == 3 and parts[1] == "parameters":
            found[f"{parts[0]}.{parts[2]}"] = value
        else:
            notes.add_unknown("/sys/module", "line", line)
    return found


def parse_settings(text: str, notes: Notes = STRICT) -> dict[str, str]:
    """Map the path of a file to its first line; lines are ``path:first line``, others are unknown."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        path, colon, value = line.partition(":")
        if colon and path.startswith("/"):
            found[path] = value
        else:
            notes.add_unknown("settings", "line", line)
    return found


def _run(
    shell: Shell,
    sources: Iterable[str],
    deadline: Deadline,
    waits: Sequence[GuestWait] = (),
    waited: Callable[[], None] = lambda: None,
) -> dict[str, Frame]:
    """Have the guest collect ``sources`` after ``waits``, at whose end ``waited`` is called if there are any."""
    boundary, answers = new_boundary(), itertools.count(1)
    commands = [*(wait.command for wait in waits), (f"/{SCRIPTS}/collect {boundary} {' '.join(sources)}", b"")]

    def answered() -> None:
        if next(answers) == len(waits):
            waited()

    *before, done = shell.run_all(commands, deadline=deadline, answered=answered)
    for wait, result in zip(waits, before, strict=True):
        wait.judge(result)
    if done.status != 0:
        raise done.error("the guest's collector failed")
    return parse_frames(done.stdout, boundary)


def _look_from_outside(
    machine: Machine | None,
    kernel: KernelView | None,
    cache: ParseCache | None,
    stack: contextlib.ExitStack,
    deadline: Deadline,
) -> _Outside:
    """Query QEMU, map the guest's memory for the lifetime of ``stack``, and locate what will be read from it.

    With a ``cache``, boot RAM stays mapped, and what the last look located is not located again.
    """
    if machine is None:
        return {}, None, None
    raw, places = ask_qemu(machine, deadline)
    if kernel is None:
        return raw, None, None
    if cache is None:
        memory = stack.enter_context(PhysicalMemory(places))
        return raw, memory, kernel.look(memory)
    cache.memory = memory = PhysicalMemory(places, cache.memory)
    stack.callback(memory.close_but, tuple(machine.spec.boot_ram().values()))
    return raw, memory, kernel.look(memory, cache.glance, cache.tables.spare)


def ask_qemu(machine: Machine, deadline: Deadline) -> tuple[dict[str, bytes], list[Region]]:
    """QEMU's reports as raw sources, and where the guest's memory is. Raises QemuError, DeadlineExpired."""
    devices = memory_devices(machine, deadline=deadline)
    fds = machine.backend_fds(devices, deadline)
    usage = {name: fd.stat().st_blocks * 512 for name, fd in sorted(fds.items())}
    raw = {"devices": _to_json(CODEC.dump(devices)), "backends": _to_json(usage)}
    return raw, regions(machine, devices, fds)


def _reason(frame: Frame) -> str:
    if frame.status == "missing":
        return _missing(frame.name)
    if frame.status == "lost":
        return "the kernel's log was overwritten before it was read (boot with a larger log_buf_len=)"
    return f"reading it failed: {frame.detail}"


def _missing(name: str) -> str:
    return MISSING.get(name, f"this kernel has no {name}")


def format_absent(reasons: Mapping[str, str]) -> bytes:
    """The source that tells why others are missing."""
    return "".join(f"{name} {reason}\n" for name, reason in sorted(reasons.items())).encode()


def _parse_absent(data: bytes) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in data.decode(errors="replace").splitlines() if " " in line)


def _number(source: str, text: str, read: Callable[[str], T], form: str) -> T:
    try:
        return read(text)
    except (ValueError, IndexError):
        raise ParseError(source, 1, text, f"not {form}") from None


def _parse_uptime(text: str) -> float:
    return _number("/proc/uptime", text, lambda text: float(text.split()[0]), "'<seconds> <seconds>'")


def _parse_block_size(text: str) -> int:
    source = "/sys/devices/system/memory/block_size_bytes"
    return _number(source, text, lambda text: int(text, 16), "a hexadecimal number")


def _parse_span(text: str) -> tuple[int, int]:
    def read(text: str) -> tuple[int, int]:
        first, end = text.split()
        return int(first), int(end)

    return _number(SPAN, text, read, "two numbers")


def _parse_pause(text: str) -> float:
    return _number("pause", text, float, "a number of seconds")


def _page_size(auxv: bytes) -> int:
    """AT_PAGESZ from an auxiliary vector (include/uapi/linux/auxvec.h), which is pairs of 64-bit numbers."""
    for key, value in struct.iter_unpack("<QQ", auxv[: len(auxv) - len(auxv) % 16]):
        if key == _AT_PAGESZ and value:
            return int(value)
    raise GuestError("the guest's /proc/self/auxv has no page size")


def _unpack_config(data: bytes) -> str:
    if data[:2] != b"\x1f\x8b":
        return data.decode(errors="replace")
    try:
        return gunzip(data, MAX_CONFIG).decode(errors="replace")
    except ValueError as error:
        raise ParseError("/proc/config.gz", 1, "", f"cannot be unpacked: {error}") from None


def _to_json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _json_of(source: str, kind: type[T], what: str) -> Callable[[str], T]:
    """A parser of a source that is stored as JSON."""

    def parse(text: str) -> T:
        try:
            return CODEC.load(load_json(text), kind)
        except json.JSONDecodeError as error:
            raise ParseError(f"{source}.json", 1, text[:200], f"not JSON: {error}") from None
        except (TypeError, KeyError, ValueError) as error:
            raise ParseError(f"{source}.json", 1, text[:200], f"not {what}: {error}") from None

    return parse


#: reads and writes the parts of a snapshot that are JSON
CODEC = Codec()
CODEC.describe(Unknown)
CODEC.describe(MemoryDevice, forbid_extra=True)
