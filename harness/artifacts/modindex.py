# SPDX-License-Identifier: GPL-2.0-or-later
"""The binary indexes that libkmod reads (libkmod/libkmod-index.c), as depmod would write them.

daxctl and ndctl ask libkmod for drivers, built-in ones too, and fail if any of the indexes is missing.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

_MAGIC, _VERSION = 0xB007F457, 0x00020001
_VALUES, _CHILDREN = 0x40000000, 0x20000000


@dataclass
class _TrieNode:
    children: dict[int, _TrieNode] = field(default_factory=dict)
    value: str | None = None


def pack_index(values: Mapping[str, str]) -> bytes:
    """The index that maps each key, in ASCII, to its one value. Equal mappings give equal bytes."""
    root = _TrieNode()
    for key, value in values.items():
        node = root
        for character in key.encode("ascii"):
            node = node.children.setdefault(character, _TrieNode())
        node.value = value
    # Two header words, then the offset of the root, which is only known at the end.
    out = bytearray(struct.pack(">III", _MAGIC, _VERSION, 0))
    struct.pack_into(">I", out, 8, _write(root, out))
    return bytes(out)


def _write(node: _TrieNode, out: bytearray) -> int:
    offsets = {character: _write(child, out) for character, child in sorted(node.children.items())}
    where = len(out)
    if offsets:
        first, last = min(offsets), max(offsets)
        out += bytes([first, last])
        for character in range(first, last + 1):
            out += struct.pack(">I", offsets.get(character, 0))
        where |= _CHILDREN
    if node.value is not None:
        # The number of values, then the priority and text of each.
        out += struct.pack(">II", 1, 0) + node.value.encode("ascii") + b"\0"
        where |= _VALUES
    return where
