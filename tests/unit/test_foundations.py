# SPDX-License-Identifier: GPL-2.0-or-later
"""Units, ranges (compared with sets), the message of every error, deadlines."""

from __future__ import annotations

import itertools
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import errors, units
from harness.deadline import Deadline
from harness.units import GIB, KIB, MIB, TIB, AddrRange

SPACE = 64
RANGES = st.tuples(st.integers(0, SPACE), st.integers(0, SPACE)).map(lambda ends: AddrRange(min(ends), max(ends)))
LISTS = st.lists(RANGES, max_size=8)


def model(ranges: list[AddrRange] | tuple[AddrRange, ...]) -> set[int]:
    return {address for item in ranges for address in range(item.start, item.end)}


def assert_canonical(ranges: tuple[AddrRange, ...]) -> None:
    assert all(ranges)
    assert all(left.end < right.start for left, right in itertools.pairwise(ranges))


@given(LISTS)
def test_merge_is_the_union(ranges: list[AddrRange]) -> None:
    merged = units.merge_ranges(ranges)
    assert_canonical(merged)
    assert model(merged) == model(ranges)


@given(LISTS, LISTS)
def test_subtract_is_the_difference(ranges: list[AddrRange], holes: list[AddrRange]) -> None:
    left = units.subtract_ranges(ranges, holes)
    assert_canonical(left)
    assert model(left) == model(ranges) - model(holes)


@given(LISTS, LISTS)
def test_intersect_is_the_intersection(left: list[AddrRange], right: list[AddrRange]) -> None:
    shared = units.intersect_ranges(left, right)
    assert_canonical(shared)
    assert model(shared) == model(left) & model(right)


@given(RANGES, RANGES)
def test_pairs_of_ranges(left: AddrRange, right: AddrRange) -> None:
    ours, theirs = model([left]), model([right])
    shared = left.intersect(right)
    assert (model([shared]) if shared else set()) == ours & theirs
    assert left.size == len(ours)
    assert bool(left) == bool(ours)
    assert {address for address in range(SPACE + 1) if address in left} == ours
    if left and right:
        assert left.overlaps(right) == bool(ours & theirs)
        assert left.covers(right) == (theirs <= ours)
    assert left.shift(5) == AddrRange(left.start + 5, left.end + 5)


@given(RANGES, st.integers(1, 20))
def test_alignment_of_ranges(item: AddrRange, alignment: int) -> None:
    inward, outward = item.align_inward(alignment), item.align_outward(alignment)
    assert outward.covers(item)
    assert inward.is_aligned(alignment) and outward.is_aligned(alignment)
    assert outward.size - item.size < 2 * alignment
    if inward:
        assert item.covers(inward) and item.size - inward.size < 2 * alignment
    chunks = list(item.chunks(alignment))
    assert units.merge_ranges(chunks) == units.merge_ranges([item])
    assert all(chunk and chunk.start // alignment == (chunk.end - 1) // alignment for chunk in chunks)


@given(st.integers(0, 1 << 70), st.integers(1, 1 << 40))
def test_align(value: int, alignment: int) -> None:
    down, up = units.align_down(value, alignment), units.align_up(value, alignment)
    assert down % alignment == up % alignment == 0
    assert down <= value <= up
    assert up - down in (0, alignment)


@given(st.integers(0, 1 << 60))
def test_sizes_round_trip(size: int) -> None:
    text = units.format_size(size)
    assert units.parse_size(text) == size
    assert units.parse_size(f" {size:#x} ") == size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 * MIB),
        ("1GiB", GIB),
        ("1gb", GIB),
        ("2 K", 2 * KIB),
        ("3T", 3 * TIB),
        ("0x8000000", 128 * MIB),
        ("4096", 4096),
        ("0", 0),
        ("010", 10),
    ],
)
def test_parse_size(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "1.5G", "-1", "1X", "1MM", "0x", "1 000", "٣"])
def test_parse_size_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size \(examples: 512M, 1G, 0x8000000\)"):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0"), (GIB, "1G"), (1536 * MIB, "1536M"), (4097, "4097"), (KIB, "1K"), (1024 * GIB, "1T")]
)
def test_format_size(size: int, text: str) -> None:
    assert units.format_size(size) == text


def test_ranges_print_like_the_kernel_does() -> None:
    assert str(AddrRange.sized(0x8000_0000, GIB)) == "80000000-bfffffff"
    assert str(AddrRange(0x1_0000_0000, 0x1_0000_0001)) == "100000000-100000000"
    assert str(AddrRange(16, 16)) == "10-(empty)"


@pytest.mark.parametrize("ends", [(2, 1), (-1, 1)])
def test_backward_ranges_are_refused(ends: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="range runs backwards"):
        AddrRange(*ends)


@pytest.mark.parametrize(
    ("error", "kind", "status", "message"),
    [
        (errors.MemhpError("broken"), Exception, 3, "broken"),
        (errors.MemhpError("broken", hint="mend it"), Exception, 3, "broken\n  hint: mend it"),
        (errors.UsageError("what?"), errors.MemhpError, 2, "what?"),
        (errors.ConfigError("no size", file="a.yaml"), errors.UsageError, 2, "a.yaml: no size"),
        (
            errors.ConfigError("no size", file="a.yaml", line=3, key="steps[2].size", hint="try 1G"),
            errors.UsageError,
            2,
            "a.yaml:3: steps[2].size: no size\n  hint: try 1G",
        ),
        (
            errors.UnsupportedError("VIRTIO_MEM", "this kernel has no virtio-mem", hint="set it"),
            errors.UsageError,
            2,
            "this kernel has no virtio-mem\n  hint: set it",
        ),
        (errors.InfraError("gone"), errors.MemhpError, 3, "gone"),
        (errors.DeadlineExpired("a boot", 2), errors.InfraError, 3, "gave up after 2.0 s waiting for a boot"),
        (
            errors.DeadlineExpired("a boot", 2.5, last_seen="GRUB", hint="wait longer"),
            errors.InfraError,
            3,
            "gave up after 2.5 s waiting for a boot; last seen: GRUB\n  hint: wait longer",
        ),
        (errors.ArtefactError("no image"), errors.InfraError, 3, "no image"),
        (errors.QemuError("died"), errors.InfraError, 3, "died"),
        (errors.LaunchError("exit 1"), errors.QemuError, 3, "exit 1"),
        (
            errors.QmpRefused("device_add", "GenericError", "no slot"),
            errors.QemuError,
            3,
            "QEMU refused device_add: no slot (GenericError)",
        ),
        (errors.GuestError("no answer"), errors.InfraError, 3, "no answer"),
        (
            errors.ParseError("/proc/iomem", 7, "junk", "no range"),
            errors.InfraError,
            3,
            "/proc/iomem:7: no range: 'junk'\n  hint: the parser does not know this output; "
            "please report it with this line",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, errors.MemhpError) else None,
)
def test_messages(error: errors.MemhpError, kind: type[Exception], status: int, message: str) -> None:
    assert isinstance(error, kind)
    assert error.exit_status == status
    assert str(error) == message


def test_every_error_class_has_its_message_tested() -> None:
    named = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    (mark,) = (mark for mark in test_messages.pytestmark if mark.name == "parametrize")
    assert {type(case[0]).__name__ for case in mark.args[1]} == named


def test_errors_keep_their_parts() -> None:
    config = errors.ConfigError("x", file="a.yaml", line=3, key="k")
    assert (config.file, config.line, config.key) == ("a.yaml", 3, "k")
    refused = errors.QmpRefused("quit", "GenericError", "no")
    assert (refused.command, refused.error_class, refused.desc) == ("quit", "GenericError", "no")
    expired = errors.DeadlineExpired("x", 1, last_seen="y")
    assert (expired.awaited, expired.seconds, expired.last_seen) == ("x", 1, "y")
    assert errors.UnsupportedError("A", "b").requirement == "A"


def test_parse_errors_quote_long_lines_in_part_but_keep_them() -> None:
    error = errors.ParseError("f", 1, "x" * 1000, "why")
    assert "x" * 200 + "…" in str(error) and "x" * 201 not in str(error)
    assert error.text == "x" * 1000


def test_deadline_runs_down_and_names_what_it_waited_for() -> None:
    deadline = Deadline(0)
    assert deadline.expired and deadline.remaining() == 0.0
    with pytest.raises(errors.DeadlineExpired, match=r"gave up after 0\.0 s waiting for x; last seen: y"):
        deadline.check("x", "y")
    roomy = Deadline(60)
    roomy.check("x")
    assert not roomy.expired and 59 < roomy.remaining() <= 60
    assert repr(roomy).startswith("Deadline(60 s, ")
    with pytest.raises(ValueError, match="cannot be in the past"):
        Deadline(-1)


def test_parts_never_outlive_the_whole() -> None:
    assert Deadline(60).at_most(5).seconds == 5
    assert Deadline(0).at_most(5).expired
    assert 59 < Deadline(60).at_most(600).seconds <= 60


def test_wait_wakes_on_notify() -> None:
    condition = threading.Condition()
    box: list[str] = []

    def fill() -> None:
        with condition:
            box.append("found")
            condition.notify_all()

    filler = threading.Timer(0.05, fill)
    filler.start()
    before = time.monotonic()
    try:
        assert Deadline(30).wait(condition, lambda: box[0] if box else None, "the box") == "found"
    finally:
        filler.join()
    assert time.monotonic() - before < 10


def test_wait_gives_up_with_the_last_thing_seen() -> None:
    with pytest.raises(errors.DeadlineExpired, match=r"waiting for the box; last seen: nothing yet"):
        Deadline(0.02).wait(threading.Condition(), lambda: None, "the box", lambda: "nothing yet")


def test_wait_looks_once_even_without_time() -> None:
    assert Deadline(0).wait(threading.Condition(), lambda: 0, "zero is a value") == 0
