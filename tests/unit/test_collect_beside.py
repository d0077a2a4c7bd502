# SPDX-License-Identifier: GPL-2.0-or-later
"""Symbols and types that lie beside an Image: found where a build leaves them, moved as KASLR does, of this kernel."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kmem_count_guest import CountGuest
from qemu_peer import spec
from test_kmem_btf import Writer

from harness.collect.beside import elf_symbols, find_all_symbols, find_types, map_symbols
from harness.kmem.btf import Btf
from harness.kmem.lookup import find_symbols
from harness.kmem.tablecount import SYMBOLS
from harness.state import NotObserved
from harness.units import TOP

#: by how much KASLR moved the kernel
MOVED = 0x20_0000
#: symbols that vmcoreinfo has, too
TOLD = ("init_mm", "vm_node_stat", "swapper_pg_dir")
NONE = "neither System.map nor vmlinux lies beside the Image"
HIDDEN = "vmcoreinfo has no SYMBOL(kallsyms_names): no CONFIG_KALLSYMS, or older than v6.0"

Rows = Sequence[tuple[str, int]]
ROWS = st.lists(
    st.tuples(st.text(st.characters(codec="ascii", categories=("L", "Nd")), min_size=1), st.integers(0, TOP - 1))
)


def linked(symbols: Mapping[str, int]) -> Rows:
    """The symbols as they were linked, with another static one of the same name above one of them."""
    rows = [("_text", 0xFFFF_8000_0000_0000), *((name, at - MOVED) for name, at in symbols.items())]
    return [*rows, ("init_task", symbols["init_task"] - MOVED + 8)]


def system_map(rows: Rows) -> bytes:
    return b"".join(f"{at:016x} d {name}\n".encode() for name, at in sorted(rows, key=lambda row: row[1]))


def vmlinux(rows: Rows = (), types: bytes = b"") -> bytes:
    """An ELF file with a table of symbols, one of them undefined and one absolute, and perhaps .BTF."""
    names = b"\0x" + b"\0".join(name.encode() for name, _ in rows) + b"\0"
    starts = [2 + sum(len(name) + 1 for name, _ in rows[:number]) for number in range(len(rows))]
    entry = struct.Struct("<IBBHQQ")
    symbols = [bytes(24), *(entry.pack(start, 1, 0, 1, at, 8) for start, (_, at) in zip(starts, rows, strict=True))]
    symbols += [entry.pack(start, 1, 0, number, 7, 0) for start, number in zip(starts[:2], (0, 0xFFF1), strict=False)]
    sections = [("", 0, b""), (".symtab", 2, b"".join(symbols)), (".strtab", 3, names), (".BTF", 1, types)]
    texts = b"\0".join(name.encode() for name, *_ in sections) + b"\0.shstrtab\0"
    sections.append((".shstrtab", 3, texts))
    body, headers = b"", b""
    for name, kind, data in sections:
        at = texts.find(name.encode() + b"\0")
        headers += struct.pack("<IIQQQQIIQQ", at, kind, 0, 0, 64 + len(body), len(data), 2, 0, 1, 0)
        body += data
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    count = len(sections)
    head = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 183, 1, 0, 0, 64 + len(body), 0, 64, 56, 0, 64, count, count - 1)
    return head + body + headers


class Place:
    """A guest whose kernel hides its own table of symbols, and the folder of its Image."""

    def __init__(self, folder: Path, image: str = "Image", hide: bool = True) -> None:
        self.guest = CountGuest(folder / "memory")
        told = {f"SYMBOL({name})": f"{self.guest.symbols[name]:x}" for name in TOLD}
        self.note = {**self.guest.note, **told, "OSRELEASE": "5.15.0-mine", "SYMBOL(mem_section)": "1"}
        if hide:
            self.note = {key: value for key, value in self.note.items() if "kallsyms" not in key}
        self.image = folder / image
        self.image.parent.mkdir(parents=True, exist_ok=True)

    def find(self) -> dict[str, int] | NotObserved:
        with self.guest.reader() as reader:
            return find_all_symbols(spec(kernel=self.image), reader, self.note, SYMBOLS)

    def own(self) -> dict[str, int] | NotObserved:
        """What the kernel's own table says."""
        with self.guest.reader() as reader:
            return find_symbols(reader, self.guest.note, SYMBOLS)


def lack(found: object) -> str:
    assert isinstance(found, NotObserved)
    return found.reason


@pytest.mark.parametrize(
    ("image", "beside"),
    [
        ("Image", "System.map"),
        ("boot/vmlinuz-5.15.0-mine", "boot/System.map-5.15.0-mine"),
        ("Image", "vmlinux"),
        ("linux/arch/arm64/boot/Image", "linux/System.map"),
        ("linux/arch/arm64/boot/Image.gz", "linux/vmlinux"),
    ],
)
def test_symbols_are_found_where_a_build_leaves_them(tmp_path: Path, image: str, beside: str) -> None:
    place = Place(tmp_path, image)
    assert lack(place.find()) == f"{HIDDEN}; {NONE}"
    write = vmlinux if beside.endswith("vmlinux") else system_map
    (tmp_path / beside).write_bytes(write(linked(place.guest.symbols)))
    found = place.find()
    assert found == place.own() and "init_task" in found and "idle_threads" in found


def test_a_kernel_that_has_them_itself_is_asked_first(tmp_path: Path) -> None:
    place = Place(tmp_path, hide=False)
    (tmp_path / "System.map").write_bytes(b"rubbish")
    assert place.find() == place.own() != {}


def test_a_kernel_whose_table_has_functions_alone_is_completed(tmp_path: Path) -> None:
    place = Place(tmp_path, hide=False)
    everything, own = dict(place.guest.symbols), place.own()
    place.guest.symbols = {"init_mm": everything["init_mm"]}
    place.note |= place.guest.make_note()
    functions = "the kernel's symbols are functions (no KALLSYMS_ALL)"
    assert lack(place.find()) == f"{functions}; {NONE}"
    (tmp_path / "System.map").write_bytes(system_map(linked(everything)))
    assert place.find() == own


def test_symbols_of_another_kernel_are_not_used(tmp_path: Path) -> None:
    place = Place(tmp_path)
    rows = linked(place.guest.symbols)
    other = [(name, at + 64 * (name == "vm_node_stat")) for name, at in rows]
    (tmp_path / "System.map").write_bytes(system_map(other))
    why = (
        f"the symbols in {tmp_path}/System.map do not fit the Image: they are moved differently "
        "(init_mm by 0x200000, vm_node_stat by 0x1fffc0, swapper_pg_dir by 0x200000)"
    )
    assert lack(place.find()) == f"{HIDDEN}; {why}"
    (tmp_path / "vmlinux").write_bytes(vmlinux(rows))
    assert place.find() == place.own(), "the next file fits"


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        (
            "System.map",
            # /boot/System.map-6.1.0-50-arm64 of Debian
            b"ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n",
            "cannot be read: line 1 is none of a System.map: 'ffffffffffffffff B The real System.map is in",
        ),
        ("System.map", b"", "has too few of the symbols in the kernel's vmcoreinfo to tell whether it fits"),
        ("System.map", b"10 d init_mm\n", "has too few of the symbols in the kernel's vmcoreinfo"),
        ("System.map-5.15.0-mine", b"\xff\0\n", "cannot be read: line 1 is none of a System.map: '\ufffd\\x00'"),
        ("vmlinux", b"", "cannot be read: not a little-endian 64-bit ELF file"),
        ("vmlinux", vmlinux()[:200], "cannot be read: a part lies beyond its end"),
        ("vmlinux", vmlinux().replace(b"\2\0\0\0", b"\1\0\0\0"), "cannot be read: it has no table of symbols"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, data: bytes, why: str) -> None:
    place = Place(tmp_path)
    (tmp_path / name).write_bytes(data)
    assert lack(place.find()).startswith(f"{HIDDEN}; {tmp_path / name} {why}")


def test_a_folder_and_the_name_that_a_guest_gives_are_no_files(tmp_path: Path) -> None:
    place = Place(tmp_path, "boot/Image")
    (tmp_path / "boot" / "vmlinux").mkdir()
    place.note["OSRELEASE"] = "x/../../../memory"
    (tmp_path / "boot" / "System.map-x").mkdir()
    assert lack(place.find()) == f"{HIDDEN}; {NONE}"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_both_files_are_read_as_they_were_written(tmp_path: Path, rows: Rows) -> None:
    wanted: dict[str, list[int]] = {}
    for name, at in sorted(rows):
        wanted.setdefault(name, []).append(at)
    (tmp_path / "map").write_bytes(system_map(rows))
    (tmp_path / "elf").write_bytes(vmlinux(rows))
    names = {*wanted, "no_such_name"}
    assert map_symbols(tmp_path / "map", names) == wanted == elf_symbols(tmp_path / "elf", names)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_broken_files_are_value_errors(tmp_path: Path, data: st.DataObject) -> None:
    rows = [("init_mm", 0x1000), ("init_task", 0x2000)]
    broken = bytearray(data.draw(st.sampled_from([system_map(rows), vmlinux(rows)])))
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "file"
    path.write_bytes(bytes(broken[: data.draw(st.integers(0, len(broken)))]))
    for read in (map_symbols, elf_symbols):
        try:
            found = read(path, ["init_mm"])
        except ValueError:
            continue
        assert found.keys() <= {"init_mm"}


def types(size: int = 64) -> bytes:
    btf = Writer()
    btf.struct("page", size, ("flags", btf.int(), 0))
    return btf.blob()


def test_types_are_found_beside_the_image(tmp_path: Path) -> None:
    machine, note = spec(kernel=tmp_path / "Image"), {"SIZE(page)": "64"}
    none = "the kernel's image has no BTF, and there is no layouts.btf beside it"
    assert lack(find_types(machine, None, note)) == none
    (tmp_path / "vmlinux").write_bytes(vmlinux())
    assert lack(find_types(machine, None, note)) == f"{tmp_path}/vmlinux holds no BTF"
    (tmp_path / "vmlinux").write_bytes(vmlinux(types=types()))
    found = find_types(machine, None, note)
    assert isinstance(found, Btf) and found.size("page") == 64
    (tmp_path / "layouts.btf").write_bytes(types(56))
    assert re.match("the BTF is not that of the running kernel", lack(find_types(machine, None, note)))
    own = Btf(types())
    assert find_types(machine, own, note) is own
    (tmp_path / "layouts.btf").unlink()
    (tmp_path / "vmlinux").write_bytes(b"rubbish")
    assert (
        lack(find_types(machine, None, note))
        == f"{tmp_path}/vmlinux cannot be read: not a little-endian 64-bit ELF file"
    )
