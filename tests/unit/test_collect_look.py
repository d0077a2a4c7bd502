# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots of a recorded guest: taken, parsed, saved, edited and loaded."""

from __future__ import annotations

import gzip
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from guest_peer import PlainShell, said

from harness.arch import ARM64, RISCV64
from harness.collect.look import collect_facts, collect_state, parse_parameters, parse_settings, parse_state
from harness.collect.parse_cache import ParseCache
from harness.collect.snapshot_folder import load_facts, load_state, save_facts, save_state
from harness.collect.sources import MISSING
from harness.deadline import Deadline
from harness.errors import GuestError, ParseError, UsageError
from harness.guest.console import Console
from harness.guest.ssh import OUTPUT_LIMIT, CommandResult
from harness.guest.waits import GuestWait
from harness.parsers.dmesg import alarming
from harness.parsers.iomem import parse_iomem
from harness.parsers.notes import Notes
from harness.state import LEFT_OUT, GuestState, IomemEntry, KernelFacts, MemoryDevice, NotObserved, Unknown
from harness.units import GIB, AddrRange

RECORDED = Path(__file__).parent / "fixtures" / "arm64-built"
AUXV = struct.pack("<6Q", 33, 0xFFFF_0000, 6, 4096, 0, 0)
FACTS_SOURCES = {
    "release": b"6.12.0-hp\n",
    "cmdline": b"console=ttyAMA0\n",
    "auxv": AUXV,
    "block_size": b"8000000\n",
    "config": (RECORDED / "config.gz").read_bytes(),
    "kcore": gzip.decompress((RECORDED / "kcore.bin.gz").read_bytes()),
    "parameters": b"memory_hotplug/parameters/memmap_on_memory:N\nprintk/parameters/time:Y\n",
    "settings": b"/proc/pagetypeinfo:Page block order: 9\n",
}
STATE_SOURCES = {
    "boot_id": b"c0ffee\n",
    "uptime": b"12.50 3.00\n",
    "auto_online": b"offline\n",
    "dax": b"",
    **{
        name: (RECORDED / f"{name}.txt").read_bytes()
        for name in ("iomem", "blocks", "meminfo", "zoneinfo", "vmstat", "ptdump", "dmesg")
    },
}


class RecordedGuest(PlainShell):
    """Answers like guest-scripts/collect, with recorded sources."""

    def __init__(self, sources: Mapping[str, bytes], statuses: Mapping[str, str] | None = None) -> None:
        self.sources = sources
        self.statuses = statuses or {}
        self.asked = ""

    def run(self, command: str, *, stdin: bytes = b"", deadline: Deadline, limit: int = OUTPUT_LIMIT) -> CommandResult:
        self.asked = command
        _, boundary, *names = command.split()
        out = b""
        for name in names:
            status = self.statuses.get(name, "ok" if name in self.sources else "missing")
            out += f"\n@@{boundary} begin {name}\n".encode() + self.sources.get(name, b"")
            out += f"\n@@{boundary} end {name} {status}\n".encode()
        return CommandResult(0, out + f"\n@@{boundary} done {len(names)}\n".encode(), b"")


@pytest.fixture(scope="module")
def facts() -> KernelFacts:
    return collect_facts(RecordedGuest(FACTS_SOURCES), ARM64, Deadline(60))


@pytest.fixture
def state(facts: KernelFacts) -> GuestState:
    return collect_state(RecordedGuest(STATE_SOURCES), None, None, facts=facts, deadline=Deadline(60))


def test_facts(facts: KernelFacts) -> None:
    assert (facts.arch, facts.release, facts.cmdline) == ("arm64", "6.12.0-hp", "console=ttyAMA0")
    assert (facts.page_size, facts.memory_block_size) == (4096, 128 << 20)
    assert facts.config is not None and facts.config["MEMORY_HOTPLUG"] == "y"
    assert not isinstance(facts.vmcoreinfo, NotObserved) and facts.vmcoreinfo["PAGESIZE"] == "4096"
    assert facts.parameters == {"memory_hotplug.memmap_on_memory": "N", "printk.time": "Y"}
    assert facts.files == {"/proc/pagetypeinfo": "Page block order: 9"}


def test_facts_of_a_kernel_that_tells_little() -> None:
    facts = collect_facts(RecordedGuest({"auxv": AUXV}), RISCV64, Deadline(60))
    assert facts.config is None and facts.memory_block_size == 0 and facts.parameters == {}
    assert facts.vmcoreinfo == NotObserved("this kernel has no CONFIG_PROC_KCORE")
    broken = collect_facts(RecordedGuest({"auxv": AUXV, "kcore": b"x"}), RISCV64, Deadline(60))
    assert isinstance(broken.vmcoreinfo, NotObserved) and "ELF" in broken.vmcoreinfo.reason
    plain = collect_facts(RecordedGuest({"auxv": AUXV, "config": b"CONFIG_SMP=y\n"}), RISCV64, Deadline(60))
    assert plain.config == {"SMP": "y"}
    with pytest.raises(GuestError, match="auxv has no page size"):
        collect_facts(RecordedGuest({}), ARM64, Deadline(60))


@pytest.mark.parametrize("config", [b"\x1f\x8bnonsense", gzip.compress(b"CONFIG_SMP=y\n", mtime=0)[:-6]])
def test_facts_with_a_broken_config(config: bytes) -> None:
    with pytest.raises(ParseError, match=r"/proc/config.gz:1: cannot be unpacked|truncated"):
        collect_facts(RecordedGuest({"auxv": AUXV, "config": config}), ARM64, Deadline(60))


def test_state(state: GuestState) -> None:
    assert (state.boot_id, state.uptime, state.auto_online) == ("c0ffee", 12.5, "offline")
    assert isinstance(state.iomem, tuple) and isinstance(state.blocks, tuple) and isinstance(state.zones, tuple)
    assert state.dax == () and isinstance(state.dmesg, tuple)
    assert state.slabs == NotObserved("this kernel has no CONFIG_SLUB_DEBUG")
    assert state.devices == NotObserved("QEMU was not asked")
    assert state.console == NotObserved("the console was not read")
    assert state.raw["iomem"] == STATE_SOURCES["iomem"]


def test_every_missing_source_has_a_reason(facts: KernelFacts) -> None:
    few = {name: STATE_SOURCES[name] for name in ("boot_id", "uptime")}
    state = collect_state(RecordedGuest(few), None, None, facts=facts, deadline=Deadline(60))
    assert state.page_tables == NotObserved("this kernel has no CONFIG_PTDUMP_DEBUGFS")
    assert state.blocks == state.auto_online == NotObserved("this kernel has no CONFIG_MEMORY_HOTPLUG")
    assert state.vmstat == NotObserved(MISSING["vmstat"]) and state.iomem == NotObserved(MISSING["iomem"])
    # Without the bus there are no devices.
    assert state.dax == ()


def test_a_source_nobody_wanted(facts: KernelFacts) -> None:
    guest = RecordedGuest(STATE_SOURCES)
    state = collect_state(guest, None, None, facts=facts, deadline=Deadline(60), sources=["iomem"])
    assert guest.asked.split()[2:] == ["boot_id", "uptime", "iomem"]
    assert isinstance(state.iomem, tuple)
    assert state.page_tables == state.vmstat == NotObserved("not asked for")


def test_a_source_that_failed_and_a_log_that_lost_lines(facts: KernelFacts) -> None:
    guest = RecordedGuest(STATE_SOURCES, {"ptdump": "failed cat: I/O error", "dmesg": "lost"})
    state = collect_state(guest, None, None, facts=facts, deadline=Deadline(60))
    assert state.page_tables == NotObserved("reading it failed: cat: I/O error")
    assert isinstance(state.dmesg, tuple) and state.dmesg and "log_buf_len" in state.dmesg_lost
    assert state.raw["dmesg"] == STATE_SOURCES["dmesg"] and "ptdump" not in state.raw


def test_alarms_in_the_log_and_on_the_console(facts: KernelFacts) -> None:
    line = "WARNING: CPU: 0 PID: 1 at mm/memory_hotplug.c:1 f+0x0/0x10"
    guest = RecordedGuest({**STATE_SOURCES, "dmesg": f"<4>[    1.000000] {line}\n".encode()})
    here, there = socket.socketpair()
    with here, there, Console(here, alarming) as console:
        there.sendall(f"{line}\nfine\n".encode())
        console.wait_line("fine", Deadline(60))
        first = collect_state(guest, None, console, facts=facts, deadline=Deadline(60))
        second = collect_state(guest, None, console, facts=facts, deadline=Deadline(60))
    assert first.console == (line,) and second.console == ()
    assert isinstance(first.dmesg, tuple) and [entry.alarm for entry in first.dmesg] == ["WARN"]


def test_an_alarm_beside_text_that_nobody_can_parse_stays_new(facts: KernelFacts) -> None:
    line = "Internal error: Oops: 0000000096000004 [#1] SMP"
    guest = RecordedGuest({**STATE_SOURCES, "meminfo": b"rubbish\n"})
    kept: list[Mapping[str, bytes]] = []
    here, there = socket.socketpair()
    with here, there, Console(here, alarming) as console:
        there.sendall(f"{line}\nfine\n".encode())
        console.wait_line("fine", Deadline(60))
        with pytest.raises(ParseError, match="MemTotal"):
            collect_state(guest, None, console, facts=facts, deadline=Deadline(60), keep=kept.append)
        assert [alarm.text for alarm in console.new_alarms()] == [line]
        assert console.new_alarms() == () and line.encode() in kept[0]["console"]


def test_a_collector_that_fails(facts: KernelFacts) -> None:
    class Broken(PlainShell):
        def run(self, command: str, *, stdin: bytes = b"", deadline: Deadline, limit: int = 0) -> CommandResult:
            return said("", 127, "sh: collect: not found")

    with pytest.raises(GuestError, match=r"collector failed \(status 127\): sh: collect: not found"):
        collect_state(Broken(), None, None, facts=facts, deadline=Deadline(60))


def test_a_snapshot_needs_its_boot(facts: KernelFacts) -> None:
    with pytest.raises(GuestError, match="no boot id or no uptime"):
        parse_state({}, facts)
    with pytest.raises(ParseError, match="uptime"):
        parse_state({"boot_id": b"x\n", "uptime": b"soon\n"}, facts)


def test_nothing_is_parsed_twice(facts: KernelFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    parses: list[str] = []

    def counted(text: str, notes: Notes) -> tuple[IomemEntry, ...]:
        parses.append(text)
        return parse_iomem(text, notes)

    monkeypatch.setattr("harness.collect.look.parse_iomem", counted)
    tree = STATE_SOURCES["iomem"] + b"10-1f : \n" + b" " * 22 + b"10-1f : x\n"
    raw = {**STATE_SOURCES, "iomem": tree, "meminfo": STATE_SOURCES["meminfo"] + b"odd\n"}
    cache = ParseCache()
    first, second = parse_state(raw, facts, cache), parse_state({**raw, "uptime": b"13 3\n"}, facts, cache)
    # The notes of a source that is not parsed again count in every snapshot, as if it were.
    assert parses == [tree.decode()] and first.garbled and first.unknown
    assert second == replace(first, raw=second.raw, uptime=13.0) == parse_state(second.raw, facts)
    assert second.iomem is first.iomem
    changed = parse_state({**raw, "iomem": STATE_SOURCES["iomem"].split(b"\n", 1)[1]}, facts, cache)
    assert changed.iomem != first.iomem and changed.garbled == () and len(parses) == 3
    for _ in range(2):
        with pytest.raises(ParseError, match="MemTotal"):
            parse_state({**raw, "meminfo": b"MemTotal: many\n"}, facts, cache)


def test_the_host_looks_while_the_guest_answers(facts: KernelFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2)

    class Guest(RecordedGuest):
        def run(
            self, command: str, *, stdin: bytes = b"", deadline: Deadline, limit: int = OUTPUT_LIMIT
        ) -> CommandResult:
            both.wait(60)
            return super().run(command, stdin=stdin, deadline=deadline, limit=limit)

    def outside(*_: object) -> tuple[dict[str, bytes], None, None]:
        both.wait(60)
        return {"backends": b"{}"}, None, None

    monkeypatch.setattr("harness.collect.look._look_from_outside", outside)
    state = collect_state(Guest(STATE_SOURCES), None, None, facts=facts, deadline=Deadline(60))
    assert state.backends == {} and isinstance(state.iomem, tuple)


def test_nothing_is_read_before_the_guest_has_waited(facts: KernelFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    late = threading.Event()

    class Guest(RecordedGuest):
        def run(
            self, command: str, *, stdin: bytes = b"", deadline: Deadline, limit: int = OUTPUT_LIMIT
        ) -> CommandResult:
            order.append(command.split()[0])
            if command.startswith("wait"):
                return said(f"{stdin.decode()} {command}")
            assert late.wait(60)
            return super().run(command, stdin=stdin, deadline=deadline, limit=limit)

    def outside(*_: object) -> tuple[dict[str, bytes], None, None]:
        order.append("outside")
        late.set()
        return {}, None, None

    def judge(done: CommandResult) -> None:
        order.append(done.text)

    monkeypatch.setattr("harness.collect.look._look_from_outside", outside)
    waits = [GuestWait((f"wait{number}", b"for"), judge) for number in (1, 2)]
    collect_state(Guest(STATE_SOURCES), None, None, facts=facts, deadline=Deadline(60), waits=waits)
    assert sorted(order[2:4]) == ["/usr/lib/memhp/collect", "outside"]
    assert order[:2] + order[4:] == ["wait1", "wait2", "for wait1", "for wait2"]


def test_what_a_fast_look_leaves_out_is_not_read(facts: KernelFacts) -> None:
    guest = RecordedGuest(STATE_SOURCES)
    state = collect_state(guest, None, None, facts=facts, deadline=Deadline(60), left_out=["ptdump"])
    assert "ptdump" not in guest.asked.split() and "iomem" in guest.asked.split()
    # Nobody observed the same: it is missing, not left out.
    assert (state.page_tables, state.left_out) == (NotObserved(LEFT_OUT), ())


def test_settings() -> None:
    assert parse_settings("/proc/a:b:c\n/proc/d:\n") == {"/proc/a": "b:c", "/proc/d": ""}
    notes = Notes()
    assert parse_settings("a/b:c\n/proc/d:e\n", notes) == {"/proc/d": "e"}
    assert notes.unknown == (Unknown("settings", "line", "a/b:c", 1),)


def test_parameters() -> None:
    assert parse_parameters("a/parameters/b:c:d\n") == {"a.b": "c:d"}
    notes = Notes()
    assert parse_parameters("a/b:c\na/parameters/b:d\n", notes) == {"a.b": "d"}
    assert notes.unknown == (Unknown("/sys/module", "line", "a/b:c", 1),)


def test_saved_states_are_parsed_afresh(tmp_path: Path, state: GuestState, facts: KernelFacts) -> None:
    directory = tmp_path / "states" / "000"
    save_state(directory, state)
    save_state(directory, state)
    assert sorted(path.name for path in directory.parent.iterdir()) == ["000"]
    assert load_state(directory, facts) == state
    lines = (directory / "iomem.txt").read_text().splitlines(keepends=True)
    (directory / "iomem.txt").write_text("".join(lines[1:]))
    edited = load_state(directory, facts)
    assert isinstance(edited.iomem, tuple) and isinstance(state.iomem, tuple) and edited.iomem != state.iomem
    (directory / "iomem.txt").unlink()
    assert load_state(directory, facts).iomem == NotObserved("not in this snapshot")


def test_what_qemu_told_is_saved_too(tmp_path: Path, state: GuestState, facts: KernelFacts) -> None:
    device = (
        b'[{"id": "d0", "kind": "dimm", "range": [2147483648, 3221225472], "size": 1073741824, "max_size": 1073741824,'
        b' "requested_size": null, "block_size": null, "node": 0, "slot": 0, "backend": "mem-d0"}]'
    )
    raw = {**state.raw, "devices": device, "backends": b'{"mem-d0": 4096}', "console": b'["oops"]', "absent": b""}
    full = parse_state(raw, facts)
    wanted = MemoryDevice("d0", "dimm", AddrRange(2 * GIB, 3 * GIB), GIB, GIB, None, None, 0, 0, "mem-d0")
    assert full.devices == (wanted,) and full.backends == {"mem-d0": 4096} and full.console == ("oops",)
    save_state(tmp_path / "s", full)
    assert load_state(tmp_path / "s", facts) == full
    assert (tmp_path / "s" / "devices.json").read_bytes() == device
    for name, bad in (("devices", b"[{}]"), ("devices", b"["), ("backends", b"[]"), ("console", b"{}")):
        with pytest.raises(ParseError, match=f"{name}.json:1: not "):
            parse_state({**raw, name: bad}, facts)


def test_saved_facts(tmp_path: Path, facts: KernelFacts) -> None:
    odd = replace(facts, config={**(facts.config or {}), "CMDLINE": 'a="b" \\', "N": "-1", "H": "0xff"})
    save_facts(tmp_path / "facts", odd)
    assert load_facts(tmp_path / "facts", ARM64) == odd
    bare = replace(facts, config=None, vmcoreinfo=NotObserved("no reason"))
    save_facts(tmp_path / "facts", bare)
    assert load_facts(tmp_path / "facts", ARM64) == bare


def test_what_is_no_saved_snapshot(tmp_path: Path, state: GuestState, facts: KernelFacts) -> None:
    with pytest.raises(UsageError, match=f"no saved state in {tmp_path}/gone: it has no meta.json"):
        load_state(tmp_path / "gone", facts)
    save_facts(tmp_path / "facts", facts)
    with pytest.raises(UsageError, match="holds no state of format 1"):
        load_state(tmp_path / "facts", facts)
    with pytest.raises(UsageError, match="was recorded on arm64, not on riscv64"):
        load_facts(tmp_path / "facts", RISCV64)
    (tmp_path / "facts" / "meta.json").write_text("{")
    with pytest.raises(UsageError, match=r"meta.json is not JSON"):
        load_facts(tmp_path / "facts", ARM64)
    (tmp_path / "facts" / "meta.json").write_text('{"format": 1, "kind": "facts", "arch": "arm64"}')
    with pytest.raises(UsageError, match=r"meta.json is incomplete: KeyError\('release'\)"):
        load_facts(tmp_path / "facts", ARM64)


def test_a_tree_that_changed_while_it_was_read_is_read_again(facts: KernelFacts) -> None:
    class Restless(RecordedGuest):
        """Prints a duplicate last line of /proc/iomem in the first ``torn`` reads."""

        torn = 2

        def run(
            self, command: str, *, stdin: bytes = b"", deadline: Deadline, limit: int = OUTPUT_LIMIT
        ) -> CommandResult:
            whole = STATE_SOURCES["iomem"]
            more = b"".join([b"fffff000-ffffffff : x%d\n" % self.torn] * 2) if self.torn else b""
            self.torn = max(0, self.torn - 1)
            self.sources = {**self.sources, "iomem": whole + more}
            return super().run(command, stdin=stdin, deadline=deadline, limit=limit)

    state = collect_state(Restless(STATE_SOURCES), None, None, facts=facts, deadline=Deadline(60))
    assert state.raw["iomem"] == STATE_SOURCES["iomem"]
    twice = STATE_SOURCES["iomem"] + b"fffff000-ffffffff : x\n" * 2
    guest = RecordedGuest({**STATE_SOURCES, "iomem": twice})
    lasting = collect_state(guest, None, None, facts=facts, deadline=Deadline(60))
    assert lasting.raw["iomem"] == twice and guest.asked.endswith(" iomem")


def test_text_that_cannot_be_parsed_is_handed_over_first(facts: KernelFacts) -> None:
    kept: list[Mapping[str, bytes]] = []
    guest = RecordedGuest({**STATE_SOURCES, "meminfo": b"MemTotal: many\n"})
    with pytest.raises(ParseError, match="/proc/meminfo:1: not 'MemTotal"):
        collect_state(guest, None, None, facts=facts, deadline=Deadline(60), keep=kept.append)
    assert len(kept) == 1 and kept[0]["meminfo"] == b"MemTotal: many\n" and kept[0]["iomem"] == STATE_SOURCES["iomem"]


def test_what_a_kernels_facts_have_that_nobody_knows(tmp_path: Path) -> None:
    sources = {**FACTS_SOURCES, "config": b"CONFIG_A=y\nCONFIG_B=\x01\n", "parameters": b"odd\n"}
    facts = collect_facts(RecordedGuest(sources), ARM64, Deadline(60))
    assert facts.unknown == (
        Unknown("kernel config", "line", r"CONFIG_B=\x01", 1),
        Unknown("/sys/module", "line", "odd", 1),
        Unknown("kernel config", "line with characters of no text", r"CONFIG_B=\x01", 1),
    )
    save_facts(tmp_path / "facts", facts)
    assert load_facts(tmp_path / "facts", ARM64) == facts
