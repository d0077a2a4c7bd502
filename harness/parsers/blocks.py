# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory blocks of /sys/devices/system/memory (drivers/base/memory.c)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from harness.errors import ParseError
from harness.parsers._lines import numbered
from harness.state import MemoryBlock

SOURCE = "/sys/devices/system/memory"

_LINE = re.compile(r"memory(0|[1-9][0-9]{0,15})/(\w+):(.*)", re.ASCII)
# state_show has a spelling for a state it does not know, ERROR-UNKNOWN-n: that is for check BLK-1 to judge.
_VALUES = {
    "state": re.compile(r"[A-Za-z0-9-]+"),
    "phys_index": re.compile(r"[0-9a-f]{8}|[1-9a-f][0-9a-f]{8,15}"),
    "removable": re.compile(r"[01]"),
    "valid_zones": re.compile(r"\w+(?: \w+)*", re.ASCII),
    "node": re.compile(r"0|[1-9][0-9]{0,5}"),
}


@dataclass
class _Block:
    """The files of one block, as far as they have been seen, and the line that named it first."""

    line: int
    row: str
    files: dict[str, str] = field(default_factory=dict)
    nodes: list[int] = field(default_factory=list)


def parse_blocks(text: str) -> tuple[MemoryBlock, ...]:
    """Return the memory blocks in the order of their numbers.

    ``text`` holds one line per file or link, in any order: ``memory32/state:offline``,
    ``memory32/phys_index:00000020`` (hexadecimal), ``memory32/removable:1``,
    ``memory32/valid_zones:Normal Movable``, ``memory32/node:0`` (one for each node link). Every block needs its state
    and phys_index. Raises ParseError for any other line, for a file named twice, and for a text without any block.
    """
    found: dict[int, _Block] = {}
    for line, row in numbered(SOURCE, text):
        match = _LINE.fullmatch(row)
        if match is None:
            raise ParseError(SOURCE, line, row, "not 'memory<N>/<file>:<content>'")
        name, value = match[2], match[3]
        if name not in _VALUES:
            raise ParseError(SOURCE, line, row, f"no parser for the file {name!r} of a memory block")
        if _VALUES[name].fullmatch(value) is None:
            raise ParseError(SOURCE, line, row, f"not a content of {name!r}")
        block = found.setdefault(int(match[1]), _Block(line, row))
        if name == "node":
            if int(value) in block.nodes:
                raise ParseError(SOURCE, line, row, "the same node link twice")
            block.nodes.append(int(value))
        elif name in block.files:
            raise ParseError(SOURCE, line, row, "the same file twice")
        else:
            block.files[name] = value
    if not found:
        raise ParseError(SOURCE, 1, "", "no memory block at all")
    return tuple(_freeze(index, found[index]) for index in sorted(found))


def _freeze(index: int, block: _Block) -> MemoryBlock:
    files = block.files
    for name in ("state", "phys_index"):
        if name not in files:
            raise ParseError(SOURCE, block.line, block.row, f"memory{index} has no {name}")
    return MemoryBlock(
        index=index,
        phys_index=int(files["phys_index"], 16),
        state=files["state"],
        removable=files["removable"] == "1" if "removable" in files else None,
        valid_zones=tuple(files["valid_zones"].split(" ")) if "valid_zones" in files else None,
        nodes=tuple(sorted(block.nodes)),
    )
