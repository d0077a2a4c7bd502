# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's log, read from its ring buffer (kernel/printk/printk_ringbuffer.h, v5.10 to v7.3).

A record has a descriptor, an info and, unless it is empty, a block of text, which begins with the descriptor's number.
vmcoreinfo tells where all of them are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from harness.errors import InfraError
from harness.kmem.lookup import KernelReader
from harness.kmem.physical_memory import Words
from harness.state import NotObserved

#: most records that one copy takes; further ones count as overwritten
MAX_RECORDS = 1 << 15
#: a power of two: larger logs than of 64 MiB are not read (log_buf_len=)
_MOST_BITS = 26
#: the upper two bits of a descriptor's state are its state, the others its number
_NUMBER, _FINAL = (1 << 62) - 1, 2
#: the positions of a record without text are odd, these if it is empty (EMPTY_LINE_LPOS)
_EMPTY = (3, 3)
#: struct printk_info: these follow text_len
_FACILITY, _LEVEL, _CALLER = 2, 3, 4
_OFFSETS = (
    *("printk_ringbuffer.desc_ring", "printk_ringbuffer.text_data_ring"),
    *("prb_desc_ring.count_bits", "prb_desc_ring.descs", "prb_desc_ring.infos", "prb_desc_ring.head_id"),
    *("prb_desc_ring.tail_id", "prb_desc.state_var", "prb_desc.text_blk_lpos"),
    *("prb_data_blk_lpos.begin", "prb_data_blk_lpos.next", "prb_data_ring.size_bits", "prb_data_ring.data"),
    *("printk_info.seq", "printk_info.ts_nsec", "printk_info.text_len", "printk_info.caller_id"),
)
_SIZES = ("prb_desc", "printk_info")
#: bytes; more than any of these structures
_LARGEST = 4096


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One message, as ``lines`` in the format of ``dmesg -r`` (record_print_text, kernel/printk/printk.c)."""

    number: int
    lines: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class LogCopy:
    """The ring's records from number ``since`` on: rows of descriptors and infos, oldest first, and their text.

    ``text`` is the part of the text ring, at the address ``data``, that begins at position ``start``; ``size`` is the
    whole ring's. ``head`` is the number of the newest descriptor.
    """

    ring: LogRing
    since: int
    head: int
    descriptors: Words
    infos: Words
    data: int
    start: int
    size: int
    text: bytes

    def records(self) -> tuple[LogRecord, ...]:
        """The complete records, up to the first that is still being written, without those that are overwritten."""
        found: list[LogRecord] = []
        for number, descriptor, info, (begin, end) in self._rows():
            state = int(descriptor[self.ring.words["prb_desc.state_var"]])
            if state & _NUMBER != number:
                continue
            if state >> 62 != _FINAL:
                if found:
                    break
                continue
            text = self._text_of(begin, end, number)
            if text is not None and self._number(info) >= self.since:
                found.append(LogRecord(self._number(info), tuple(self._lines(info, text))))
        return tuple(found)

    def _rows(self) -> Iterator[tuple[int, Words, Words, list[int]]]:
        """Number, descriptor, info and place of text of each record."""
        first = self.head - len(self.descriptors) + 1
        spans = self.ring.spans(self.descriptors, self.size).tolist()
        for at, row in enumerate(zip(self.descriptors, self.infos, spans, strict=True)):
            yield (first + at) & _NUMBER, *row

    def _number(self, info: Words) -> int:
        return int(info[self.ring.words["printk_info.seq"]])

    def _text_of(self, begin: int, end: int, number: int) -> bytes | None:
        """The bytes of a record's block without its number; None if it was overwritten (get_data)."""
        if begin & 1:
            return b"" if (begin, end) == tuple(place + self.size for place in _EMPTY) else None
        if begin // self.size != (end - 1) // self.size:
            # A block that does not fit before the end of the ring is at its start.
            begin = end - end % self.size
        block = self.text[begin - self.start : end - self.start] if begin >= self.start else b""
        if len(block) < 8 or int.from_bytes(block[:8], "little") & _NUMBER != number:
            return None
        return block[8:]

    def _lines(self, info: Words, text: bytes) -> Iterator[bytes]:
        raw, ring = info.tobytes(), self.ring
        at = ring.text_length
        length = int.from_bytes(raw[at : at + 2], "little")
        level = raw[at + _FACILITY] << 3 | raw[at + _LEVEL] >> 5
        seconds, rest = divmod(int(info[ring.words["printk_info.ts_nsec"]]), 10**9)
        prefix = f"<{level}>[{seconds:5d}.{rest // 1000:06d}] ".encode()
        for line in text[:length].split(b"\n"):
            yield prefix + line


@dataclass(frozen=True)
class LogRing:
    """Where the ring is: the address of the pointer to it, and its layout in bytes."""

    pointer: int
    offsets: Mapping[str, int]
    sizes: Mapping[str, int]

    @functools.cached_property
    def words(self) -> Mapping[str, int]:
        """Places in a descriptor or an info, in words of 64 bits."""
        return {name: offset // 8 for name, offset in self.offsets.items()}

    @property
    def text_length(self) -> int:
        return self.offsets["printk_info.text_len"]

    def spans(self, descriptors: Words, size: int) -> Words:
        """Begin and end of each record's text in a ring of ``size`` bytes, as positions that only grow.

        The kernel's begin at minus the size (BLK0_LPOS), so that they would wrap around soon.
        """
        at = self.words["prb_desc.text_blk_lpos"]
        ends = [at + self.words[f"prb_data_blk_lpos.{name}"] for name in ("begin", "next")]
        return np.asarray(descriptors[:, ends] + np.uint64(size))

    def copy(self, reader: KernelReader, since: int) -> LogCopy:
        """Copy the records from number ``since`` on. Raises InfraError if the ring makes no sense."""
        ring = reader.word(self.pointer)
        descs, texts = (ring + self.offsets[f"printk_ringbuffer.{part}"] for part in ("desc_ring", "text_data_ring"))
        count = self._power(reader, descs + self.offsets["prb_desc_ring.count_bits"])
        size = self._power(reader, texts + self.offsets["prb_data_ring.size_bits"])
        head, tail = (
            reader.word(descs + self.offsets[f"prb_desc_ring.{end}_id"]) & _NUMBER for end in ("head", "tail")
        )
        wanted = min((head - tail & _NUMBER) + 1, count, MAX_RECORDS)
        infos = reader.word(descs + self.offsets["prb_desc_ring.infos"])
        newest = reader.word(infos + head % count * self.sizes["printk_info"] + self.offsets["printk_info.seq"])
        wanted = max(0, min(wanted, newest - since + 1))
        places = (np.arange(wanted, dtype=np.uint64) + np.uint64(head - wanted + 1 & _NUMBER)) % np.uint64(count)
        rows = self._rows(reader, reader.word(descs + self.offsets["prb_desc_ring.descs"]), places, "prb_desc")
        data = reader.word(texts + self.offsets["prb_data_ring.data"])
        start, text = self._text(reader, data, size, rows)
        kept = self._rows(reader, infos, places, "printk_info")
        return LogCopy(self, since, head, rows, kept, data, start, size, text)

    def _power(self, reader: KernelReader, address: int) -> int:
        bits = int.from_bytes(reader.read(address, 4), "little")
        if bits > _MOST_BITS:
            raise InfraError(f"the kernel's log has a ring of 2**{bits}")
        return 1 << bits

    def _rows(self, reader: KernelReader, array: int, places: Words, kind: str) -> Words:
        size = self.sizes[kind]
        words, there = reader.gather(np.uint64(array) + places * np.uint64(size), size // 8)
        if not there.all():
            raise InfraError(f"the kernel's log has a {kind} that cannot be read")
        return words

    def _text(self, reader: KernelReader, data: int, size: int, rows: Words) -> tuple[int, bytes]:
        """The text of the descriptors in ``rows``: the ring from a position on, of which at most one round is left."""
        spans = self.spans(rows, size)
        spans = spans[spans[:, 0] & np.uint64(1) == 0]
        if not len(spans):
            return 0, b""
        end = int(spans[:, 1].max())
        start = max(int(spans[:, 0].min()), end - size, 0)
        first, count = start % size, end - start
        text = reader.read(data + first, min(count, size - first))
        return start, text + (reader.read(data, count - len(text)) if count > len(text) else b"")


def log_ring(reader: KernelReader, note: Mapping[str, str]) -> LogRing | NotObserved:
    """Find the ring of a paused guest by its vmcoreinfo ``note``."""
    keys = ["SYMBOL(prb)", *(f"OFFSET({name})" for name in _OFFSETS), *(f"SIZE({name})" for name in _SIZES)]
    try:
        offsets = {name: int(note[f"OFFSET({name})"]) for name in _OFFSETS}
        sizes = {name: int(note[f"SIZE({name})"]) for name in _SIZES}
        ring = LogRing(int(note["SYMBOL(prb)"], 16), offsets, sizes)
    except KeyError as missing:
        return NotObserved(f"the kernel's vmcoreinfo has no {missing.args[0]} (no CONFIG_PRINTK)")
    except ValueError:
        return NotObserved(
            f"the kernel's vmcoreinfo is not understood: {', '.join(f'{key}={note[key]}' for key in keys)}"
        )
    if not _is_sound(ring):
        return NotObserved("the kernel's log is laid out in a way that memhp does not know")
    try:
        found = ring.copy(reader, 0).records()
    except InfraError as error:
        return NotObserved(f"the kernel's log cannot be read: {error.message}")
    return ring if found else NotObserved("the kernel's log has no record")


def _is_sound(ring: LogRing) -> bool:
    """Whether everything is where it can be read: words at words, within their structures."""
    at, sizes = ring.offsets, ring.sizes
    text = at["prb_desc.text_blk_lpos"]
    words = {
        "prb_desc": (at["prb_desc.state_var"], *(text + at[f"prb_data_blk_lpos.{end}"] for end in ("begin", "next"))),
        "printk_info": (at["printk_info.seq"], at["printk_info.ts_nsec"]),
    }
    return (
        all(0 <= offset < _LARGEST for offset in at.values())
        and all(0 < size <= _LARGEST and size % 8 == 0 for size in sizes.values())
        and all(place % 8 == 0 and place + 8 <= sizes[kind] for kind, places in words.items() for place in places)
        and ring.text_length + _CALLER + 4 <= sizes["printk_info"]
        and at["printk_info.caller_id"] == ring.text_length + _CALLER
    )
