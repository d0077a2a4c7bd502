# SPDX-License-Identifier: GPL-2.0-or-later
"""The two collectors of a guest, the program and the script of a guest root without it: both tell the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import pytest
from needs import need

from harness.collect.frames import Frame, parse_frames
from harness.collect.snapshot import collect_state
from harness.collect.sources import FACT_SOURCES, STATE_SOURCES
from harness.config.guest import GuestSpec
from harness.deadline import Deadline
from harness.guest import pmem
from harness.guest.blocks import set_auto_online, set_blocks, wait_blocks
from harness.guest.devices import wait_driver
from harness.parsers.vmcoreinfo import note_from_kcore
from harness.qemu import memdev
from harness.qemu.devices.dimm import DimmSpec
from harness.qemu.devices.virtio_pmem import VirtioPmemSpec
from harness.scenarios.boot import BootedGuest, Parts, boot_guest
from harness.units import GIB, MIB

pytestmark = [pytest.mark.memhp_guest, pytest.mark.shared_guest]

BOOT_SECONDS = 120.0
SCRIPT, PROGRAM = "/usr/lib/memhp/collect", "/usr/bin/collector"
SOURCES = (*STATE_SOURCES, *FACT_SOURCES)


@pytest.fixture(scope="module")
def guest(
    memhp_guest_spec: GuestSpec, memhp_artifacts: Parts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BootedGuest]:
    with boot_guest(memhp_guest_spec, memhp_artifacts, tmp_path_factory.mktemp("guest") / "run", BOOT_SECONDS) as guest:
        # What happens from here on is in the first look of both.
        guest.shell.must("rm -rf /run/memhp", deadline=Deadline(60))
        yield guest


@pytest.fixture
def limit() -> Deadline:
    return Deadline(60)


def by_shape(data: bytes) -> bytes:
    """What is left of a table of numbers that never stand still."""
    return re.sub(rb" +", b" ", re.sub(rb"[0-9]+", b"0", data))


def without_vmalloc(data: bytes) -> bytes:
    """A dump of the page tables without the area where the stacks of processes come and go."""
    kept, skipped = [], False
    for row in data.splitlines():
        if row.startswith(b"---["):
            skipped = row.startswith((b"---[ vmalloc start", b"---[ vmalloc() area"))
        if not skipped:
            kept.append(row)
    assert kept
    return b"\n".join(kept)


def page_size(data: bytes) -> bytes:
    """The pair of AT_PAGESZ in the auxiliary vector."""
    [pair] = [data[at : at + 16] for at in range(0, len(data), 16) if data[at : at + 8] == b"\6" + bytes(7)]
    return pair


#: what is compared of a source that changes by itself, or is another one for each process; of all others every byte is
COMPARED: dict[str, Callable[[bytes], object]] = {
    **dict.fromkeys(("uptime", "meminfo", "zoneinfo", "slabinfo", "vmstat"), by_shape),
    "ptdump": without_vmalloc,
    "auxv": page_size,
    "kcore": note_from_kcore,
}


def told(guest: BootedGuest, collector: str, sources: Sequence[str], limit: Deadline) -> dict[str, Frame]:
    done = guest.shell.run(f"{collector} MARK {' '.join(sources)}", deadline=limit)
    assert (done.status, done.stderr) == (0, b"")
    return parse_frames(done.stdout, "MARK")


def told_by_both(guest: BootedGuest, sources: Sequence[str], limit: Deadline) -> dict[str, Frame]:
    """What the program tells, which is what the script tells."""
    script, program = (told(guest, collector, sources, limit) for collector in (SCRIPT, PROGRAM))
    assert list(script) == list(program) == list(sources)
    for name in sources:
        his, its = script[name], program[name]
        assert (his.status, his.detail) == (its.status, its.detail), name
        same = COMPARED.get(name, bytes)
        if his.status in ("ok", "lost"):
            assert same(his.data) == same(its.data), name
        else:
            assert his.data == its.data, name
    return program


def test_at_rest(guest: BootedGuest, limit: Deadline) -> None:
    first = told_by_both(guest, SOURCES, limit)
    for name in ("boot_id", "uptime", "iomem", "blocks", "meminfo", "zoneinfo", "dmesg", "vmstat", "release", "kcore"):
        assert (first[name].status, bool(first[name].data)) == ("ok", True), name
    assert first["dmesg"].data.startswith(b"<") and first["dmesg"].data.count(b"\n") > 100
    # Both remember what they have told of the log.
    assert told_by_both(guest, ("dmesg",), limit)["dmesg"].data == b""


def test_with_a_dimm(guest: BootedGuest, memhp_artifacts: Parts, limit: Deadline) -> None:
    need(guest, memhp_artifacts, "pc-dimm", "ACPI_HOTPLUG_MEMORY")
    set_auto_online(guest.shell, "offline", deadline=limit)
    before = told_by_both(guest, SOURCES, limit)
    assert memdev.plug(guest.machine, DimmSpec("dimm0", 512 * MIB), deadline=limit).kind == "done"
    size = guest.facts.memory_block_size
    where = memdev.memory_device(guest.machine, "dimm0", deadline=limit).range
    blocks = range(where.start // size, where.end // size)
    wait_blocks(guest.shell, states=dict.fromkeys(blocks, "offline"), deadline=limit)
    added = told_by_both(guest, SOURCES, limit)
    assert all(f"memory{block}/state:offline\n".encode() in added["blocks"].data for block in blocks)
    assert added["iomem"].data != before["iomem"].data
    assert all(done.ok for done in set_blocks(guest.shell, blocks, "online_movable", deadline=limit))
    online = told_by_both(guest, SOURCES, limit)
    assert all(f"memory{block}/valid_zones:Movable\n".encode() in online["blocks"].data for block in blocks)
    assert online["zoneinfo"].data != added["zoneinfo"].data
    assert all(done.ok for done in set_blocks(guest.shell, blocks, "offline", deadline=limit))
    assert memdev.unplug(guest.machine, "dimm0", deadline=limit).kind == "deleted"
    wait_blocks(guest.shell, absent=blocks, deadline=limit)
    assert told_by_both(guest, SOURCES, limit)["blocks"].data == before["blocks"].data


def test_with_a_dax_device(guest: BootedGuest, memhp_artifacts: Parts, limit: Deadline) -> None:
    need(guest, memhp_artifacts, "virtio-pmem-pci", "DEV_DAX_KMEM")
    memdev.plug(guest.machine, VirtioPmemSpec("pmem0", GIB), deadline=limit)
    wait_driver(guest.shell, "nd", "namespace0.0", "nd_pmem", deadline=limit)
    assert pmem.create_devdax(guest.shell, "namespace0.0", map="mem", align=2 * MIB, deadline=limit).ok
    assert b"dax0.0/driver:device_dax\n" in told_by_both(guest, SOURCES, limit)["dax"].data
    assert pmem.to_system_ram(guest.shell, "dax0.0", deadline=limit).ok
    assert b"dax0.0/driver:kmem\n" in told_by_both(guest, SOURCES, limit)["dax"].data


#: what somebody writes into the log, as printf has it: several lines, an empty one, bytes that are escaped on the way
ODD_LINES = (
    r"<4>two\nlines",
    r"<4>\n<5>starts with an empty one",
    r"<11>of a program\n\nwith a gap",
    r"<6>back\\\\slash, \\\\x41, tab\tand \303\244",
    "<6>" + "long " * 180,
)


def test_odd_lines_of_the_log(guest: BootedGuest, limit: Deadline) -> None:
    told_by_both(guest, ("dmesg",), limit)
    # Whoever writes is held back otherwise.
    guest.shell.must("echo on >/proc/sys/kernel/printk_devkmsg", deadline=limit)
    for text in ODD_LINES:
        guest.shell.must(f"printf '{text}\\n' >/dev/kmsg", deadline=limit)
    data = told_by_both(guest, ("dmesg",), limit)["dmesg"].data
    assert re.search(rb"<12>\[ *[0-9.]+\](\[ *T[0-9]+\])? two\n<12>\[ *[0-9.]+\](\[ *T[0-9]+\])? lines\n", data)
    assert rb"back\\slash, \\x41, tab" in data and b"\303\244" in data and b"long " * 180 in data


def test_a_log_that_was_overwritten(guest: BootedGuest, limit: Deadline) -> None:
    told_by_both(guest, ("dmesg",), limit)
    guest.shell.must(
        "echo on >/proc/sys/kernel/printk_devkmsg; n=0; while [ $n -lt 3000 ]; do "
        "echo '<7>a line that takes the room of older ones, one after another'; n=$((n + 1)); done >/dev/kmsg",
        deadline=limit,
    )
    script, program = (told(guest, collector, ("dmesg",), limit)["dmesg"] for collector in (SCRIPT, PROGRAM))
    assert script.status == program.status == "lost"
    # The system call leaves out what its buffer has no room for, prefixes counted.
    assert program.data.endswith(script.data) and script.data
    assert told_by_both(guest, ("dmesg",), limit)["dmesg"].status == "ok"


def test_a_log_that_only_the_system_call_tells(guest: BootedGuest, limit: Deadline) -> None:
    told_by_both(guest, ("dmesg",), limit)
    guest.shell.must("echo '<6>before' >/dev/kmsg; echo off >/proc/sys/kernel/printk_devkmsg", deadline=limit)
    try:
        guest.shell.must("rm -f /run/memhp/since; ! cat /dev/kmsg", deadline=limit)
        whole = told_by_both(guest, ("dmesg",), limit)["dmesg"]
        # Neither has seen this log yet, whose beginning is gone.
        assert whole.status == "lost" and whole.data.endswith(b" before\n")
        assert told_by_both(guest, ("dmesg",), limit)["dmesg"] == Frame("dmesg", "ok", b"")
        guest.shell.must("echo m >/proc/sysrq-trigger", deadline=limit)
        assert b"Mem-Info:" in told_by_both(guest, ("dmesg",), limit)["dmesg"].data
    finally:
        guest.shell.must("echo on >/proc/sys/kernel/printk_devkmsg; rm /run/memhp/next", deadline=limit)
        told(guest, PROGRAM, ("dmesg",), limit)


def test_what_cannot_be_read(guest: BootedGuest, limit: Deadline) -> None:
    # There is nothing at address 0 of a process, and no page at the start of a disk that does not answer.
    over = ("/proc/meminfo", "/proc/kcore", "/proc/slabinfo")
    dump = "/sys/kernel/debug/kernel_page_tables"
    has_dump = guest.shell.run(f"test -e {dump}", deadline=limit).status == 0
    over += (dump,) if has_dump else ()
    guest.shell.must("".join(f"test -e {path} && mount --bind /proc/1/mem {path}; " for path in over), deadline=limit)
    try:
        frames = told_by_both(guest, ("meminfo", "kcore", "slabinfo", "ptdump", "uptime"), limit)
    finally:
        guest.shell.must("".join(f"umount {path}; " for path in over), deadline=limit)
    assert (frames["meminfo"].status, frames["meminfo"].detail) == ("failed", "cat: read error: Input/output error")
    assert (frames["kcore"].status, frames["kcore"].detail) == ("failed", "head: /proc/kcore: Input/output error")
    assert frames["ptdump"].status == ("failed" if has_dump else "missing") and frames["uptime"].status == "ok"


def test_what_is_missing(guest: BootedGuest, limit: Deadline) -> None:
    guest.shell.must("mkdir -p /tmp/empty; mount --bind /tmp/empty /proc; mount --bind /tmp/empty /sys", deadline=limit)
    try:
        frames = told_by_both(guest, SOURCES, limit)
    finally:
        guest.shell.must("umount /sys; umount /proc", deadline=limit)
    whole = {name for name, frame in frames.items() if frame.status != "missing"}
    assert whole == {"dmesg", "settings"}


def test_no_such_source(guest: BootedGuest, limit: Deadline) -> None:
    for collector in (SCRIPT, PROGRAM):
        done = guest.shell.run(f"{collector} MARK uptime nonsense", deadline=limit)
        assert done.status == 2 and b"no source nonsense" in done.stderr


def test_a_guest_root_without_the_program(guest: BootedGuest, limit: Deadline) -> None:
    def look() -> set[str]:
        guest.shell.must("rm -rf /run/memhp", deadline=limit)
        state = collect_state(guest.shell, None, None, facts=guest.facts, deadline=limit)
        assert state.boot_id and isinstance(state.iomem, tuple)
        return set(guest.shell.must("ls /run/memhp", deadline=limit).decode().split())

    # What they remember of the log tells who it was.
    assert "next" in look()
    guest.shell.must(f"mv {PROGRAM} {PROGRAM}.away", deadline=limit)
    try:
        assert "since" in look()
    finally:
        guest.shell.must(f"mv {PROGRAM}.away {PROGRAM}", deadline=limit)
