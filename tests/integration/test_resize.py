# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-mem grows in a memory block that is already online: QEMU finishes before the guest does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from needs import need

from harness.collect.look import collect_state
from harness.config.guest import GuestSpec
from harness.deadline import Deadline
from harness.guest.drivers import RESIZE_QUEUE, wait_work
from harness.guest.memory_blocks import set_auto_online, wait_blocks
from harness.qemu import memdev
from harness.qemu.devices.virtio_mem import VirtioMemSpec
from harness.scenarios.boot import BootedGuest, Parts, boot_guest
from harness.units import GIB, MIB

pytestmark = [pytest.mark.memhp_guest, pytest.mark.shared_guest]

BOOT_SECONDS = 600.0
ROUNDS = 3


@pytest.fixture(scope="module")
def guest(
    memhp_guest_spec: GuestSpec, memhp_artifacts: Parts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BootedGuest]:
    # Each page is zeroed before it reaches the allocator, so the driver's work takes a while.
    spec = memhp_guest_spec.with_fields({"cmdline": "init_on_free=1"})
    with boot_guest(spec, memhp_artifacts, tmp_path_factory.mktemp("guest") / "run", BOOT_SECONDS) as guest:
        yield guest


def total(guest: BootedGuest, limit: Deadline) -> int:
    state = collect_state(guest.shell, None, None, facts=guest.facts, deadline=limit, sources=["meminfo"])
    assert isinstance(state.meminfo, dict)
    return state.meminfo["MemTotal"]


def resize(guest: BootedGuest, size: int, limit: Deadline) -> None:
    memdev.resize(guest.machine, "vmem0", size, deadline=limit)
    while memdev.memory_device(guest.machine, "vmem0", deadline=limit).size != size:
        limit.check(f"vmem0 to have {size} bytes")


def by_agent(guest: BootedGuest, limit: Deadline) -> None:
    wait_work(guest.shell, RESIZE_QUEUE, deadline=limit)


def by_script(guest: BootedGuest, limit: Deadline) -> None:
    assert guest.shell.must(f"sh /usr/lib/memhp/wait-work {RESIZE_QUEUE} 60", deadline=limit) == b""


@pytest.mark.parametrize("wait", [by_agent, by_script])
def test_the_end_of_the_drivers_work_is_waited_for(
    guest: BootedGuest, memhp_artifacts: Parts, wait: Callable[[BootedGuest, Deadline], None]
) -> None:
    need(guest, memhp_artifacts, "virtio-mem-pci", "VIRTIO_MEM")
    limit = Deadline(120)
    set_auto_online(guest.shell, "online_movable", deadline=limit)
    guest.shell.run("modprobe virtio_mem", deadline=limit)
    if not memdev.memory_devices(guest.machine, deadline=limit):
        memdev.plug(guest.machine, VirtioMemSpec("vmem0", GIB, block_size=2 * MIB), deadline=limit)
    size, few = guest.facts.memory_block_size, 2 * MIB
    where = memdev.memory_device(guest.machine, "vmem0", deadline=limit).range.start
    resize(guest, few, limit)
    wait_blocks(guest.shell, states={where // size: "online"}, deadline=limit)
    wait(guest, limit)
    before = total(guest, limit)
    for _ in range(ROUNDS):
        resize(guest, size, limit)
        wait(guest, limit)
        assert total(guest, limit) - before == size - few
        resize(guest, few, limit)
        wait(guest, limit)
        assert total(guest, limit) == before
