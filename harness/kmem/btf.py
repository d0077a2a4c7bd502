# SPDX-License-Identifier: GPL-2.0-or-later
"""BTF: the kernel's own description of its types (Documentation/bpf/btf.rst, v6.12).

A kernel with CONFIG_DEBUG_INFO_BTF contains it in its Image. A hundred thousand types are indexed by number only;
names are looked up on demand.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from harness.errors import ParseError
from harness.state import NotObserved

_T = TypeVar("_T")

SOURCE = "BTF"

#: upper limit for any kernel: vmlinux has 6 MB of BTF at the time of writing
MAX_BLOB = 32 << 20
_MAX_DEPTH = 32
_MAX_VISITED = 4096

# struct btf_header, include/uapi/linux/btf.h: magic, version, flags, hdr_len, then offset and size of the two sections
_HEADER = struct.Struct("<HBBIIIII")
_MAGIC = 0xEB9F
_VERSION = 1
_START = re.compile(rb"\x9f\xeb\x01\x00")

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM = 1, 2, 3, 4, 5, 6
_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _FLOAT, _TYPE_TAG, _ENUM64 = 8, 9, 10, 11, 16, 18, 19
#: 32-bit words that follow a type's three: (always, for each of its ``vlen`` entries), by kind
_EXTRA = {
    _INT: (1, 0),
    _PTR: (0, 0),
    _ARRAY: (3, 0),
    _STRUCT: (0, 3),
    _UNION: (0, 3),
    _ENUM: (0, 2),
    7: (0, 0),  # FWD
    _TYPEDEF: (0, 0),
    _VOLATILE: (0, 0),
    _CONST: (0, 0),
    _RESTRICT: (0, 0),
    12: (0, 0),  # FUNC
    13: (0, 2),  # FUNC_PROTO
    14: (1, 0),  # VAR
    15: (0, 3),  # DATASEC
    _FLOAT: (0, 0),
    17: (1, 0),  # DECL_TAG
    _TYPE_TAG: (0, 0),
    _ENUM64: (0, 3),
}
_ALIASES = frozenset({_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG})
_POINTER_SIZE = 8
#: in every unpacked kernel (linux_banner, init/version.c)
_BANNER = b"Linux version "


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a struct: ``bit_offset`` from the struct's start, ``size`` in bytes (0 for a flexible array).

    ``bits`` is the width of a bit field, None for any other member. ``dimensions`` are the lengths of an array, the
    outermost first; empty for any other member.
    """

    bit_offset: int
    size: int
    bits: int | None
    dimensions: tuple[int, ...]

    @property
    def offset(self) -> int:
        """Bytes from the struct's start; raises ParseError for a bit field that does not begin at a byte."""
        if self.bit_offset % 8:
            raise ParseError(SOURCE, 1, str(self.bit_offset), "a bit field has no offset in bytes")
        return self.bit_offset // 8


class Btf:
    """One BTF blob, as ``find_btf`` returns it.

    Raises ParseError, as do all its methods, for anything that the specification does not allow and for kinds of types
    that it does not define.
    """

    def __init__(self, data: bytes) -> None:
        header = _header(data, 0)
        if header is None:
            raise _refuse(0, data, "not a BTF header")
        types, strings = header.types, header.strings
        self._strings = data[strings.start : strings.stop]
        if self._strings[:1] != b"\0" or self._strings[-1:] != b"\0":
            raise _refuse(strings.start, data, "the strings do not begin and end with a NUL")
        self._words: NDArray[np.uint32] = np.frombuffer(data[types.start : types.stop], dtype="<u4")
        self._starts = np.array(_type_starts(self._words), dtype=np.intp)
        self._names = self._words[self._starts]
        self._kinds = (self._words[self._starts + 1] >> np.uint32(24)) & np.uint32(31)
        self._found: dict[str, list[int]] = {}

    def __len__(self) -> int:
        """How many types there are, void not counted."""
        return len(self._starts)

    def size(self, struct: str) -> int | None:
        """Bytes of struct or union ``struct``; None if there is none.

        Raises ParseError if there are several of that name and of different sizes.
        """
        return self._agreed(struct, [int(self._word(number, 2)) for number in self._records(struct)])

    def member(self, struct: str, path: str) -> Member | None:
        """Member ``path`` of struct or union ``struct``; None if there is no such struct or member.

        Members of anonymous structs and unions count as the outer one's, as in C; dots lead into named members:
        ``member("page", "flags")``, ``member("pglist_data", "node_zones")``. Raises ParseError if there are several
        structs of that name in which it lies elsewhere.
        """
        found = []
        for number in self._records(struct):
            member = self._descend(number, path.split("."))
            if member is not None:
                found.append(member)
        return self._agreed(f"{struct}.{path}", found)

    def enumerators(self, name: str) -> dict[str, int] | None:
        """Names and values of the enum with the enumerator ``name``, in declaration order; None if there is none.

        Anonymous enums count. Raises ParseError if several different enums have it.
        """
        return self._agreed(name, [self._enum(number) for number in self._enums_with(name)])

    def _agreed(self, name: str, found: list[_T]) -> _T | None:
        if any(other != found[0] for other in found[1:]):
            raise ParseError(SOURCE, 1, name, "defined several times, and differently")
        return found[0] if found else None

    @cached_property
    def _named_records(self) -> NDArray[np.intp]:
        return np.flatnonzero((self._kinds == _STRUCT) | (self._kinds == _UNION))

    def _records(self, name: str) -> list[int]:
        """Numbers (from 0 on: one less than BTF's) of the structs and unions called ``name``."""
        if name not in self._found:
            where = self._named_records
            self._found[name] = where[np.isin(self._names[where], self._string_offsets(name))].tolist()
        return self._found[name]

    def _enums_with(self, name: str) -> list[int]:
        hits = np.flatnonzero(np.isin(self._words, self._string_offsets(name)))
        owners = np.searchsorted(self._starts, hits, side="right") - 1
        found: dict[int, None] = {}
        for hit, owner in zip(hits.tolist(), owners.tolist(), strict=True):
            kind = int(self._kinds[owner])
            within = hit - int(self._starts[owner]) - 3
            if kind in (_ENUM, _ENUM64) and within >= 0 and within % _EXTRA[kind][1] == 0:
                found[owner] = None
        return list(found)

    def _string_offsets(self, name: str) -> list[int]:
        """Every offset at which the strings have exactly ``name``: the tail of a longer one may serve as well."""
        wanted = name.encode() + b"\0"
        found = []
        at = self._strings.find(wanted)
        while at >= 0:
            found.append(at)
            at = self._strings.find(wanted, at + 1)
        return found

    def _word(self, number: int, index: int) -> int:
        return int(self._words[self._starts[number] + index])

    def _string(self, offset: int) -> str:
        end = self._strings.find(b"\0", offset)
        if end < 0:
            raise ParseError(SOURCE, 1, str(offset), "a name outside of the strings")
        return self._strings[offset:end].decode(errors="replace")

    def _enum(self, number: int) -> dict[str, int]:
        kind, info = int(self._kinds[number]), self._word(number, 1)
        signed, stride = bool(info >> 31), _EXTRA[kind][1]
        first = int(self._starts[number]) + 3
        found = {}
        for entry in self._words[first : first + (info & 0xFFFF) * stride].reshape(-1, stride).tolist():
            bits = 32 * (stride - 1)
            value = entry[1] | (entry[2] << 32 if stride == 3 else 0)
            found[self._string(entry[0])] = value - (1 << bits) if signed and value >> (bits - 1) else value
        return found

    def _descend(self, number: int, path: list[str]) -> Member | None:
        base = 0
        for depth, name in enumerate(path):
            step = self._lookup(number, name)
            if step is None:
                return None
            offset, bits, type_id = step
            base += offset
            if depth == len(path) - 1:
                size, dimensions = self._measure(type_id)
                return Member(base, size, bits, dimensions)
            inner = self._resolve(type_id)
            if inner is None or self._kinds[inner] not in (_STRUCT, _UNION):
                return None
            number = inner
        return None

    def _lookup(self, number: int, name: str) -> tuple[int, int | None, int] | None:
        """(bit offset, width of a bit field, type) of member ``name``, through anonymous members."""
        todo = [(number, 0, 0)]
        for _ in range(_MAX_VISITED):
            if not todo:
                return None
            number, base, depth = todo.pop()
            if depth > _MAX_DEPTH:
                break
            for member, type_id, where in self._members(number):
                offset, bits = where
                if member == name:
                    return base + offset, bits, type_id
                if not member:
                    inner = self._resolve(type_id)
                    if inner is not None and self._kinds[inner] in (_STRUCT, _UNION):
                        todo.append((inner, base + offset, depth + 1))
        raise ParseError(SOURCE, 1, name, "anonymous structs without end")

    def _members(self, number: int) -> list[tuple[str, int, tuple[int, int | None]]]:
        info, first = self._word(number, 1), int(self._starts[number]) + 3
        found = []
        for name, type_id, place in self._words[first : first + (info & 0xFFFF) * 3].reshape(-1, 3).tolist():
            where = (place & 0xFFFFFF, place >> 24 or None) if info >> 31 else (place, None)
            found.append((self._string(name), type_id, where))
        return found

    def _resolve(self, type_id: int) -> int | None:
        """The number of the type behind the typedefs and qualifiers of ``type_id``; None for void."""
        for _ in range(_MAX_DEPTH):
            if type_id == 0:
                return None
            if type_id > len(self):
                raise ParseError(SOURCE, 1, str(type_id), f"there are only {len(self)} types")
            number = type_id - 1
            if self._kinds[number] not in _ALIASES:
                return number
            type_id = self._word(number, 2)
        raise ParseError(SOURCE, 1, str(type_id), "typedefs without end")

    def _measure(self, type_id: int) -> tuple[int, tuple[int, ...]]:
        """Size in bytes, and the lengths of an array."""
        dimensions: list[int] = []
        for _ in range(_MAX_DEPTH):
            number = self._resolve(type_id)
            if number is None:
                break
            kind = int(self._kinds[number])
            if kind != _ARRAY:
                if kind == _PTR:
                    size = _POINTER_SIZE
                elif kind in (_INT, _STRUCT, _UNION, _ENUM, _ENUM64, _FLOAT):
                    size = self._word(number, 2)
                else:
                    break
                return int(np.prod([size, *dimensions], dtype=object)), tuple(dimensions)
            dimensions.append(self._word(number, 5))
            type_id = self._word(number, 3)
        raise ParseError(SOURCE, 1, str(type_id), "a type without a size")


def find_btf(image: bytes) -> bytes | None:
    """The BTF in a bare (unpacked) kernel Image; None if there is none.

    It is recognised by its header: the magic number, version 1, and two adjacent sections within the image, the strings
    between two NULs. A kernel's code and data contain the magic number too, but not such a header.
    """
    for match in _START.finditer(image):
        header = _header(image, match.start())
        if header is None or len(header.types) == 0:
            continue
        if not image[header.strings.start] and not image[header.strings.stop - 1]:
            return image[match.start() : max(header.types.stop, header.strings.stop)]
    return None


def image_marks(image: bytes, texts: Iterable[str], members: Iterable[str]) -> dict[str, bool] | NotObserved:
    """Whether each of ``texts`` is in a bare (unpacked) Image, and each ``structure.member`` in its BTF.

    Members are omitted if the image has no readable BTF. Not observed for anything but a bare image.
    """
    if _BANNER not in image:
        return NotObserved("the kernel's image is packed and cannot be searched")
    found = {text: text.encode() in image for text in texts}
    blob = find_btf(image)
    try:
        btf = None if blob is None else Btf(blob)
    except ParseError:
        return found
    for name in members if btf is not None else ():
        structure, _, member = name.partition(".")
        assert btf is not None
        if btf.size(structure) is not None:
            found[name] = btf.member(structure, member) is not None
    return found


@dataclass(frozen=True, slots=True)
class _Header:
    """Where the two sections lie."""

    types: range
    strings: range


def _header(data: bytes, at: int) -> _Header | None:
    """The header at ``at`` if it is one, None otherwise."""
    if at + _HEADER.size > len(data):
        return None
    magic, version, flags, length, type_off, type_len, str_off, str_len = _HEADER.unpack_from(data, at)
    if (magic, version, flags) != (_MAGIC, _VERSION, 0) or length < _HEADER.size or length % 4:
        return None
    end = at + length + max(type_off + type_len, str_off + str_len)
    if end > len(data) or end - at > MAX_BLOB or type_off % 4 or type_len % 4 or str_len == 0:
        return None
    if type_off < str_off + str_len and str_off < type_off + type_len:
        return None
    base = at + length
    return _Header(range(base + type_off, base + type_off + type_len), range(base + str_off, base + str_off + str_len))


def _type_starts(words: NDArray[np.uint32]) -> list[int]:
    """The offset of each type. There is no index: each type gives its own length."""
    total, at = len(words), 0
    starts: list[int] = []
    sizes = [_EXTRA.get(kind) for kind in range(32)]
    # One word at a time: a list is quicker than an array there.
    infos = words.tolist()
    while at < total:
        info = infos[at + 1] if at + 1 < total else 0
        size = sizes[info >> 24 & 31]
        if size is None:
            raise ParseError(SOURCE, 1, f"type {len(starts) + 1}", f"unknown kind of type: {info >> 24 & 31}")
        starts.append(at)
        at += 3 + size[0] + size[1] * (info & 0xFFFF)
    if at != total:
        raise ParseError(SOURCE, 1, f"type {len(starts)}", "the types are cut off")
    return starts


def _refuse(at: int, data: bytes, why: str) -> ParseError:
    return ParseError(SOURCE, 1, data[at : at + 32].hex(" "), f"byte {at}: {why}")
