# SPDX-License-Identifier: GPL-2.0-or-later
"""A real guest: SSH, the console, the whole state in one round trip, memory blocks, persistent memory."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from needs import need

from harness.collect.hostside import KernelView
from harness.collect.look import collect_state
from harness.collect.snapshot_folder import load_state, save_state
from harness.config.guest import GuestSpec
from harness.deadline import Deadline
from harness.errors import DeadlineExpired, GuestError
from harness.guest import memory_blocks, namespaces
from harness.guest.drivers import wait_driver
from harness.guest.memory_blocks import set_auto_online, set_blocks, wait_blocks
from harness.guest.overlay import SCRIPTS
from harness.guest.use_memory import touch_memory
from harness.kmem.tablecount import CountLayout
from harness.qemu import memdev
from harness.qemu.devices.dimm import DimmSpec
from harness.qemu.devices.virtio_pmem import VirtioPmemSpec
from harness.qemu.machine_spec import LAYOUTS
from harness.scenarios.boot import BootedGuest, Parts, boot_guest
from harness.state import GuestState, HostTables, NotObserved, TableCount
from harness.units import GIB, MIB, AddrRange

pytestmark = [pytest.mark.memhp_guest, pytest.mark.shared_guest]

BOOT_SECONDS = 600.0


@pytest.fixture(scope="module")
def guest(
    memhp_guest_spec: GuestSpec, memhp_artifacts: Parts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BootedGuest]:
    with boot_guest(memhp_guest_spec, memhp_artifacts, tmp_path_factory.mktemp("guest") / "run", BOOT_SECONDS) as guest:
        yield guest


@pytest.fixture
def limit() -> Deadline:
    return Deadline(240)


def look(guest: BootedGuest, limit: Deadline, kernel: KernelView | None = None) -> GuestState:
    return collect_state(guest.shell, guest.machine, guest.console, facts=guest.facts, deadline=limit, kernel=kernel)


def test_commands(guest: BootedGuest, limit: Deadline) -> None:
    data = bytes(range(256)) * 4096
    done = guest.shell.run("cat; echo end >&2; exit 7", stdin=data, deadline=limit)
    assert (done.status, done.stdout, done.stderr) == (7, data, b"end\n")
    assert guest.shell.run("kill -9 $$", deadline=limit).status == -1


def test_a_command_nobody_listens_to_does_not_stay(guest: BootedGuest, limit: Deadline) -> None:
    with pytest.raises(GuestError, match="printed more than 65536 bytes"):
        guest.shell.run("exec cat /dev/zero", deadline=limit, limit=65536)
    guest.shell.must("while pgrep -x cat >/dev/null; do usleep 10000; done", deadline=limit)
    with pytest.raises(DeadlineExpired, match="waiting for 'sleep 1000' in the guest"):
        guest.shell.run("sleep 1000", deadline=Deadline(5))


def test_a_warning_is_noticed(guest: BootedGuest, limit: Deadline) -> None:
    look(guest, limit)
    mark = guest.console.mark
    warning = "WARNING: CPU: 0 PID: 1 at mm/memory_hotplug.c:1 test+0x0/0x10"
    guest.shell.must(f"echo '<4>{warning}' >/dev/kmsg", deadline=limit)
    assert guest.console.wait_line("test", limit, since=mark).alarm == "WARN"
    state = look(guest, limit)
    assert isinstance(state.console, tuple) and isinstance(state.dmesg, tuple)
    assert [line for line in state.console if warning in line]
    assert [line.alarm for line in state.dmesg if line.text == warning] == ["WARN"]
    again = look(guest, limit)
    assert again.console == () and again.dmesg == ()


def test_the_whole_state(guest: BootedGuest, limit: Deadline, tmp_path: Path) -> None:
    state = look(guest, limit)
    for name in ("iomem", "blocks", "auto_online", "zones", "meminfo", "vmstat", "dax", "dmesg"):
        assert not isinstance(getattr(state, name), NotObserved), name
    assert state.devices == () and isinstance(state.backends, dict) and set(state.backends) == {"ram0"}
    assert isinstance(state.blocks, tuple) and isinstance(state.meminfo, dict)
    boot = sum(block.state == "online" for block in state.blocks) * guest.facts.memory_block_size
    assert boot == guest.machine.spec.memory and state.meminfo["MemTotal"] < boot
    save_state(tmp_path / "state", state)
    assert load_state(tmp_path / "state", guest.facts) == state


def test_looking_changes_no_counter(guest: BootedGuest, limit: Deadline) -> None:
    look(guest, limit)
    seen = set()
    for _ in range(5):
        state = look(guest, limit, guest.kernel)
        assert isinstance(state.host_tables, HostTables), state.host_tables
        assert isinstance(state.host_tables.count, TableCount) and isinstance(state.meminfo, dict)
        seen.add((state.host_tables.count.stray, state.meminfo["MemTotal"]))
    assert len(seen) == 1


def test_the_host_reads_the_log_that_the_guest_prints(guest: BootedGuest, limit: Deadline) -> None:
    guest.shell.must("rm -rf /run/memhp", deadline=limit)
    boot = look(guest, limit, guest.kernel)
    assert boot.records.log == boot.dmesg and isinstance(boot.records.log_span, tuple)
    assert isinstance(boot.dmesg, tuple) and len(boot.dmesg) > 100 and boot.records.log_span[0] == 0
    guest.shell.must("printf '<4>one of memhp\\nand \\001 two\\n' >/dev/kmsg; echo another >/dev/kmsg", deadline=limit)
    state = collect_state(
        guest.shell,
        guest.machine,
        guest.console,
        facts=guest.facts,
        deadline=limit,
        kernel=guest.kernel,
        since=boot.records.log_span[1],
    )
    assert state.records.log == state.dmesg and isinstance(state.dmesg, tuple)
    assert {(4, "one of memhp"), (4, "and \x01 two")} <= {(line.level, line.text) for line in state.dmesg}
    assert state.dmesg[-1].text == "another" and not {line.seconds for line in state.dmesg} & {boot.dmesg[-1].seconds}


def test_symbols_beside_the_image_are_as_good_as_the_kernels_own(
    guest: BootedGuest, limit: Deadline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel older than v6.0 does not tell where its own are; System.map has them as they were linked."""
    machine, note, kernel = guest.machine, guest.facts.vmcoreinfo, guest.kernel
    assert not isinstance(note, NotObserved) and isinstance(kernel.counting, CountLayout)
    hidden = replace(guest.facts, vmcoreinfo={key: value for key, value in note.items() if "kallsyms" not in key})
    for path in machine.spec.beside(LAYOUTS):
        shutil.copyfile(path, tmp_path / LAYOUTS)
    monkeypatch.setattr(machine, "spec", replace(machine.spec, packed=tmp_path / "Image"))
    blind = KernelView.open(machine, hidden, limit)
    lack = "vmcoreinfo has no SYMBOL(kallsyms_names): no CONFIG_KALLSYMS, or older than v6.0"
    lack += "; neither System.map nor vmlinux lies beside the Image"
    assert blind.counting == NotObserved(f"the page tables cannot be counted: {lack}")
    table = guest.shell.must("grep -v '\\[' /proc/kallsyms", deadline=limit, limit=64 * MIB).decode()
    rows = [(int(at, 16) - 2 * MIB, kind, name) for at, kind, name in map(str.split, table.splitlines())]
    for odd, fits in (("", True), ("_stext", False)):
        lines = (f"{at + 8 * (name == odd):016x} {kind} {name}\n" for at, kind, name in rows)
        (tmp_path / "System.map").write_text("".join(lines))
        view = KernelView.open(machine, hidden, limit)
        assert (view.counting == kernel.counting) is fits
        assert (view.records == kernel.records) is (fits or all(map(is_unobserved, kernel.records.values())))
    assert isinstance(view.counting, NotObserved)
    assert f"the symbols in {tmp_path}/System.map do not fit the Image" in view.counting.reason


def is_unobserved(value: object) -> bool:
    return isinstance(value, NotObserved)


def test_blocks(guest: BootedGuest, memhp_artifacts: Parts, limit: Deadline, monkeypatch: pytest.MonkeyPatch) -> None:
    need(guest, memhp_artifacts, "pc-dimm", "ACPI_HOTPLUG_MEMORY")
    set_auto_online(guest.shell, "offline", deadline=limit)
    assert memdev.plug(guest.machine, DimmSpec("dimm0", GIB), deadline=limit).kind == "done"
    block = guest.facts.memory_block_size
    where = memdev.memory_device(guest.machine, "dimm0", deadline=limit).range
    blocks = range(where.start // block, where.end // block)
    wait_blocks(guest.shell, states=dict.fromkeys(blocks, "offline"), deadline=limit)
    assert all(done.ok for done in set_blocks(guest.shell, blocks, "online_movable", deadline=limit))
    refused = set_blocks(guest.shell, [blocks[0], 99999], "online", deadline=limit)
    assert [done.error for done in refused] == ["EINVAL", "ENOENT"]
    seen = touch_memory(guest.shell, guest.machine.spec.memory, [where, AddrRange(0, 4096)], deadline=limit)
    assert seen.mismatches == 0 and seen.used[where] > 0 and seen.used[AddrRange(0, 4096)] == 0
    assert all(done.ok for done in set_blocks(guest.shell, blocks, "offline", deadline=limit))
    with (
        monkeypatch.context() as at_once,
        pytest.raises(DeadlineExpired, match=rf"memory{blocks[0]} absent.*last seen: memory{blocks[0]} present"),
    ):
        # The guest has no time to wait, but enough to answer.
        at_once.setattr(memory_blocks, "_REPORT_SECONDS", limit.seconds)
        wait_blocks(guest.shell, absent=blocks, deadline=limit)
    assert memdev.unplug(guest.machine, "dimm0", deadline=limit).kind == "deleted"
    wait_blocks(guest.shell, absent=blocks, deadline=limit)


def test_a_device_that_comes_again_has_memory_of_its_own(
    guest: BootedGuest, memhp_artifacts: Parts, limit: Deadline
) -> None:
    need(guest, memhp_artifacts, "pc-dimm", "ACPI_HOTPLUG_MEMORY")
    set_auto_online(guest.shell, "offline", deadline=limit)
    files = []
    for _ in range(3):
        memdev.plug(guest.machine, DimmSpec("again", guest.facts.memory_block_size), deadline=limit)
        devices = memdev.memory_devices(guest.machine, deadline=limit)
        files.append(guest.machine.backend_fds(devices, limit)["mem-again"].stat().st_ino)
        assert memdev.unplug(guest.machine, "again", deadline=limit).kind == "deleted"
    assert len(set(files)) == len(files)


@pytest.mark.parametrize("layout", ["mem", "dev"])
def test_persistent_memory(guest: BootedGuest, memhp_artifacts: Parts, limit: Deadline, layout: str) -> None:
    need(guest, memhp_artifacts, "virtio-pmem-pci", "DEV_DAX_KMEM")
    set_auto_online(guest.shell, "offline", deadline=limit)
    if not memdev.memory_devices(guest.machine, deadline=limit):
        memdev.plug(guest.machine, VirtioPmemSpec("pmem0", GIB), deadline=limit)
    wait_driver(guest.shell, "nd", "namespace0.0", "nd_pmem", deadline=limit)
    listed = guest.shell.must(f"/{SCRIPTS}/pmem list", deadline=limit).decode()
    _, _, mode, size, _, holder = listed.removesuffix("\n").split(" ")
    # "memory" where the kernel gives a raw namespace struct pages (drivers/nvdimm, pmem_should_map_pages).
    assert mode in ("raw", "memory") and (int(size), holder) == (GIB, "-")
    assert namespaces.create_devdax(guest.shell, "namespace0.0", map=layout, align=2 * MIB, deadline=limit).ok
    assert namespaces.to_system_ram(guest.shell, "dax0.0", deadline=limit).ok
    state = look(guest, limit)
    assert isinstance(state.dax, tuple) and [device.driver for device in state.dax] == ["kmem"]
    [where] = [device.range for device in state.dax]
    first = -(-where.start // guest.facts.memory_block_size)
    assert set_blocks(guest.shell, [first], "online_movable", deadline=limit)[0].ok
    assert namespaces.to_devdax(guest.shell, "dax0.0", deadline=limit).text == f"memory{first} is online"
    assert not namespaces.destroy(guest.shell, "namespace0.0", deadline=limit).ok
    assert set_blocks(guest.shell, [first], "offline", deadline=limit)[0].ok
    assert namespaces.to_devdax(guest.shell, "dax0.0", deadline=limit).ok
    assert namespaces.destroy(guest.shell, "namespace0.0", deadline=limit).ok
    assert look(guest, limit).dax == ()


def test_a_panic_is_known_at_once(guest: BootedGuest, limit: Deadline) -> None:
    started = time.monotonic()
    with pytest.raises(GuestError, match=r"the guest panicked: .*sysrq triggered crash"):
        guest.shell.run("echo c >/proc/sysrq-trigger; sleep 1000", deadline=Deadline(600))
    assert time.monotonic() - started < 100
    with pytest.raises(GuestError, match="the guest panicked"):
        guest.shell.run("true", deadline=limit)
