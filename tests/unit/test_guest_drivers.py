# SPDX-License-Identifier: GPL-2.0-or-later
"""How the output of the guest's scripts is interpreted: blocks, persistent memory, touch, drivers."""

from __future__ import annotations

import pytest
from guest_peer import CannedShell, said

from harness.deadline import Deadline
from harness.errors import DeadlineExpired, GuestError, UnsupportedError, UsageError
from harness.guest import namespaces
from harness.guest.drivers import switch_slot, wait_driver, wait_work
from harness.guest.memory_blocks import BlockOutcome, set_auto_online, set_blocks, valid_zones, wait_blocks
from harness.guest.use_memory import TouchResult, parse_touch, touch_memory
from harness.units import AddrRange


def test_set_blocks() -> None:
    shell = CannedShell(said("16 1500000 ok\n17 - failed Device or resource busy\n9 20 failed odd\n"))
    assert set_blocks(shell, [16, 17, 9], "offline", deadline=Deadline(5)) == (
        BlockOutcome(16, True, None, 0.0015),
        BlockOutcome(17, False, "EBUSY"),
        BlockOutcome(9, False, "odd", 2e-8),
    )
    assert shell.asked == [("/usr/lib/memhp/blocks set offline", b"16\n17\n9\n")]


def test_set_blocks_with_little_patience() -> None:
    shell = CannedShell(said("16 - failed Interrupted system call\n"))
    done = set_blocks(shell, [16], "offline", deadline=Deadline(5), patience=2)
    assert done == (BlockOutcome(16, False, "EINTR"),)
    assert shell.asked == [("/usr/lib/memhp/blocks set offline 2", b"16\n")]


def test_set_no_blocks_asks_nobody() -> None:
    assert set_blocks(CannedShell(), [], "online", deadline=Deadline(5)) == ()


def test_set_blocks_to_what_is_no_state() -> None:
    with pytest.raises(UsageError, match="'up' is not a state for a memory block"):
        set_blocks(CannedShell(), [1], "up", deadline=Deadline(5))
    with pytest.raises(UsageError, match="'; reboot' is not a state"):
        set_auto_online(CannedShell(), "; reboot", deadline=Deadline(5))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (said("1 5 ok\n"), "asked for 2 memory blocks, the guest answered for 1"),
        (said("1 - ok\nwhat\n"), "the guest's blocks script printed 'what'"),
        (said("1 ok\n2 ok\n"), "the guest's blocks script printed '1 ok'"),
        (said("", 2, "sh: no such dir"), r"the guest's blocks script failed \(status 2\): sh: no such dir"),
    ],
)
def test_set_blocks_without_an_answer(answer: object, message: str) -> None:
    with pytest.raises(GuestError, match=message):
        set_blocks(CannedShell(answer), [1, 2], "online", deadline=Deadline(5))  # type: ignore[arg-type]


def test_valid_zones() -> None:
    shell = CannedShell(said("16 Movable\n17 Normal Movable\n18 \n"))
    assert valid_zones(shell, [16, 17, 18], deadline=Deadline(5)) == {
        16: ("Movable",),
        17: ("Normal", "Movable"),
        18: (),
    }
    assert shell.asked == [("/usr/lib/memhp/blocks zones", b"16\n17\n18\n")]
    assert valid_zones(CannedShell(), [], deadline=Deadline(5)) == {}
    with pytest.raises(GuestError, match="asked for the zones of 1 memory blocks, the guest answered for 0"):
        valid_zones(CannedShell(said("")), [16], deadline=Deadline(5))


def test_auto_online() -> None:
    shell = CannedShell(said("70 ok\n"), said("70 failed Invalid argument\n"))
    set_auto_online(shell, "online_movable", deadline=Deadline(5))
    path = b"/sys/devices/system/memory/auto_online_blocks"
    assert shell.asked == [("/usr/lib/memhp/files write", path + b" online_movable\n")]
    with pytest.raises(GuestError, match="the guest rejects offline for auto_online_blocks: EINVAL"):
        set_auto_online(shell, "offline", deadline=Deadline(5))


def test_wait_blocks() -> None:
    shell = CannedShell(said(""), said("3 absent present\n4 online offline\n5 online \n"))
    wait_blocks(shell, present=[1], absent=[3], states={4: "online"}, deadline=Deadline(5))
    command, stdin = shell.asked[0]
    assert command.startswith("/usr/lib/memhp/blocks wait 4") and stdin == b"1 present\n3 absent\n4 online\n"
    with pytest.raises(
        DeadlineExpired,
        match=r"memory3 absent, memory4 online, memory5 online; last seen: "
        r"memory3 present, memory4 offline, memory5 unreadable",
    ):
        wait_blocks(shell, absent=[3], states={4: "online", 5: "online"}, deadline=Deadline(5))


def test_many_late_blocks_are_counted() -> None:
    late = "".join(f"{index} online offline\n" for index in range(20))
    with pytest.raises(DeadlineExpired, match="memory7 online and 12 more; last seen"):
        wait_blocks(CannedShell(said(late)), states=dict.fromkeys(range(20), "online"), deadline=Deadline(5))


def test_pmem_verbs_and_outcomes() -> None:
    shell = CannedShell(said("dax0.0\n"), said("namespace0.0\n"), said("dax0.0\n"), said("memory17 is online\n", 3))
    shell.answers += [said("kmem did not bind dax0.0", 3)] * 3
    assert namespaces.create_devdax(shell, "namespace0.0", map="dev", deadline=Deadline(5)) == namespaces.PmemOutcome(
        True, "dax0.0"
    )
    assert namespaces.destroy(shell, "namespace0.0", deadline=Deadline(5)).ok
    assert namespaces.to_system_ram(shell, "dax0.0", deadline=Deadline(5)).ok
    assert namespaces.to_devdax(shell, "dax0.0", deadline=Deadline(5)) == namespaces.PmemOutcome(
        False, "memory17 is online"
    )
    assert not namespaces.to_system_ram(shell, "dax0.0", fail=3, deadline=Deadline(5)).ok
    assert not namespaces.to_system_ram(shell, "dax0.0", fail=1, of="pages", deadline=Deadline(5)).ok
    assert not namespaces.to_system_ram(shell, "dax0.0", fail=2, own=True, deadline=Deadline(5)).ok
    assert [command.removeprefix("/usr/lib/memhp/pmem ") for command, _ in shell.asked] == [
        "devdax namespace0.0 pmem 2097152",
        "raw namespace0.0",
        "kmem dax0.0",
        "unkmem dax0.0",
        "kmem dax0.0 3 failslab 0",
        "kmem dax0.0 1 fail_page_alloc 0",
        "kmem dax0.0 2 failslab 1",
    ]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (said("no driver kmem\n", 4), "the guest's kernel has no driver kmem"),
        (said("no dax0.0\n", 5), "the guest has no dax0.0"),
        (said("", 127, "not found"), r"the guest's pmem script failed \(kmem dax0.0, status 127\):  ?not found"),
    ],
)
def test_pmem_that_cannot_be(answer: object, message: str) -> None:
    with pytest.raises(GuestError, match=message):
        namespaces.to_system_ram(CannedShell(answer), "dax0.0", deadline=Deadline(5))  # type: ignore[arg-type]


def test_the_state_of_a_kmem_device() -> None:
    shell = CannedShell(
        said("dax0.0 unplugged\n"), said("writing 'offline' to …: Invalid argument\n", 3), said("dax0.0/state\n", 6)
    )
    assert namespaces.set_state(shell, "dax0.0", "unplugged", deadline=Deadline(5)).ok
    assert not namespaces.set_state(shell, "dax0.0", "offline", patience=2, deadline=Deadline(5)).ok
    with pytest.raises(UnsupportedError, match=r"this kernel has no dax0\.0/state") as caught:
        namespaces.set_state(shell, "dax0.0", "online", deadline=Deadline(5))
    assert caught.value.requirement == "dax-state"
    assert [command.removeprefix("/usr/lib/memhp/pmem ") for command, _ in shell.asked] == [
        "state dax0.0 unplugged",
        "state dax0.0 offline 2",
        "state dax0.0 online",
    ]


def test_pmem_names() -> None:
    with pytest.raises(UsageError, match="is neither a namespace nor a dax device"):
        namespaces.destroy(CannedShell(), "namespace0.0; reboot", deadline=Deadline(5))
    with pytest.raises(UsageError, match="invalid memmap location: 'disk'"):
        namespaces.create_devdax(CannedShell(), "namespace0.0", map="disk", deadline=Deadline(5))


def test_touch() -> None:
    where = AddrRange(0x8000_0000, 0xC000_0000)
    answer = "pages 16\nmismatches 1\nrange 80000000-c0000000 4096\n"
    shell = CannedShell(said(answer, 1), said(answer))
    assert touch_memory(shell, 65536, [where], deadline=Deadline(5)) == TouchResult(16, 1, {where: 4096})
    assert shell.asked[0][0] == "/usr/bin/touch-memory 65536 65536 80000000-c0000000"
    touch_memory(shell, 4096, [where], deadline=Deadline(5), limit=8192, node=1)
    assert shell.asked[1][0] == "/usr/bin/touch-memory -n 1 4096 8192 80000000-c0000000"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (said("", 127, "sh: not found"), "the guest has no /usr/bin/touch-memory: sh: not found"),
        (said("", -1), "touching 64K was killed in the guest"),
        (said("", 2, "mmap: Cannot allocate memory"), r"touching 64K failed in the guest \(status 2\): mmap"),
        (said("pages 16\nmismatches 0\n"), "touching 64K failed in the guest"),
    ],
)
def test_touch_that_failed(answer: object, message: str) -> None:
    with pytest.raises(GuestError, match=message):
        touch_memory(CannedShell(answer), 65536, [AddrRange(0, 4096)], deadline=Deadline(5))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cannot touch 0 bytes"):
        touch_memory(CannedShell(), 0, [], deadline=Deadline(5))


def test_touch_answers() -> None:
    assert parse_touch("pages 1\nmismatches 0\n") == TouchResult(1, 0, {})
    for text in ("", "pages 1\n", "pages 1\nmismatches 0\nmore\n", "pages 1\nmismatches 0\nrange 2-1 5\n"):
        assert parse_touch(text) is None


def test_wait_driver() -> None:
    shell = CannedShell(said(""), said("no namespace0.0\n", 1), said("", 2, "broken"))
    wait_driver(shell, "nd", "namespace0.0", "nd_pmem", deadline=Deadline(5.7))
    assert shell.asked[0][0] == "/usr/lib/memhp/wait-driver nd namespace0.0 nd_pmem 5"
    with pytest.raises(
        DeadlineExpired, match=r"nd_pmem to bind to namespace0.0 in the guest; last seen: no namespace0.0"
    ):
        wait_driver(shell, "nd", "namespace0.0", "nd_pmem", deadline=Deadline(5))
    with pytest.raises(GuestError, match=r"wait-driver script failed \(status 2\): broken"):
        wait_driver(shell, "nd", "namespace0.0", "nd_pmem", deadline=Deadline(5))
    with pytest.raises(UsageError, match="invalid name of a bus, device or driver: "):
        wait_driver(shell, "nd", "a b", "nd_pmem", deadline=Deadline(5))


def test_wait_work() -> None:
    shell = CannedShell(said(""), said("kworker/0:2+events_freezable\n", 1), said("", 2, "broken"))
    wait_work(shell, "events_freezable", deadline=Deadline(5.7))
    assert shell.asked[0][0] == "/usr/lib/memhp/wait-work events_freezable 5"
    with pytest.raises(
        DeadlineExpired, match=r"workqueue events_freezable to finish its work; last seen: kworker/0:2.events_free"
    ):
        wait_work(shell, "events_freezable", deadline=Deadline(5))
    with pytest.raises(GuestError, match=r"wait-work script failed \(status 2\): broken"):
        wait_work(shell, "events_freezable", deadline=Deadline(5))
    with pytest.raises(UsageError, match="invalid name of a workqueue: "):
        wait_work(shell, "a b", deadline=Deadline(5))


def test_a_slot_is_switched() -> None:
    shell = CannedShell(said(""), said("", 1, "slot 9: no root port has this slot"))
    switch_slot(shell, 1, True, deadline=Deadline(5))
    assert shell.asked == [("/usr/lib/memhp/slot 1 on", b"")]
    with pytest.raises(GuestError, match=r"slot script failed \(status 1\): slot 9: no root port has this slot"):
        switch_slot(shell, 9, False, deadline=Deadline(5))
