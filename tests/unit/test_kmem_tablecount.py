# SPDX-License-Identifier: GPL-2.0-or-later
"""The count of page tables on a made-up kernel, and the probe's reasons if it is unavailable."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kmem_count_guest import COMM, MM, PGD_OF_MM, TASKS, CountGuest

from harness.errors import InfraError
from harness.state import NotObserved, TableCount

MARKS = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=4)


def counted(guest: CountGuest) -> TableCount:
    found = guest.look()
    assert not isinstance(found, NotObserved), found
    return found[1]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    processes=MARKS,
    kernel=st.lists(st.booleans(), min_size=2, max_size=2),
    off=st.integers(-3, 3),
    waiting=st.tuples(st.integers(-100, 100), st.integers(-100, 100)),
    modern=st.booleans(),
    relative=st.booleans(),
)
def test_every_table_tells_for_itself(
    tmp_path: Path,
    processes: list[tuple[bool, bool, bool]],
    kernel: list[bool],
    off: int,
    waiting: tuple[int, int],
    modern: bool,
    relative: bool,
) -> None:
    guest = CountGuest(tmp_path / "memory", modern=modern, relative=relative)
    for number, marks in enumerate(processes):
        guest.add_task(f"sh{number}", guest.add_mm(marks))
    own = list(guest.tables.values())
    for table, mark in zip(own, kernel, strict=True):
        guest.mark(table, mark)
    users = sum(map(sum, processes))
    guest.count(sum(kernel) + users + off - sum(waiting), waiting)
    found = guest.look()
    assert not isinstance(found, NotObserved), found
    marked, count = found
    assert marked == {table for table, mark in zip(own, kernel, strict=True) if mark}
    assert count == TableCount(sum(kernel) + users + off, sum(kernel), users) and count.stray == off


def test_what_an_idle_cpu_holds_and_what_firmware_has_is_counted_once(tmp_path: Path) -> None:
    guest = CountGuest(tmp_path / "memory")
    alive = guest.add_mm((True, True, True))
    guest.add_task("sh", alive)
    guest.add_task("thread", alive)
    guest.hold(0, guest.add_mm((True, False, False)))
    guest.hold(1, alive)
    guest.add_mm((True, True, False), at=guest.symbols["efi_mm"])
    guest.count(6)
    assert counted(guest) == TableCount(6, 0, 6)


def test_a_node_that_gets_counters_of_its_own_later_is_counted(tmp_path: Path) -> None:
    guest = CountGuest(tmp_path / "memory")
    guest.add_task("sh", guest.add_mm((True, True, True)))
    guest.count(1)
    found = guest.look(meanwhile=lambda: guest.renew_stats(1, (3, -1)))
    assert not isinstance(found, NotObserved) and found[1] == TableCount(3, 0, 3)


@given(off=st.integers(-2, 40), marks=MARKS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_processes_have_the_tables_that_they_account_for(
    tmp_path: Path, off: int, marks: list[tuple[bool, bool, bool]]
) -> None:
    guest = CountGuest(tmp_path / "memory")
    for number, mark in enumerate(marks):
        mm = guest.add_mm(mark)
        guest.add_task(f"sh{number}", mm)
        guest.account(mm, 4096 * (2 + (off if number == 0 else 0)))
    # Firmware's mm has tables, but no account.
    guest.add_mm((True, True, True), at=guest.symbols["efi_mm"])
    assert counted(guest).astray == off


def test_an_account_that_cannot_be_compared_is_not(tmp_path: Path) -> None:
    guest = CountGuest(tmp_path / "memory")
    mm = guest.add_mm((True, True, True))
    guest.add_task("sh", mm)
    assert counted(guest).astray is None, "the layout is unknown"
    guest.account(mm, 8192)
    assert counted(guest).astray == 0
    guest.map_huge(mm, 0x5A << 8)
    assert counted(guest).astray is None, "a huge page, even one that is not valid, may keep tables in reserve"


@pytest.mark.parametrize(
    ("without", "reason"),
    [
        ("vmstat_text", r"the kernel's symbols have no vmstat_text \(CONFIG_KALLSYMS_ALL\)"),
        ("vm_node_stat", r"the kernel's symbols have no vm_node_stat \(CONFIG_KALLSYMS_ALL\)"),
    ],
)
def test_a_kernel_without_a_symbol_says_which(tmp_path: Path, without: str, reason: str) -> None:
    guest = CountGuest(tmp_path / "memory", without=[without])
    found = guest.look()
    assert isinstance(found, NotObserved)
    assert found.reason == "the page tables cannot be counted: " + reason.replace("\\", "")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("SYMBOL(kallsyms_offsets)", None, "vmcoreinfo has no SYMBOL(kallsyms_offsets): no CONFIG_KALLSYMS, or older"),
        ("SYMBOL(kallsyms_names)", "ffffffd000000000", "kernel address 0xffffffd000000000 is not mapped"),
        ("SIZE(pglist_data)", "-1", "vmcoreinfo has no SIZE(pglist_data)"),
        ("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)", "7", "this kernel's page types are unknown"),
    ],
)
def test_a_note_that_does_not_fit_says_why(tmp_path: Path, key: str, value: str | None, reason: str) -> None:
    guest = CountGuest(tmp_path / "memory")
    guest.add_task("sh", guest.add_mm((True, True, True)))
    guest.note.pop(key)
    if value is not None:
        guest.note[key] = value
    found = guest.look()
    assert isinstance(found, NotObserved) and reason in found.reason


def test_no_process_shows_no_place_of_its_mm(tmp_path: Path) -> None:
    guest = CountGuest(tmp_path / "memory")
    guest.add_task("kworker", 0)
    found = guest.look()
    assert isinstance(found, NotObserved) and "0 members of task_struct could be mm" in found.reason


def test_counters_that_are_nowhere_in_a_node_are_told(tmp_path: Path) -> None:
    guest = CountGuest(tmp_path / "memory")
    guest.add_task("sh", guest.add_mm((True, True, True)))
    guest.put(guest.symbols["vm_node_stat"], 1)
    found = guest.look()
    assert isinstance(found, NotObserved) and "0 places in pglist_data hold the counters" in found.reason


def test_a_process_that_is_gone_while_it_is_read_is_no_count(tmp_path: Path) -> None:
    guest = CountGuest(tmp_path / "memory")
    guest.add_task("sh", guest.add_mm((True, True, True)))
    last = guest.add_task("sh", 0)
    guest.put(last + MM, 0x1234, 0x1234)
    found = guest.look()
    assert isinstance(found, NotObserved)


def test_a_list_of_processes_without_end_ends(tmp_path: Path) -> None:
    guest = CountGuest(tmp_path / "memory")
    one = guest.add_task("sh", guest.add_mm((True, True, True)))
    guest.put(one + TASKS, one + TASKS)
    found: object
    try:
        found = guest.look()
    except InfraError as error:
        found = NotObserved(error.message)
    assert isinstance(found, NotObserved)


def test_a_pointer_to_the_end_of_all_addresses_is_no_count(tmp_path: Path) -> None:
    guest = CountGuest(tmp_path / "memory")
    one = guest.add_task("sh", guest.add_mm((True, True, True)))
    with pytest.raises(InfraError, match="is not mapped"):
        guest.look(lambda: guest.put(one + TASKS, (1 << 64) - 8))


def test_a_root_table_that_is_not_aligned_is_none(tmp_path: Path) -> None:
    guest = CountGuest(tmp_path / "memory")
    mm = guest.add_mm((True, True, True))
    guest.add_task("sh", mm)
    guest.count(3)
    assert counted(guest).users == 3
    root = guest.linear(guest.page())
    found = guest.look(lambda: guest.put(mm + PGD_OF_MM, root + 8))
    assert not isinstance(found, NotObserved) and found[1].users == 0


def test_a_task_without_a_name_is_none(tmp_path: Path) -> None:
    guest = CountGuest(tmp_path / "memory")
    one = guest.add_task("sh", guest.add_mm((True, True, True)))
    guest.write(one + COMM, struct.pack("<Q", 0xFFFF_FFFF_FFFF_FFFF))
    found = guest.look()
    assert isinstance(found, NotObserved) and "no list that is unambiguously the list of all tasks" in found.reason
