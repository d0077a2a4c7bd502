# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent in a real guest: it does the same as the scripts that it replaces, and stays resident."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from agents import kill_agent, kill_agent_at_work
from needs import need

from harness.collect.look import collect_state
from harness.collect.sources import FACT_SOURCES, STATE_SOURCES, Frame, parse_frames
from harness.config.guest import GuestSpec
from harness.deadline import Deadline
from harness.errors import DeadlineExpired, GuestError
from harness.guest import loads, namespaces
from harness.guest.drivers import wait_driver
from harness.guest.kernel_files import read_files
from harness.guest.memory_blocks import set_auto_online, set_blocks, wait_blocks
from harness.guest.ssh import CommandResult
from harness.parsers.vmcoreinfo import note_from_kcore
from harness.qemu import memdev
from harness.qemu.devices.dimm import DimmSpec
from harness.qemu.devices.virtio_pmem import VirtioPmemSpec
from harness.scenarios.boot import BootedGuest, Parts, boot_guest
from harness.state import GuestState, NotObserved
from harness.units import GIB, MIB

pytestmark = [pytest.mark.memhp_guest, pytest.mark.shared_guest]

BOOT_SECONDS = 600.0
SCRIPT, PROGRAM = "sh /usr/lib/memhp/collect", "/usr/bin/agent collect"
DUMP = "/sys/kernel/debug/kernel_page_tables"
SOURCES = (*STATE_SOURCES, *FACT_SOURCES)


@pytest.fixture(scope="module")
def guest(
    memhp_guest_spec: GuestSpec, memhp_artifacts: Parts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BootedGuest]:
    with boot_guest(memhp_guest_spec, memhp_artifacts, tmp_path_factory.mktemp("guest") / "run", BOOT_SECONDS) as guest:
        yield guest


@pytest.fixture
def limit() -> Deadline:
    return Deadline(240)


def by_shape(data: bytes) -> bytes:
    """The shape of a table whose numbers keep changing."""
    return re.sub(rb" +", b" ", re.sub(rb"[0-9]+", b"0", data))


def without_vmalloc(data: bytes) -> bytes:
    """A dump of the page tables without vmalloc, where the stacks of processes come and go."""
    kept, skipped = [], False
    for row in data.splitlines():
        if row.startswith(b"---["):
            skipped = row.startswith((b"---[ vmalloc start", b"---[ vmalloc() area"))
        if not skipped:
            kept.append(row)
    assert kept
    return b"\n".join(kept)


def page_size(data: bytes) -> bytes:
    """The AT_PAGESZ pair of the auxiliary vector."""
    [pair] = [data[at : at + 16] for at in range(0, len(data), 16) if data[at : at + 8] == b"\6" + bytes(7)]
    return pair


#: how to compare a source that changes by itself or differs between processes; all others are compared byte by byte
COMPARED: dict[str, Callable[[bytes], object]] = {
    **dict.fromkeys(("uptime", "meminfo", "zoneinfo", "slabinfo", "vmstat"), by_shape),
    "ptdump": without_vmalloc,
    "auxv": page_size,
    "kcore": note_from_kcore,
}


def collected(guest: BootedGuest, collector: str, sources: Sequence[str], limit: Deadline) -> dict[str, Frame]:
    done = guest.shell.run(f"{collector} MARK {' '.join(sources)}", deadline=limit)
    assert (done.status, done.stderr) == (0, b"")
    return parse_frames(done.stdout, "MARK")


def collected_by_both(guest: BootedGuest, sources: Sequence[str], limit: Deadline) -> dict[str, Frame]:
    """The agent's output, after checking that the script prints the same."""
    script, program = (collected(guest, collector, sources, limit) for collector in (SCRIPT, PROGRAM))
    assert list(script) == list(program) == list(sources)
    for name in sources:
        expected, found = script[name], program[name]
        assert (expected.status, expected.detail) == (found.status, found.detail), name
        same = COMPARED.get(name, bytes)
        if expected.status in ("ok", "lost"):
            assert same(expected.data) == same(found.data), name
        else:
            assert expected.data == found.data, name
    return program


def pid(guest: BootedGuest, limit: Deadline) -> int:
    return int(guest.shell.must("pidof agent", deadline=limit))


def look(guest: BootedGuest, limit: Deadline) -> GuestState:
    return collect_state(guest.shell, None, None, facts=guest.facts, deadline=limit)


def test_it_stays(guest: BootedGuest, limit: Deadline) -> None:
    """Comes first: the agent opens the files that it keeps open before any memory is added."""
    first = look(guest, limit)
    agent = pid(guest, limit)
    assert look(guest, limit).uptime > first.uptime and pid(guest, limit) == agent
    open_files = guest.shell.must(f"ls -l /proc/{agent}/fd", deadline=limit).decode()
    # The dump's file stays open to keep its buffer.
    assert (DUMP in open_files) == (not isinstance(first.page_tables, NotObserved))


def test_at_rest(guest: BootedGuest, limit: Deadline) -> None:
    guest.shell.must("rm -rf /run/memhp", deadline=limit)
    first = collected_by_both(guest, SOURCES, limit)
    for name in ("boot_id", "uptime", "iomem", "blocks", "meminfo", "zoneinfo", "dmesg", "vmstat", "release", "kcore"):
        assert (first[name].status, bool(first[name].data)) == ("ok", True), name
    assert first["dmesg"].data.startswith(b"<") and first["dmesg"].data.count(b"\n") > 100
    # Both remember which lines of the log they have printed.
    assert collected_by_both(guest, ("dmesg",), limit)["dmesg"].data == b""


def test_with_a_dimm(guest: BootedGuest, memhp_artifacts: Parts, limit: Deadline) -> None:
    need(guest, memhp_artifacts, "pc-dimm", "ACPI_HOTPLUG_MEMORY")
    set_auto_online(guest.shell, "offline", deadline=limit)
    before = collected_by_both(guest, SOURCES, limit)
    assert memdev.plug(guest.machine, DimmSpec("dimm0", 512 * MIB), deadline=limit).kind == "done"
    size = guest.facts.memory_block_size
    where = memdev.memory_device(guest.machine, "dimm0", deadline=limit).range
    blocks = range(where.start // size, where.end // size)
    wait_blocks(guest.shell, states=dict.fromkeys(blocks, "offline"), deadline=limit)
    added = collected_by_both(guest, SOURCES, limit)
    assert all(f"memory{block}/state:offline\n".encode() in added["blocks"].data for block in blocks)
    assert added["iomem"].data != before["iomem"].data
    assert all(done.ok for done in set_blocks(guest.shell, blocks, "online_movable", deadline=limit))
    online = collected_by_both(guest, SOURCES, limit)
    assert all(f"memory{block}/valid_zones:Movable\n".encode() in online["blocks"].data for block in blocks)
    assert online["zoneinfo"].data != added["zoneinfo"].data
    assert all(done.ok for done in set_blocks(guest.shell, blocks, "offline", deadline=limit))
    assert memdev.unplug(guest.machine, "dimm0", deadline=limit).kind == "deleted"
    wait_blocks(guest.shell, absent=blocks, deadline=limit)
    assert collected_by_both(guest, SOURCES, limit)["blocks"].data == before["blocks"].data


def test_with_a_dax_device(guest: BootedGuest, memhp_artifacts: Parts, limit: Deadline) -> None:
    need(guest, memhp_artifacts, "virtio-pmem-pci", "DEV_DAX_KMEM")
    memdev.plug(guest.machine, VirtioPmemSpec("pmem0", GIB), deadline=limit)
    wait_driver(guest.shell, "nd", "namespace0.0", "nd_pmem", deadline=limit)
    assert namespaces.create_devdax(guest.shell, "namespace0.0", map="mem", align=2 * MIB, deadline=limit).ok
    assert b"dax0.0/driver:device_dax\n" in collected_by_both(guest, SOURCES, limit)["dax"].data
    assert namespaces.to_system_ram(guest.shell, "dax0.0", deadline=limit).ok
    assert b"dax0.0/driver:kmem\n" in collected_by_both(guest, SOURCES, limit)["dax"].data


#: printf formats written into the log: several lines, an empty one, bytes that the kernel escapes
ODD_LINES = (
    r"<4>two\nlines",
    r"<4>\n<5>starts with an empty one",
    r"<11>of a program\n\nwith a gap",
    r"<6>back\\\\slash, \\\\x41, tab\tand \303\244",
    "<6>" + "long " * 180,
)


def test_odd_lines_of_the_log(guest: BootedGuest, limit: Deadline) -> None:
    collected_by_both(guest, ("dmesg",), limit)
    # Otherwise the kernel rate-limits the writer.
    guest.shell.must("echo on >/proc/sys/kernel/printk_devkmsg", deadline=limit)
    for text in ODD_LINES:
        guest.shell.must(f"printf '{text}\\n' >/dev/kmsg", deadline=limit)
    data = collected_by_both(guest, ("dmesg",), limit)["dmesg"].data
    assert re.search(rb"<12>\[ *[0-9.]+\](\[ *T[0-9]+\])? two\n<12>\[ *[0-9.]+\](\[ *T[0-9]+\])? lines\n", data)
    assert rb"back\\slash, \\x41, tab" in data and b"\303\244" in data and b"long " * 180 in data


def test_a_log_that_was_overwritten(guest: BootedGuest, limit: Deadline) -> None:
    collected_by_both(guest, ("dmesg",), limit)
    guest.shell.must(
        "echo on >/proc/sys/kernel/printk_devkmsg; n=0; while [ $n -lt 3000 ]; do "
        "echo '<7>a line that takes the room of older ones, one after another'; n=$((n + 1)); done >/dev/kmsg",
        deadline=limit,
    )
    script, program = (collected(guest, collector, ("dmesg",), limit)["dmesg"] for collector in (SCRIPT, PROGRAM))
    assert script.status == program.status == "lost"
    # The system call omits what does not fit into its buffer, prefixes included.
    assert program.data.endswith(script.data) and script.data
    assert collected_by_both(guest, ("dmesg",), limit)["dmesg"].status == "ok"


def test_a_log_that_only_the_system_call_tells(guest: BootedGuest, limit: Deadline) -> None:
    collected_by_both(guest, ("dmesg",), limit)
    guest.shell.must("echo '<6>before' >/dev/kmsg; echo off >/proc/sys/kernel/printk_devkmsg", deadline=limit)
    try:
        guest.shell.must("rm -f /run/memhp/since; ! cat /dev/kmsg", deadline=limit)
        whole = collected_by_both(guest, ("dmesg",), limit)["dmesg"]
        # Neither has read this log yet, and its beginning is gone.
        assert whole.status == "lost" and whole.data.endswith(b" before\n")
        assert collected_by_both(guest, ("dmesg",), limit)["dmesg"] == Frame("dmesg", "ok", b"")
        guest.shell.must("echo m >/proc/sysrq-trigger", deadline=limit)
        assert b"Mem-Info:" in collected_by_both(guest, ("dmesg",), limit)["dmesg"].data
    finally:
        guest.shell.must("echo on >/proc/sys/kernel/printk_devkmsg; rm /run/memhp/next", deadline=limit)
        collected(guest, PROGRAM, ("dmesg",), limit)


def test_what_cannot_be_read(guest: BootedGuest, limit: Deadline) -> None:
    # A process has nothing mapped at address 0, and a disk that does not answer has no first page.
    over = ("/proc/meminfo", "/proc/kcore", "/proc/slabinfo")
    has_dump = guest.shell.run(f"test -e {DUMP}", deadline=limit).status == 0
    over += (DUMP,) if has_dump else ()
    guest.shell.must("".join(f"test -e {path} && mount --bind /proc/1/mem {path}; " for path in over), deadline=limit)
    try:
        frames = collected_by_both(guest, ("meminfo", "kcore", "slabinfo", "ptdump", "uptime"), limit)
    finally:
        guest.shell.must("".join(f"umount {path}; " for path in over), deadline=limit)
    assert (frames["meminfo"].status, frames["meminfo"].detail) == ("failed", "cat: read error: Input/output error")
    assert (frames["kcore"].status, frames["kcore"].detail) == ("failed", "head: /proc/kcore: Input/output error")
    assert frames["ptdump"].status == ("failed" if has_dump else "missing") and frames["uptime"].status == "ok"


def test_what_is_missing(guest: BootedGuest, limit: Deadline) -> None:
    guest.shell.must("mkdir -p /tmp/empty; mount --bind /tmp/empty /proc; mount --bind /tmp/empty /sys", deadline=limit)
    try:
        frames = collected_by_both(guest, SOURCES, limit)
    finally:
        guest.shell.must("umount /sys; umount /proc", deadline=limit)
    whole = {name for name, frame in frames.items() if frame.status != "missing"}
    assert whole == {"dmesg", "settings"}


def test_no_such_source(guest: BootedGuest, limit: Deadline) -> None:
    for collector in (SCRIPT, PROGRAM):
        done = guest.shell.run(f"{collector} MARK uptime nonsense", deadline=limit)
        assert done.status == 2 and b"no source nonsense" in done.stderr


def test_one_that_was_killed_is_started_again(guest: BootedGuest, limit: Deadline) -> None:
    look(guest, limit)
    first = pid(guest, limit)
    guest.shell.must("echo on >/proc/sys/kernel/printk_devkmsg; echo '<6>meanwhile' >/dev/kmsg", deadline=limit)
    kill_agent(guest.shell, limit)
    state = look(guest, limit)
    assert pid(guest, limit) != first
    # The next agent knows which lines of the log were printed.
    assert isinstance(state.dmesg, tuple) and [line.text for line in state.dmesg] == ["meanwhile"]


def test_one_that_stalls_is_given_up(guest: BootedGuest, limit: Deadline) -> None:
    look(guest, limit)
    guest.shell.must("killall -STOP agent", deadline=limit)
    with pytest.raises(DeadlineExpired, match=r"waiting for '/usr/lib/memhp/collect .* in the guest"):
        look(guest, Deadline(5))
    assert look(guest, limit).boot_id
    guest.shell.must("killall -CONT agent", deadline=limit)
    # Nothing is connected to the first agent any more.
    guest.shell.must("until [ $(pidof agent | wc -w) = 1 ]; do usleep 10000; done", deadline=limit)


def test_one_that_ends_at_work(guest: BootedGuest, limit: Deadline) -> None:
    look(guest, limit)
    kill_agent_at_work(guest.shell, limit)
    with pytest.raises(GuestError, match="the guest agent exited while it ran '/usr/lib/memhp/collect "):
        look(guest, limit)
    assert look(guest, limit).boot_id


def test_a_guest_root_without_the_program(guest: BootedGuest, limit: Deadline) -> None:
    look(guest, limit)
    guest.shell.must("mv /usr/bin/agent /usr/bin/away; rm -r /run/memhp", deadline=limit)
    kill_agent(guest.shell, limit)
    try:
        state = look(guest, limit)
        assert state.boot_id and isinstance(state.iomem, tuple)
        # Its record of the last log line shows whether the script or the agent ran.
        assert "since" in guest.shell.must("ls /run/memhp", deadline=limit).decode().split()
        assert not guest.shell._has_agent
    finally:
        guest.shell.must("mv /usr/bin/away /usr/bin/agent", deadline=limit)
        guest.shell._has_agent = True


def by_both(guest: BootedGuest, command: str, limit: Deadline, stdin: bytes = b"") -> CommandResult:
    """The resident agent's answer, after checking that the script's and the program's are the same but for times."""
    script, _, words = command.partition(" ")
    answers = []
    for way in (f"sh /usr/lib/memhp/{script}", f"/usr/bin/agent {script}", f"/usr/lib/memhp/{script}"):
        done = guest.shell.run(f"{way} {words}".rstrip(), stdin=stdin, deadline=limit)
        text = re.sub(r"(?:^|(?<= ))(?:-|[0-9]+) (?=ok$|failed )", "TIME ", done.text, flags=re.M)
        answers.append(CommandResult(done.status, text.encode(), done.stderr))
    assert answers[0] == answers[1] == answers[2]
    return answers[0]


def lines_by_both(guest: BootedGuest, command: str, stdin: bytes, limit: Deadline) -> list[str]:
    done = by_both(guest, command, limit, stdin)
    assert (done.status, done.stderr) == (0, b"")
    return done.text.splitlines()


def test_blocks(guest: BootedGuest, memhp_artifacts: Parts, limit: Deadline) -> None:
    need(guest, memhp_artifacts, "pc-dimm", "ACPI_HOTPLUG_MEMORY")
    set_auto_online(guest.shell, "offline", deadline=limit)
    size = guest.facts.memory_block_size
    assert memdev.plug(guest.machine, DimmSpec("dimm1", 2 * size), deadline=limit).kind == "done"
    where = memdev.memory_device(guest.machine, "dimm1", deadline=limit).range
    first, second = range(where.start // size, where.end // size)
    wait_blocks(guest.shell, states={first: "offline", second: "offline"}, deadline=limit)
    both = f"{first}\n{second}\n".encode()
    assert lines_by_both(guest, "blocks zones", both + b"99999\n", limit)[2] == "99999 "
    assert set_blocks(guest.shell, [first], "online_movable", deadline=limit)[0].ok
    assert lines_by_both(guest, "blocks set online 60", f"{first}\n".encode(), limit) == [
        f"{first} TIME failed Invalid argument"
    ]
    assert lines_by_both(guest, "blocks set online_movable", f"{first}\n99999\n".encode(), limit) == [
        f"{first} TIME failed Invalid argument",
        "99999 TIME failed No such file or directory",
    ]
    assert lines_by_both(guest, "blocks zones", both, limit)[0] == f"{first} Movable"
    met = f"{first} online\n{second} present\n99999 absent\n".encode()
    assert lines_by_both(guest, "blocks wait 500", met, limit) == []
    assert lines_by_both(
        guest, "blocks wait 10", f"{first} offline\n{second} online\n{second} absent\n{first} online\n".encode(), limit
    ) == [
        f"{first} offline online",
        f"{second} online offline",
        f"{second} absent present",
    ]
    [done] = set_blocks(guest.shell, [first], "offline", deadline=limit, patience=60)
    assert done.ok and done.seconds is not None and 0.0 < done.seconds < 60.0
    assert memdev.unplug(guest.machine, "dimm1", deadline=limit).kind == "deleted"
    wait_blocks(guest.shell, absent=[first, second], deadline=limit)


def test_files(guest: BootedGuest, limit: Deadline) -> None:
    guest.shell.must("mkdir -p /tmp/f/empty; printf 'no end' >/tmp/f/b; ln -s ../away /tmp/f/c", deadline=limit)
    files, links = ("/tmp/f/*", "/sys/bus/*/none", "/proc/version", "/sys/none"), ("/tmp/f/*", "/sys/class/net/*")
    patterns = [f"file {path}\n" for path in files] + [f"link {path}\n" for path in links]
    done = by_both(guest, "files read", limit, "".join(patterns).encode())
    assert done.status == 0 and b"file 6 /tmp/f/b\nno end\nfailed 25 /tmp/f/c\n" in done.stdout
    assert b"link 7 /tmp/f/c\n../away\n" in done.stdout and b"\nfailed 25 /sys/none\n" in done.stdout
    done = by_both(guest, "files read", limit, b"nonsense /tmp/f/b\n")
    assert (done.status, done.stderr) == (2, b"files: neither file nor link: nonsense /tmp/f/b\n")
    values = b"/tmp/f/b 1  2\n/sys/none 1\n/sys/kernel/mm/none 1\n/proc/sys/vm/swappiness x\n/proc/version 1\n"
    assert lines_by_both(guest, "files write", values, limit) == [
        "TIME ok",
        "TIME failed No such file or directory",
        "TIME failed No such file or directory",
        "TIME failed Invalid argument",
        "TIME failed Input/output error",
    ]
    assert guest.shell.must("cat /tmp/f/b", deadline=limit) == b"1  2\n"


def test_drivers(guest: BootedGuest, limit: Deadline) -> None:
    link = "/sys/bus/virtio/devices/virtio0/driver"
    driver = read_files(guest.shell, [link], links=True, deadline=limit)[link].data.decode().split("/")[-1]
    assert by_both(guest, f"wait-driver virtio virtio0 {driver} 60", limit) == CommandResult(0, b"", b"")
    done = by_both(guest, "wait-driver virtio virtio0 other 0", limit)
    assert done == CommandResult(1, f"virtio0 with {driver}\n".encode(), b"")
    done = by_both(guest, "wait-driver virtio virtio99 other 0", limit)
    assert done == CommandResult(1, b"no virtio99\n", b"")
    assert by_both(guest, "wait-work no_such_queue 60", limit) == CommandResult(0, b"", b"")
    done = by_both(guest, "slot 4095 on", limit)
    assert done == CommandResult(1, b"", b"slot 4095: no root port has this slot\n")
    for words in ("list", "raw namespace9.0", "kmem dax9.0"):
        assert by_both(guest, f"pmem {words}", limit).status in (0, 4, 5)


@pytest.mark.parametrize("way", ["sh /usr/lib/memhp/slot", "/usr/lib/memhp/slot"])
def test_slots(guest: BootedGuest, memhp_artifacts: Parts, limit: Deadline, way: str) -> None:
    need(guest, memhp_artifacts, "virtio-pmem-pci", "VIRTIO_PMEM")
    machine = guest.machine
    memdev.plug(machine, VirtioPmemSpec("pmem1", GIB), deadline=limit)
    mark, slot = machine.qmp.seq, memdev.pci_slot(machine, "pmem1", deadline=limit)
    # pciehp refuses while it powers the device up by itself (pciehp_sysfs_disable_slot,
    # drivers/pci/hotplug/pciehp_ctrl.c).
    refused = f"slot {slot}: the kernel refused to switch it off: No such device\n".encode()
    while (off := guest.shell.run(f"{way} {slot} off", deadline=limit)) != CommandResult(0, b"", b""):
        assert off == CommandResult(1, b"", refused)
    assert memdev.await_ejected(machine, "pmem1", since=mark, deadline=limit).kind == "deleted"


def by_turns(guest: BootedGuest, commands: Sequence[str], limit: Deadline) -> list[CommandResult]:
    """The resident agent's answers to commands of the script pmem that end where they began, after the script's."""
    answers = [
        [guest.shell.run(f"{way} {command}", deadline=limit) for command in commands]
        for way in ("sh /usr/lib/memhp/pmem", "/usr/lib/memhp/pmem")
    ]
    for command, script, agent in zip(commands, *answers, strict=True):
        assert script == agent, command
    return answers[1]


def test_persistent_memory(guest: BootedGuest, memhp_artifacts: Parts, limit: Deadline) -> None:
    """Follows test_with_a_dax_device, which leaves its device bound to kmem."""
    need(guest, memhp_artifacts, "virtio-pmem-pci", "DEV_DAX_KMEM")
    set_auto_online(guest.shell, "offline", deadline=limit)
    assert namespaces.to_devdax(guest.shell, "dax0.0", deadline=limit).ok
    assert namespaces.destroy(guest.shell, "namespace0.0", deadline=limit).ok
    done = by_turns(
        guest,
        [
            "list",
            "devdax namespace0.0 pmem 2097152",
            "devdax namespace0.0 ram 4096",
            "list",
            "unkmem dax0.0",
            "kmem dax0.0",
            "kmem dax0.0",
            "raw namespace0.0",
            "state dax0.0 nonsense",
            "unkmem dax0.0",
            "devdax namespace0.0 nonsense 2097152",
            "raw namespace0.0",
            "list",
        ],
        limit,
    )
    assert [result.status for result in done] == [0, 0, 0, 0, 3, 0, 3, 3, done[8].status, 0, 3, 0, 0]
    assert done[8].status in (3, 6) and done[0] == done[-1]
    assert done[1].text == "dax0.0\n" and done[5].text == "dax0.0\n" and "in use as system RAM" in done[7].text
    assert guest.shell.must("pidof agent", deadline=limit).split() == [str(pid(guest, limit)).encode()]


def test_failing_allocations(guest: BootedGuest, memhp_artifacts: Parts, limit: Deadline) -> None:
    """Not of pages: Linux 6.12 panics without page tables."""
    need(guest, memhp_artifacts, "virtio-pmem-pci", "FAILSLAB")
    assert namespaces.create_devdax(guest.shell, "namespace0.0", map="mem", align=2 * MIB, deadline=limit).ok
    failing = ["kmem dax0.0 1 failslab 0", "kmem dax0.0 1 failslab 1", "kmem dax0.0 1 nonsense 0"]
    done = by_turns(guest, failing, limit)
    # Unbound from device_dax, as nothing was written.
    guest.shell.must("echo dax0.0 >/sys/bus/dax/drivers/device_dax/bind", deadline=limit)
    assert [result.status for result in done][2] == 4 and done[2].text == "no nonsense\n"
    assert done[0].status == 3 and done[0].text == "kmem did not bind dax0.0: see the kernel log\n"
    # Nothing fails: the number of allocations may differ by a few.
    for way in ("sh /usr/lib/memhp/pmem", "/usr/lib/memhp/pmem"):
        said = guest.shell.must(f"{way} kmem dax0.0 99999 failslab 0", deadline=limit).decode()
        assert re.fullmatch(r"dax0\.0\nleft [0-9]{5}\n", said)
        assert namespaces.to_devdax(guest.shell, "dax0.0", deadline=limit).ok
    assert namespaces.destroy(guest.shell, "namespace0.0", deadline=limit).ok


def test_loads(guest: BootedGuest, limit: Deadline) -> None:
    client = "exec /usr/bin/load-keeper"
    assert guest.shell.run(f"{client} stop 1000 none", deadline=limit) == CommandResult(4, b"", b"")
    assert guest.shell.run("/usr/bin/load-keeper stop 1000 none", deadline=limit) == CommandResult(4, b"", b"")
    loads.start_load(guest.shell, "a", "anon", {"size": MIB}, deadline=limit)
    loads.start_load(guest.shell, "b", "anon", {"size": MIB}, deadline=limit)
    paused = loads.pause_loads(guest.shell, deadline=limit)
    assert set(paused) == {"a", "b"} and all(count.running for count in paused.values())
    by_client = guest.shell.run(f"{client} count 60000", deadline=limit)
    assert by_client == guest.shell.run("/usr/bin/load-keeper count 60000", deadline=limit)
    assert by_client.text.count("resting") == 2
    loads.resume_loads(guest.shell, deadline=limit)
    later = loads.pause_loads(guest.shell, deadline=limit)
    assert all(later[id].rounds > paused[id].rounds for id in later)
    for id in ("a", "b"):
        assert loads.stop_load(guest.shell, id, deadline=limit).rounds >= later[id].rounds
    assert loads.pause_loads(guest.shell, deadline=limit) == {}


def test_a_wait_does_not_poll(guest: BootedGuest, limit: Deadline) -> None:
    def switches() -> int:
        status = guest.shell.must(f"cat /proc/{agent}/status", deadline=limit).decode()
        return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])

    look(guest, limit)
    agent = pid(guest, limit)
    before = switches()
    with ThreadPoolExecutor(1) as pool:
        wait = pool.submit(guest.shell.run, "/usr/lib/memhp/blocks wait 300", stdin=b"99999 online\n", deadline=limit)
        # A socket for uevents: protocol 15 (NETLINK_KOBJECT_UEVENT).
        guest.shell.must(f"until grep -q ' 15  *{agent} ' /proc/net/netlink; do usleep 1000; done", deadline=limit)
        assert wait.result().text == "99999 online absent\n"
    # Every 100 ms, and not every 2 ms.
    assert switches() - before < 100
    assert guest.shell.run(f"grep -q ' 15  *{agent} ' /proc/net/netlink", deadline=limit).status == 1


def test_the_session_and_its_agent_share_a_cpu_with_the_network_and_commands_have_all(guest: BootedGuest) -> None:
    limit = Deadline(60)
    read_files(guest.shell, ["/proc/uptime"], deadline=limit)
    words = guest.shell.must("for p in $(pidof agent) $PPID $$; do taskset -p $p; done", deadline=limit).split()
    assert [int(mask, 16) for mask in words[5::6]] == [1, 1, (1 << guest.machine.spec.cpus) - 1]
    irqs = "cd /proc/irq; for i in $(ls /sys/class/net/*/device/../msi_irqs); do cat $i/smp_affinity; done"
    masks = guest.shell.must(f"{irqs}; cat default_smp_affinity", deadline=limit).split()
    assert len(masks) > 1 and {int(mask, 16) for mask in masks} == {1}
