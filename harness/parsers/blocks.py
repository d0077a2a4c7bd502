# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory blocks of /sys/devices/system/memory (drivers/base/memory.c)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from harness.errors import ParseError
from harness.parsers._lines import numbered
from harness.parsers.notes import STRICT, Notes
from harness.state import MemoryBlock

SOURCE = "/sys/devices/system/memory"
#: the same blocks as the host reads them
HOST_BLOCKS = "the memory blocks in guest memory"

_LINE = re.compile(r"memory(0|[1-9][0-9]{0,15})/([^/:]+):(.*)", re.ASCII)
# Any word is a state: BLK-2 decides which one is right. state_show prints an unknown state as ERROR-UNKNOWN-n; the
# numbers behind the words changed in v6.19.
_VALUES = {
    "state": re.compile(r"[!-~]+"),
    "phys_index": re.compile(r"[0-9a-f]{8}|[1-9a-f][0-9a-f]{8,15}"),
    "removable": re.compile(r"[01]"),
    "valid_zones": re.compile(r"\w+(?: \w+)*", re.ASCII),
    "node": re.compile(r"0|[1-9][0-9]{0,5}"),
}


@dataclass
class _Block:
    """The files of one block seen so far, and the line that named it first."""

    line: int
    row: str
    files: dict[str, str] = field(default_factory=dict)
    nodes: list[int] = field(default_factory=list)


def parse_blocks(text: str, notes: Notes = STRICT, *, source: str = SOURCE) -> tuple[MemoryBlock, ...]:
    """Return the memory blocks in numerical order.

    ``text`` holds one line per file or link, in any order: ``memory32/state:offline``,
    ``memory32/phys_index:00000020`` (hexadecimal), ``memory32/removable:1``,
    ``memory32/valid_zones:Normal Movable``, ``memory32/node:0`` (one for each node link).

    Other files of a block, and names that are not blocks (memory_failure), are unknown. Anything that
    drivers/base/memory.c cannot print is garbled: another content, a second line in a file, and a block without state
    or phys_index, which is omitted. Raises ParseError for a text without any block.
    """
    found: dict[int, _Block] = {}
    for line, row in numbered(source, text, notes):
        match = _LINE.fullmatch(row)
        if match is None:
            notes.add_unknown(source, "line", row)
        elif match[2] not in _VALUES:
            notes.add_unknown(source, "file of a memory block", f"{match[2]}:{match[3]}")
        else:
            _take(source, found.setdefault(int(match[1]), _Block(line, row)), line, row, match[2], match[3], notes)
    if not found:
        raise ParseError(source, 1, text[:200], "no memory block")
    blocks = (_freeze(source, index, found[index], notes) for index in sorted(found))
    return tuple(block for block in blocks if block is not None)


def _take(source: str, block: _Block, line: int, row: str, name: str, value: str, notes: Notes) -> None:
    if _VALUES[name].fullmatch(value) is None:
        notes.add_garbled(source, line, row, f"not valid content of {name!r}")
    elif name == "node":
        if int(value) in block.nodes:
            notes.add_garbled(source, line, row, "the same node link twice")
        else:
            block.nodes.append(int(value))
    elif name in block.files:
        notes.add_garbled(source, line, row, "the same file twice")
    else:
        block.files[name] = value


def _freeze(source: str, index: int, block: _Block, notes: Notes) -> MemoryBlock | None:
    files = block.files
    for name in ("state", "phys_index"):
        if name not in files:
            notes.add_garbled(source, block.line, block.row, f"memory{index} has no {name}")
            return None
    return MemoryBlock(
        index=index,
        phys_index=int(files["phys_index"], 16),
        state=files["state"],
        removable=files["removable"] == "1" if "removable" in files else None,
        valid_zones=tuple(files["valid_zones"].split(" ")) if "valid_zones" in files else None,
        nodes=tuple(sorted(block.nodes)),
    )
