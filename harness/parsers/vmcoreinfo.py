# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's VMCOREINFO note (kernel/vmcore_info.c), and its place in /proc/kcore (fs/proc/kcore.c)."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from harness.elfheader import PT_NOTE, read_header
from harness.errors import ParseError
from harness.parsers._lines import numbered
from harness.parsers.notes import STRICT, Notes
from harness.units import align_up

SOURCE = "vmcoreinfo"
KCORE = "/proc/kcore"

#: the kernel's limit for the note: one page, at most 64 KiB
MAX_NOTE = 1 << 16

_LINE = re.compile(r"([A-Za-z_][\w-]*(?:\([^()=]+\))?)=(.*)", re.ASCII)

# Elf_Nhdr of include/uapi/linux/elf.h, little-endian
_NHDR = struct.Struct("<III")
_NAME = b"VMCOREINFO\0"


def parse_vmcoreinfo(text: str, notes: Notes = STRICT) -> dict[str, str]:
    """Return the note's values by key, such as ``PAGESIZE``, ``SYMBOL(mem_section)``, ``OFFSET(zone.vm_stat)``.

    A value extends from the first ``=`` to the end of its line. Another line is unknown, and so is a key that is
    repeated with another value (which would count?); it is omitted. Raises ParseError when OSRELEASE, the first key of
    every kernel, is missing.
    """
    values: dict[str, str] = {}
    twice: set[str] = set()
    for _, row in numbered(SOURCE, text, notes):
        match = _LINE.fullmatch(row)
        if match is None:
            notes.add_unknown(SOURCE, "line", row)
        elif values.setdefault(match[1], match[2]) != match[2]:
            notes.add_unknown(SOURCE, "key with two values", row)
            twice.add(match[1])
    if "OSRELEASE" not in values:
        raise ParseError(SOURCE, 1, text[:200], "no OSRELEASE")
    return {key: value for key, value in values.items() if key not in twice}


def note_from_kcore(data: bytes) -> str:
    """Return the text of the VMCOREINFO note from the beginning of /proc/kcore.

    ``data`` must reach to the end of the notes (64 KiB is plenty). Raises ParseError if it is not a little-endian
    64-bit ELF file, if a header points outside of it, or if there is no such note.
    """
    try:
        header = read_header(data)
    except ValueError as error:
        raise _refuse(0, data, str(error)) from None
    for segment in header.of_kind(PT_NOTE):
        end = segment.offset + segment.file_size
        if end > len(data):
            raise _refuse(segment.offset, data, f"the notes reach beyond the {len(data)} bytes that were read")
        for name, content in _notes(data, segment.offset, end):
            if name == _NAME:
                return _decode(content)
    raise _refuse(0, data, "no VMCOREINFO note")


def _notes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    # The kernel reserves a little more than it fills: the rest is zero, and too short or empty to be a note.
    while at + _NHDR.size <= end:
        name_size, size, _ = _NHDR.unpack_from(data, at)
        if name_size == 0 and size == 0:
            return
        name = at + _NHDR.size
        content = align_up(name + name_size, 4)
        if content + size > end:
            raise _refuse(at, data, "a note reaches beyond its segment")
        yield data[name : name + name_size], data[content : content + size]
        at = align_up(content + size, 4)


def _decode(content: bytes) -> str:
    if len(content) > MAX_NOTE:
        raise _refuse(0, content, f"a note of {len(content)} bytes; the kernel's is at most {MAX_NOTE}")
    try:
        return content.decode("ascii")
    except UnicodeDecodeError as error:
        raise _refuse(error.start, content, "the note is not ASCII") from None


def _refuse(at: int, data: bytes, why: str) -> ParseError:
    return ParseError(KCORE, 1, data[at : at + 32].hex(" "), f"byte {at}: {why}")
