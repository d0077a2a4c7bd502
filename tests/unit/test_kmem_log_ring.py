# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's log in a made-up ring: what is printed equals what was written, also where the ring wraps around."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kmem_count_guest import CountGuest

from harness.kmem.log_ring import LogRing, log_ring
from harness.state import NotObserved

COUNT_BITS, SIZE_BITS = 4, 9
COUNT, SIZE = 1 << COUNT_BITS, 1 << SIZE_BITS
DESC, INFO = 24, 88
NUMBER, TOP = (1 << 62) - 1, 1 << 64
RESERVED, COMMITTED, FINAL, REUSABLE = range(4)
NOTE = {
    **{"SIZE(prb_desc)": DESC, "SIZE(printk_info)": INFO},
    **{"OFFSET(printk_ringbuffer.desc_ring)": 0, "OFFSET(printk_ringbuffer.text_data_ring)": 48},
    **{"OFFSET(prb_desc_ring.count_bits)": 0, "OFFSET(prb_desc_ring.descs)": 8, "OFFSET(prb_desc_ring.infos)": 16},
    **{"OFFSET(prb_desc_ring.head_id)": 24, "OFFSET(prb_desc_ring.tail_id)": 32, "OFFSET(prb_desc.state_var)": 0},
    **{"OFFSET(prb_desc.text_blk_lpos)": 8, "OFFSET(prb_data_blk_lpos.begin)": 0, "OFFSET(prb_data_blk_lpos.next)": 8},
    **{"OFFSET(prb_data_ring.size_bits)": 0, "OFFSET(prb_data_ring.data)": 8, "OFFSET(printk_info.seq)": 0},
    **{"OFFSET(printk_info.ts_nsec)": 8, "OFFSET(printk_info.text_len)": 16, "OFFSET(printk_info.caller_id)": 20},
}


class LogGuest(CountGuest):
    """A kernel with an empty log; ``modern`` ones let a block end at the end of the ring (v7.0)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.data, self.descs, self.infos, self.ring, self.pointer = (
            self.image(size) for size in (SIZE, DESC * COUNT, INFO * COUNT, 88, 8)
        )
        self.put(self.pointer, self.ring)
        self.head = self.tail = (-(COUNT + 1)) & NUMBER
        self.at = self.oldest = -SIZE
        self.put(self.descs + DESC * (COUNT - 1), self.head | REUSABLE << 62, 1, 1)
        self.put(self.infos, -COUNT)
        self.written: list[bytes] = []
        self.blocks: dict[int, int] = {}
        self.sync()
        self.note |= {"SYMBOL(prb)": f"{self.pointer:x}"} | {key: str(value) for key, value in NOTE.items()}

    def sync(self) -> None:
        self.put(self.ring, COUNT_BITS, self.descs, self.infos, self.head, self.tail)
        self.put(self.ring + 48, SIZE_BITS, self.data)

    def log(self, text: bytes, *, level: int = 6, nanoseconds: int = 1_234_567_890, state: int = FINAL) -> None:
        """Write a record as prb_reserve and prb_commit do."""
        self.head = (self.head + 1) & NUMBER
        if (self.head - self.tail & NUMBER) >= COUNT:
            self.tail = (self.tail + 1) & NUMBER
        place, number = self.head % COUNT, len(self.written)
        begin, end = 3, 3
        if text:
            need = 8 + len(text) + -len(text) % 8
            begin, end = self.at, self.at + need
            if begin // SIZE != end // SIZE:
                end = end // SIZE * SIZE + need
            block = begin if begin // SIZE == (end - 1) // SIZE else end // SIZE * SIZE
            self.write(self.data + block % SIZE, struct.pack("<Q", self.head) + text)
            self.at = end
        self.put(self.descs + DESC * place, self.head | state << 62, begin, end)
        info = struct.pack("<QQHBBI", number, nanoseconds, len(text), 1, level << 5 | 3, 7)
        self.write(self.infos + INFO * place, info.ljust(INFO, b"\0"))
        prefix = f"<{8 + level}>[{nanoseconds // 10**9:5d}.{nanoseconds % 10**9 // 1000:06d}] ".encode()
        self.written.append(b"".join(prefix + line + b"\n" for line in text.split(b"\n")))
        self.sync()

    def find(self) -> LogRing | NotObserved:
        with self.reader() as reader:
            return log_ring(reader, self.note)

    def seen(self, since: int = 0) -> dict[int, bytes]:
        with self.reader() as reader:
            ring = log_ring(reader, self.note)
            assert isinstance(ring, LogRing), ring
            records = ring.copy(reader, since).records()
        return {record.number: b"".join(line + b"\n" for line in record.lines) for record in records}


_TEXTS = st.lists(st.binary(max_size=60).map(lambda text: text.replace(b"\0", b"\n")), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_TEXTS, st.integers(0, 8))
def test_what_is_left_of_the_log_is_what_was_written(tmp_path: Path, texts: Sequence[bytes], last: int) -> None:
    guest = LogGuest(tmp_path / "memory")
    for number, text in enumerate(texts):
        guest.log(text, level=number % 8, nanoseconds=number * 987_654_321)
    seen = guest.seen()
    assert seen == {number: guest.written[number] for number in seen}
    kept, room = len(texts), SIZE
    for text in reversed(texts[-COUNT + 1 :]):
        # At worst, each round of the ring leaves the end of it unused.
        room -= 2 * (8 + len(text) + 8)
        if room < 0:
            break
        kept -= 1
        assert kept in seen
    since = max(0, len(texts) - last)
    assert guest.seen(since) == {number: text for number, text in seen.items() if number >= since}


def test_records_that_are_not_complete_end_the_log(tmp_path: Path) -> None:
    guest = LogGuest(tmp_path / "memory")
    guest.log(b"one\ntwo", level=4)
    guest.log(b"")
    for state in (RESERVED, COMMITTED):
        guest.log(b"unfinished", state=state)
        guest.log(b"later")
        assert guest.seen() == {
            0: b"<12>[    1.234567] one\n<12>[    1.234567] two\n",
            1: b"<14>[    1.234567] \n",
        }
    guest.put(guest.descs + DESC, 1 | FINAL << 62, 1, 1)
    assert list(guest.seen()) == [0], "the text of the second was lost"


def test_nothing_new(tmp_path: Path) -> None:
    guest = LogGuest(tmp_path / "memory")
    for _ in range(3):
        guest.log(b"a")
    assert list(guest.seen(2)) == [2] and guest.seen(3) == guest.seen(1000) == {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"SYMBOL(prb)": None}, "the kernel's vmcoreinfo has no SYMBOL(prb) (no CONFIG_PRINTK)"),
        ({"OFFSET(printk_info.seq)": "x"}, "the kernel's vmcoreinfo is not understood"),
        ({"OFFSET(printk_info.caller_id)": "24"}, "laid out in a way that memhp does not know"),
        ({"SIZE(prb_desc)": "16"}, "laid out in a way that memhp does not know"),
        ({"SIZE(printk_info)": "1" * 20}, "laid out in a way that memhp does not know"),
        ({"SYMBOL(prb)": "ffffffd000000000"}, "the kernel's log cannot be read: kernel address"),
        ({"OFFSET(prb_desc_ring.count_bits)": "24"}, "the kernel's log cannot be read: "),
    ],
)
def test_a_note_that_does_not_fit(tmp_path: Path, change: dict[str, str | None], reason: str) -> None:
    guest = LogGuest(tmp_path / "memory")
    guest.log(b"a")
    for key, value in change.items():
        guest.note.pop(key)
        if value is not None:
            guest.note[key] = value
    found = guest.find()
    assert isinstance(found, NotObserved) and reason in found.reason


def test_an_empty_log_is_none(tmp_path: Path) -> None:
    assert LogGuest(tmp_path / "memory").find() == NotObserved("the kernel's log has no record")
