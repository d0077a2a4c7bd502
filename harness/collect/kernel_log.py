# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's log as the host reads it: of the same messages as the guest's text, so that the two can be compared.

A message may be printed between the two readings. So the host counts the lines of the guest's text, and leaves what
follows them to the next snapshot: if that text lacks it, the two differ there. Where the text has lost lines, its last
one tells where it ends.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.collect.sources import Frame
from harness.kmem.log_ring import LogCopy, LogRecord
from harness.parsers.dmesg import parse_dmesg
from harness.state import DmesgLine, NotObserved

#: raw sources: the lines, and the numbers of the first message and of the one behind the last
LOG, SPAN = "host_log", "host_log_span"
LOG_SOURCES = (LOG, SPAN)


def log_sources(copy: LogCopy | NotObserved, dmesg: Frame | None) -> tuple[dict[str, bytes], dict[str, str]]:
    """The raw sources, and the reasons for those that are missing or incomplete; ``dmesg`` is the guest's, if read."""
    if isinstance(copy, NotObserved):
        return {}, dict.fromkeys(LOG_SOURCES, copy.reason)
    records = copy.records()
    chosen: Sequence[LogRecord] = records
    if dmesg is not None and dmesg.status == "ok":
        chosen = _as_many(records, dmesg.data)
    elif dmesg is not None and dmesg.status == "lost":
        chosen = _up_to(records, dmesg.data)
    end = chosen[-1].number + 1 if chosen else copy.since
    lines = b"".join(line + b"\n" for record in chosen for line in record.lines)
    found = {LOG: lines, SPAN: f"{copy.since} {end}\n".encode()}
    lost = bool(records) and records[0].number != copy.since
    return found, {LOG: "the kernel's log was overwritten before the host read it"} if lost else {}


def _as_many(records: Sequence[LogRecord], text: bytes) -> Sequence[LogRecord]:
    """The first of ``records``, with as many lines as ``text`` has."""
    wanted, count = text.count(b"\n"), 0
    for number, record in enumerate(records):
        if count >= wanted:
            return records[:number]
        count += len(record.lines)
    return records


def _up_to(records: Sequence[LogRecord], text: bytes) -> Sequence[LogRecord]:
    """The first of ``records``, up to the last line of ``text``; all if none has it."""
    last = _parsed(text.splitlines()[-1:])
    for number in range(len(records), 0, -1):
        if _parsed(records[number - 1].lines[-1:]) == last:
            return records[:number]
    return records


def _parsed(lines: Sequence[bytes]) -> tuple[DmesgLine, ...]:
    return parse_dmesg(b"".join(line + b"\n" for line in lines).decode(errors="replace"))
