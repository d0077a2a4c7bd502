# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a kernel died, from what its console printed."""

from __future__ import annotations

import pytest

from harness.check.backtrace import describe_backtrace, first_backtrace, frame_function

RISCV64 = """\
Unable to handle kernel NULL pointer dereference at virtual address 0000000000000000
Oops [#1]
Modules linked in:
CPU: 1 UID: 0 PID: 35 Comm: irq/30-pciehp Not tainted 6.12.90 #1
epc : virtio_mem_remove+0x2c/0x1a8
 ra : virtio_dev_remove+0x42/0x8e
epc : ffffffff8050a3f2 ra : ffffffff804ee5c8 sp : ff20000000163b90
status: 0000000200000120 badaddr: 0000000000000000 cause: 000000000000000d
[<ffffffff8050a3f2>] virtio_mem_remove+0x2c/0x1a8
[<ffffffff804ee5c8>] virtio_dev_remove+0x42/0x8e
[<ffffffff805a1c3e>] device_release_driver_internal+0x1b0/0x20a
Code: b783 0004 6398 (601c) 8b05
---[ end trace 0000000000000000 ]---
[<ffffffff805a1c3e>] something_else+0x1b0/0x20a
""".replace("cause: 000000000000000d\n", "cause: 000000000000000d\nCall Trace:\n")

ARM64 = """\
Unable to handle kernel NULL pointer dereference at virtual address 0000000000000000
pc : __pi_memset_generic+0x110/0x188
lr : page_init_poison+0x24/0x30
sp : ffff800083acb8e0
Call trace:
 __pi_memset_generic+0x110/0x188 (P)
 section_activate.isra.0+0x2a0/0x3a4
 sparse_add_section+0x60/0x210
"""


def test_a_backtrace_is_told_from_the_inside_out() -> None:
    assert first_backtrace(RISCV64.splitlines()) == (
        *("virtio_mem_remove", "virtio_dev_remove", "device_release_driver_internal"),
    )
    assert describe_backtrace(first_backtrace(ARM64.splitlines())) == (
        "in __pi_memset_generic, called by section_activate.isra.0, sparse_add_section"
    )


def test_a_jump_to_nothing_has_callers() -> None:
    lost = RISCV64.replace("epc : virtio_mem_remove+0x2c/0x1a8", "epc : 0x0").replace(
        "[<ffffffff8050a3f2>] virtio_mem_remove+0x2c/0x1a8\n", ""
    )
    assert first_backtrace(lost.splitlines()) == ("0x0", "virtio_dev_remove", "device_release_driver_internal")


@pytest.mark.parametrize("text", ["", "no backtrace", "Call trace:\n foo+0x1/0x2", "pc : foo+0x1/0x2"])
def test_what_is_not_there_is_not_told(text: str) -> None:
    assert first_backtrace(text.splitlines()) == (("foo",) if "pc :" in text else ())


def test_a_long_backtrace_is_cut() -> None:
    told = describe_backtrace(tuple(f"f{at}" for at in range(40)))
    assert told.startswith("in f0, called by f1, ") and told.endswith("f12, …")


@pytest.mark.parametrize(
    ("line", "function"),
    [
        (" offline_pages+0x4d0/0xa5c", "offline_pages"),
        ("[<ffffffff80119300>] offline_pages+0x2f8/0x8c6", "offline_pages"),
        ("epc : offline_pages+0x2f8/0x8c6", "offline_pages"),
        (" ra : offline_pages+0x2f8/0x8c6", None),
        ("offline_pages", None),
    ],
)
def test_a_frame_names_a_function(line: str, function: str | None) -> None:
    assert frame_function(line) == function
