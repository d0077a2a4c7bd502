# SPDX-License-Identifier: GPL-2.0-or-later
"""How the guest's answers are interpreted when pages are held and released."""

from __future__ import annotations

import pytest
from guest_peer import CannedShell, said

from harness.deadline import Deadline
from harness.errors import GuestError
from harness.guest.use_memory import occupy_memory, pin_memory, release_memory
from harness.units import MIB, AddrRange

WHERE = AddrRange(0x140000000, 0x148000000)


def test_pin() -> None:
    shell = CannedShell(said("held 2\n140001000\n140004000\n"))
    assert pin_memory(shell, "a", 2, MIB, WHERE, deadline=Deadline(5)) == (0x140001000, 0x140004000)
    assert shell.asked == [("/usr/bin/hold-memory pinned 2 1048576 140000000 148000000 /run/memhp/hold-a", b"")]


def test_occupy() -> None:
    shell = CannedShell(said("held 16\n"))
    occupy_memory(shell, "a", 16, MIB, WHERE, deadline=Deadline(5))
    assert shell.asked == [("/usr/bin/hold-memory movable 16 1048576 140000000 148000000 /run/memhp/hold-a", b"")]


@pytest.mark.parametrize(
    "answer",
    [
        said("", 2, "hold-memory: 0 pages of 2"),
        said("held 2\nwhat\n", 0, "0 pages of 2"),
        said("held 1\n140001000\n", 0, "0 pages of 2"),
    ],
)
def test_what_could_not_be_kept(answer: object) -> None:
    with pytest.raises(GuestError, match=r"holding 2 pages of .* failed in the guest \(status [02]\): .*0 pages of 2"):
        pin_memory(CannedShell(answer), "a", 2, MIB, WHERE, deadline=Deadline(5))  # type: ignore[arg-type]
    with pytest.raises(GuestError, match=r"holding 2 pages of"):
        occupy_memory(CannedShell(answer), "a", 2, MIB, WHERE, deadline=Deadline(5))  # type: ignore[arg-type]


def test_not_every_page_is_named() -> None:
    with pytest.raises(GuestError, match="asked for 2 pinned pages, the guest answered for 1"):
        pin_memory(CannedShell(said("held 2\n140001000\n")), "a", 2, MIB, WHERE, deadline=Deadline(5))


def test_release() -> None:
    shell = CannedShell(said("file 21 /run/memhp/hold-a\npages 4\nmismatches 1\n\n"))
    assert release_memory(shell, "a", deadline=Deadline(5)) == (4, 1)
    assert shell.asked == [("/usr/lib/memhp/files read", b"file /run/memhp/hold-a\n")]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (said("failed 25 /run/memhp/hold-a\nNo such file or directory\n"), "ENOENT"),
        (said("file 13 /run/memhp/hold-a\nmismatches 1\n\n"), "mismatches 1"),
        (said(""), ""),
    ],
)
def test_nothing_was_held(answer: object, why: str) -> None:
    with pytest.raises(GuestError, match=rf"the memory held as a was not released: {why}$"):
        release_memory(CannedShell(answer), "a", deadline=Deadline(5))  # type: ignore[arg-type]
