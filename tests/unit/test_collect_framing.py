# SPDX-License-Identifier: GPL-2.0-or-later
"""The collector's stream, and every way in which it can be malformed."""

from __future__ import annotations

import pytest

from harness.collect.sources import Frame, new_boundary, parse_frames
from harness.errors import GuestError

GOOD = b"\n@@B begin a\none\n\n@@B end a ok\n\n@@B begin b\n\n@@B end b missing\n\n@@B done 2\n"


def test_frames() -> None:
    assert parse_frames(GOOD, "B") == {"a": Frame("a", "ok", b"one\n"), "b": Frame("b", "missing", b"")}


def test_any_bytes_and_a_reason() -> None:
    stream = b"\n@@B begin a\n\x00@@B end a ok\n@@\xff\n@@B end a failed cat: read error: I/O error\n\n@@B done 1\n"
    assert parse_frames(stream, "B") == {
        "a": Frame("a", "failed", b"\x00@@B end a ok\n@@\xff", "cat: read error: I/O error")
    }


def test_boundaries_differ() -> None:
    assert new_boundary() != new_boundary() and new_boundary().isalnum()


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"", "does not begin with a source"),
        (b"sh: collect: not found\n", "does not begin with a source: 'sh: collect: not found"),
        (b"noise" + GOOD, "does not begin with a source"),
        (GOOD[: -len(b"\n@@B done 2\n")], "it is truncated after a, b"),
        (GOOD[:20], "it is truncated after nothing"),
        (GOOD + b"more", "a marker is out of place after a, b"),
        (GOOD.replace(b"done 2", b"done 3"), "a marker is out of place"),
        (GOOD.replace(b"end a ok", b"end b ok"), "a marker is out of place after nothing"),
        (GOOD.replace(b"begin b", b"begin a").replace(b"end b", b"end a"), "duplicate source a"),
        (GOOD.replace(b"end a ok", b"end a"), "a marker is out of place"),
        (GOOD.replace(b"end a ok", b"end a fine"), "an invalid marker"),
        (GOOD.replace(b"end a ok\n", b"end a ok\nmore"), "a marker is out of place"),
        (GOOD.replace(b"begin a", b"begin " + b"a" * 50), "an invalid marker"),
        (GOOD.replace(b"b missing", b"b failed " + b"x" * 500), "an invalid marker"),
    ],
)
def test_garbled(stream: bytes, message: str) -> None:
    with pytest.raises(GuestError, match=f"cannot parse the output of the guest's collector: .*{message}"):
        parse_frames(stream, "B")


def test_parts_of_the_log_are_one_and_lack_what_either_lacks() -> None:
    ok, lost, failed = (
        Frame("dmesg", "ok", b"a\n"),
        Frame("dmesg", "lost", b"b\n"),
        Frame("dmesg", "failed", b"", "why"),
    )
    assert ok.followed_by(ok) == Frame("dmesg", "ok", b"a\na\n")
    assert ok.followed_by(lost) == Frame("dmesg", "lost", b"a\nb\n")
    assert lost.followed_by(ok) == Frame("dmesg", "lost", b"b\na\n")
    assert ok.followed_by(failed) is failed
