# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's reading of the kernel's log ends where the guest's text ends, so that the two are of the same messages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from test_kmem_log_ring import LogGuest

from harness.collect.kernel_log import LOG, SPAN, log_sources
from harness.collect.sources import Frame, Status
from harness.kmem.log_ring import LogCopy, LogRing
from harness.state import NotObserved

LOST = {LOG: "the kernel's log was overwritten before the host read it"}


@pytest.fixture
def guest(tmp_path: Path) -> LogGuest:
    guest = LogGuest(tmp_path / "memory")
    for second, text in enumerate((b"zero", b"one\nand more", b"two", b"three")):
        guest.log(text, nanoseconds=second * 10**9)
    return guest


def copy(guest: LogGuest, since: int) -> LogCopy:
    ring = guest.find()
    assert isinstance(ring, LogRing)
    with guest.reader() as reader:
        return ring.copy(reader, since)


def read(
    guest: LogGuest, since: int, text: Sequence[bytes] | None, status: Status = "ok"
) -> tuple[bytes, bytes, object]:
    frame = None if text is None else Frame("dmesg", status, b"".join(text))
    found, missing = log_sources(copy(guest, since), frame)
    return found[LOG], found[SPAN], missing


def test_it_ends_where_the_text_ends_and_begins_there_the_next_time(guest: LogGuest) -> None:
    lines = guest.written
    assert read(guest, 0, lines[:2]) == (lines[0] + lines[1], b"0 2\n", {})
    assert read(guest, 2, lines[2:]) == (lines[2] + lines[3], b"2 4\n", {})
    assert read(guest, 4, ()) == (b"", b"4 4\n", {})
    assert read(guest, 1, ()) == (b"", b"1 1\n", {})


def test_without_text_it_is_all_that_is_new(guest: LogGuest) -> None:
    assert read(guest, 2, None) == (guest.written[2] + guest.written[3], b"2 4\n", {})


def test_a_text_that_differs_has_as_many_lines(guest: LogGuest) -> None:
    lines = guest.written
    assert read(guest, 0, [lines[0], lines[2]])[:2] == (lines[0] + lines[1], b"0 2\n")
    assert read(guest, 2, [*lines, *lines])[:2] == (lines[2] + lines[3], b"2 4\n")


def test_a_text_that_has_lost_lines_ends_with_its_last_one(guest: LogGuest) -> None:
    called = guest.written[2].replace(b"] two", b"][    T1] two")
    assert read(guest, 0, [called], "lost")[1] == b"0 3\n"
    assert read(guest, 0, [b"<6>[    9.000000] never\n"], "lost")[1] == b"0 4\n"


def test_overwritten_messages_are_told(guest: LogGuest) -> None:
    for second in range(40):
        guest.log(b"x" * 30, nanoseconds=second * 10**9)
    text, span, missing = read(guest, 0, None)
    assert (span, missing) == (b"0 44\n", LOST) and text.endswith(guest.written[-1])


def test_a_log_that_cannot_be_read() -> None:
    assert log_sources(NotObserved("no log"), None) == ({}, {LOG: "no log", SPAN: "no log"})
