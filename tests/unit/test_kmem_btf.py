# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import MemhpError, ParseError
from harness.kmem.btf import Btf, Member, find_btf

FIXTURES = Path(__file__).parent / "fixtures"

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT = range(1, 12)
FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(12, 20)


@dataclass
class Writer:
    """Writes BTF as specified; type ids start with 1."""

    types: list[bytes] = field(default_factory=list)
    strings: bytes = b"\0"

    def name(self, text: str) -> int:
        if not text:
            return 0
        self.strings += text.encode() + b"\0"
        return len(self.strings) - len(text) - 1

    def add(self, kind: int, name: str = "", size: int = 0, *rest: int, vlen: int = 0, flag: bool = False) -> int:
        info = vlen | kind << 24 | int(flag) << 31
        words = [word % (1 << 32) for word in (self.name(name), info, size, *rest)]
        self.types.append(struct.pack(f"<{len(words)}I", *words))
        return len(self.types)

    def int(self, name: str = "long", size: int = 8) -> int:
        return self.add(INT, name, size, size * 8)

    def array(self, element: int, count: int) -> int:
        return self.add(ARRAY, "", 0, element, 0, count)

    def struct(
        self, name: str, size: int, *members: tuple[str, int, int], kind: int = STRUCT, flag: bool = False
    ) -> int:
        rest = [word for member, type_id, bits in members for word in (self.name(member), type_id, bits)]
        return self.add(kind, name, size, *rest, vlen=len(members), flag=flag)

    def enum(self, name: str, *values: tuple[str, int], kind: int = ENUM, flag: bool = False) -> int:
        rest = []
        for text, value in values:
            rest += [self.name(text), value & 0xFFFFFFFF]
            if kind == ENUM64:
                rest.append(value >> 32 & 0xFFFFFFFF)
        return self.add(kind, name, 8 if kind == ENUM64 else 4, *rest, vlen=len(values), flag=flag)

    def blob(self, *, extra: int = 0, gap: int = 0) -> bytes:
        types = b"".join(self.types)
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24 + extra, 0, len(types), len(types) + gap, len(self.strings))
        return header + bytes(extra) + types + bytes(gap) + self.strings


def one_of_each() -> Writer:
    """All kinds of types; the struct at the end is only found if the sizes of all before it are right."""
    btf = Writer()
    number = btf.int()
    btf.add(PTR, "", number)
    btf.array(number, 3)
    btf.struct("s", 8, ("a", number, 0))
    btf.struct("u", 8, ("a", number, 0), ("b", number, 0), kind=UNION)
    btf.enum("e", ("E0", 0), ("E1", 1))
    btf.add(FWD, "f")
    btf.add(TYPEDEF, "t", number)
    for kind in (VOLATILE, CONST, RESTRICT):
        btf.add(kind, "", number)
    proto = btf.add(FUNC_PROTO, "", number, btf.name("x"), number, btf.name("y"), number, vlen=2)
    btf.add(FUNC, "fn", proto)
    variable = btf.add(VAR, "v", number, 1)
    btf.add(DATASEC, ".data", 8, variable, 0, 8, vlen=1)
    btf.add(FLOAT, "double", 8)
    btf.add(DECL_TAG, "tag", variable, -1)
    btf.add(TYPE_TAG, "user", number)
    btf.enum("big", ("B0", 1 << 40), kind=ENUM64)
    btf.struct("last", 16, ("first", number, 0), ("second", number, 64))
    return btf


@pytest.mark.parametrize(("extra", "gap"), [(0, 0), (8, 0), (0, 64), (16, 3)])
def test_every_kind_is_stepped_over(extra: int, gap: int) -> None:
    writer = one_of_each()
    btf = Btf(writer.blob(extra=extra, gap=gap))
    assert len(btf) == len(writer.types)
    assert btf.size("last") == 16 and btf.size("u") == 8
    assert btf.member("last", "second") == Member(64, 8, None, ())
    assert btf.member("u", "b") == Member(0, 8, None, ())


def test_names_that_are_not_there() -> None:
    btf = Btf(one_of_each().blob())
    assert btf.size("nothing") is None and btf.member("nothing", "a") is None
    assert btf.member("s", "nothing") is None and btf.member("s", "a.b") is None
    assert btf.enumerators("NOTHING") is None
    # names of things of another kind
    assert btf.size("long") is None and btf.size("e") is None and btf.enumerators("first") is None
    assert btf.enumerators("e") is None and btf.size("") is None


def test_anonymous_and_named_members_nest() -> None:
    """struct page as in the kernel: unions of anonymous structs, an atomic_t at the end."""
    writer = Writer()
    long, int_ = writer.int(), writer.int("int", 4)
    atomic = writer.add(TYPEDEF, "atomic_t", writer.struct("", 4, ("counter", int_, 0)))
    lru = writer.struct("", 16, ("next", long, 0), ("prev", long, 64))
    inner = writer.struct("", 16, ("lru", lru, 0), ("mlock", long, 64), kind=UNION)
    outer = writer.struct("", 24, ("", writer.add(CONST, "", inner), 64), ("mapping", long, 0), kind=UNION)
    grid = writer.array(writer.array(int_, 3), 2)
    writer.struct("page", 64, ("flags", long, 0), ("", outer, 64), ("_refcount", atomic, 416), ("grid", grid, 448))
    btf = Btf(writer.blob())
    assert btf.member("page", "mapping") == Member(64, 8, None, ())
    assert btf.member("page", "lru") == Member(128, 16, None, ())
    assert btf.member("page", "lru.prev") == Member(192, 8, None, ())
    assert btf.member("page", "mlock") == Member(192, 8, None, ())
    assert btf.member("page", "_refcount") == Member(416, 4, None, ())
    assert btf.member("page", "_refcount.counter") == Member(416, 4, None, ())
    assert btf.member("page", "grid") == Member(448, 24, None, (2, 3))
    found = btf.member("page", "_refcount")
    assert found is not None and found.offset == 52


def test_bit_fields_flexible_arrays_and_pointers() -> None:
    writer = Writer()
    int_ = writer.int("int", 4)
    writer.struct("bits", 4, ("low", int_, 3 << 24 | 0), ("high", int_, 5 << 24 | 3), ("whole", int_, 32), flag=True)
    writer.struct("tail", 8, ("next", writer.add(PTR, "", 0), 0), ("data", writer.array(int_, 0), 64))
    btf = Btf(writer.blob())
    high = btf.member("bits", "high")
    assert high == Member(3, 4, 5, ()) and btf.member("bits", "whole") == Member(32, 4, None, ())
    with pytest.raises(ParseError, match="a bit field has no offset in bytes"):
        _ = high.offset
    assert btf.member("tail", "next") == Member(0, 8, None, ())
    assert btf.member("tail", "data") == Member(64, 0, None, (0,))


def test_enums_are_found_by_any_of_their_names() -> None:
    writer = Writer()
    writer.enum("", ("FIRST_BIT", 0), ("SECOND_BIT", 1), ("LAST_BIT", 2))
    writer.enum("signed", ("MINUS", -1), ("PLUS", 1), flag=True)
    writer.enum("large", ("HUGE", 1 << 63), ("ONE", 1), kind=ENUM64)
    writer.enum("deep", ("BELOW", -(1 << 62)), kind=ENUM64, flag=True)
    btf = Btf(writer.blob())
    assert btf.enumerators("SECOND_BIT") == {"FIRST_BIT": 0, "SECOND_BIT": 1, "LAST_BIT": 2}
    assert btf.enumerators("LAST_BIT") == btf.enumerators("FIRST_BIT")
    assert btf.enumerators("PLUS") == {"MINUS": -1, "PLUS": 1}
    assert btf.enumerators("HUGE") == {"HUGE": 1 << 63, "ONE": 1}
    assert btf.enumerators("BELOW") == {"BELOW": -(1 << 62)}


def test_a_value_that_looks_like_a_name_is_none() -> None:
    writer = Writer()
    number = writer.int()
    at = writer.name("VALUE")
    writer.enum("", ("OTHER", at))
    writer.struct("s", 8, ("VALUE", number, 0))
    assert Btf(writer.blob()).enumerators("VALUE") is None


def test_the_tail_of_a_string_may_be_a_name() -> None:
    writer = Writer()
    number = writer.int()
    at = writer.name("my_page")
    writer.types.append(struct.pack("<6I", at + 3, STRUCT << 24 | 1, 8, at + 3, number, 0))
    btf = Btf(writer.blob())
    assert btf.size("page") == 8 and btf.member("page", "page") == Member(0, 8, None, ())
    assert btf.size("my_page") is None


def test_twins_must_agree() -> None:
    writer = Writer()
    number = writer.int()
    for offset in (0, 0, 64):
        writer.struct("twin", 16, ("same", number, 8), ("moved", number, offset))
    for value in (1, 2):
        writer.enum("", ("TWICE", value))
    btf = Btf(writer.blob())
    assert btf.size("twin") == 16 and btf.member("twin", "same") == Member(8, 8, None, ())
    with pytest.raises(ParseError, match=r"defined several times, and differently: 'twin\.moved'"):
        btf.member("twin", "moved")
    with pytest.raises(ParseError, match="defined several times, and differently: 'TWICE'"):
        btf.enumerators("TWICE")


def endless_typedef(writer: Writer) -> None:
    writer.struct("loop", 8, ("m", len(writer.types) + 2, 0))
    writer.add(TYPEDEF, "t", len(writer.types) + 1)


def endless_array(writer: Writer) -> None:
    writer.struct("loop", 8, ("m", len(writer.types) + 2, 0))
    writer.array(len(writer.types) + 1, 2)


def endless_anonymous(writer: Writer) -> None:
    writer.struct("loop", 8, ("", len(writer.types) + 1, 0))


def no_size(writer: Writer) -> None:
    writer.struct("loop", 8, ("m", writer.add(FWD, "f"), 0))


def of_void(writer: Writer) -> None:
    writer.struct("loop", 8, ("m", 0, 0))


def no_type(writer: Writer) -> None:
    writer.struct("loop", 8, ("m", 99, 0))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (endless_typedef, "typedefs without end"),
        (endless_array, "a type without a size"),
        (endless_anonymous, "anonymous structs without end"),
        (no_size, "a type without a size"),
        (of_void, "a type without a size"),
        (no_type, "there are only 1 types: '99'"),
    ],
)
def test_types_that_lead_nowhere(make: object, why: str) -> None:
    writer = Writer()
    assert callable(make)
    make(writer)
    with pytest.raises(ParseError, match=why):
        Btf(writer.blob()).member("loop", "m")


def test_a_name_outside_of_the_strings() -> None:
    writer = Writer()
    number = writer.int()
    writer.struct("s", 8, ("m", number, 0))
    writer.types[-1] = writer.types[-1][:12] + struct.pack("<I", 5000) + writer.types[-1][16:]
    with pytest.raises(ParseError, match="a name outside of the strings"):
        Btf(writer.blob()).member("s", "m")


def test_broken_blobs_are_refused() -> None:
    whole = one_of_each().blob()
    for data in (b"", whole[:23], b"\x9f\xeb\x02" + whole[3:], whole[:-1], whole[:4] + b"\x14" + whole[5:]):
        with pytest.raises(ParseError, match="byte 0: not a BTF header"):
            Btf(data)
    with pytest.raises(ParseError, match="the strings do not begin and end with a NUL"):
        Btf(whole[:-1] + b"x")
    writer = one_of_each()
    writer.types.append(struct.pack("<3I", 0, 31 << 24, 0))
    with pytest.raises(ParseError, match="unknown kind of type: 31: 'type 21'"):
        Btf(writer.blob())
    writer.types[-1] = struct.pack("<3I", 0, STRUCT << 24 | 2, 0)
    with pytest.raises(ParseError, match="the types are cut off"):
        Btf(writer.blob())
    writer.types[-1] = struct.pack("<I", 0)
    with pytest.raises(ParseError, match="unknown kind of type: 0"):
        Btf(writer.blob())


def test_the_blob_is_found_in_an_image() -> None:
    blob = one_of_each().blob()
    decoys = b"\x9f\xeb\x01\x00" + b"\x18\0\0\0" + b"\xff" * 16 + b"\x9f\xeb\x01\x00\x01\x00\x01\x00" * 3
    empty = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, 1) + b"\0"
    assert find_btf(bytes(100) + decoys + empty + bytes(7) + blob + decoys) == blob
    assert find_btf(decoys + empty + bytes(100)) is None
    assert find_btf(b"") is None
    unended = blob[:-1] + b"x"
    assert find_btf(unended) is None and find_btf(unended + blob) == blob
    overlapping = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 64, 32, 64) + bytes(128)
    assert find_btf(overlapping) is None


@given(st.data())
def test_no_damage_does_worse_than_an_error(data: st.DataObject) -> None:
    blob = bytearray(one_of_each().blob())
    for _ in range(data.draw(st.integers(1, 8))):
        blob[data.draw(st.integers(24, len(blob) - 1))] = data.draw(st.integers(0, 255))
    try:
        btf = Btf(bytes(blob))
        for name in ("s", "u", "last"):
            btf.size(name)
            btf.member(name, "a")
            btf.member(name, "second.third")
        btf.enumerators("E1")
        btf.enumerators("B0")
    except MemhpError as error:
        assert isinstance(error, ParseError)


@pytest.mark.parametrize(("arch", "zones", "places"), [("arm64", 5, 81), ("riscv64", 4, 17)])
def test_debians_kernels(arch: str, zones: int, places: int) -> None:
    btf = Btf((FIXTURES / f"sparse-{arch}" / "debian.btf").read_bytes())
    assert (btf.size("mem_section"), btf.size("mem_section_usage"), btf.size("page")) == (32, 24, 64)
    assert btf.member("mem_section", "usage") == Member(64, 8, None, ())
    assert btf.member("mem_section_usage", "subsection_map") == Member(128, 8, None, (1,))
    assert btf.member("page", "_refcount") == Member(416, 4, None, ())
    assert btf.member("page", "compound_head") == Member(64, 8, None, ())
    assert btf.member("zonelist", "_zonerefs") == Member(0, places * 16, None, (places,))
    bits = btf.enumerators("SECTION_MARKED_PRESENT_BIT")
    assert bits is not None and bits["SECTION_TAINT_ZONE_DEVICE_BIT"] == 4 and bits["SECTION_MAP_LAST_BIT"] == 5
    kinds = btf.enumerators("ZONE_MOVABLE")
    assert kinds is not None and kinds["__MAX_NR_ZONES"] == zones
