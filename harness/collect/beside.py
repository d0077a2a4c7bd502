# SPDX-License-Identifier: GPL-2.0-or-later
"""What lies beside a kernel's Image: its symbols, for a kernel whose own table is not enough, and its types.

System.map and vmlinux have the addresses that the kernel was linked for; it may run elsewhere (KASLR), but all of its
symbols are moved by the same number of bytes. They are of another kernel unless those in vmcoreinfo agree on it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from harness.bounded import open_regular, read_file
from harness.elfheader import SHT_SYMTAB, read_section, read_sections
from harness.errors import ParseError
from harness.kmem.btf import MAX_BLOB, Btf, find_btf
from harness.kmem.lookup import KernelReader, find_symbols
from harness.kmem.structs import checked_types
from harness.qemu.machine_spec import LAYOUTS, MachineSpec
from harness.state import NotObserved
from harness.units import TOP

MAP, VMLINUX = "System.map", "vmlinux"
#: a variable of every kernel: without CONFIG_KALLSYMS_ALL, the table in its memory has functions alone
VARIABLE = "init_task"
#: bytes; the map of a kernel with everything built in has 30 MB, its table of symbols and their names 60 MB each
_MAX_MAP, _MAX_TABLE = 128 << 20, 512 << 20
_LINE = re.compile(rb"([0-9a-f]{1,16}) [A-Za-z?] (\S+)", re.ASCII)
_TOLD = re.compile(r"SYMBOL\((\w+)\)", re.ASCII)
_ADDRESS = re.compile(r"[0-9a-f]{1,16}", re.ASCII)
#: pointers in vmcoreinfo, not the addresses of variables (VMCOREINFO_SYMBOL_ARRAY, kernel/vmcore_info.c)
_POINTERS = frozenset({"mem_section", "vmemmap"})
# Elf64_Sym of include/uapi/linux/elf.h
_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
_STT_FUNC, _SHN_LORESERVE = 2, 0xFF00

#: the addresses of each name that occurs, in ascending order: static symbols may share a name
Addresses = Mapping[str, list[int]]


def find_all_symbols(
    spec: MachineSpec, reader: KernelReader, note: Mapping[str, str], names: Collection[str]
) -> dict[str, int] | NotObserved:
    """As ``find_symbols``; where the kernel's own table lacks variables, those that lie beside its Image."""
    found = find_symbols(reader, note, names)
    if not isinstance(found, NotObserved) and VARIABLE in found:
        return found
    beside = _file_symbols(spec, note, names)
    if not isinstance(beside, NotObserved):
        return beside if isinstance(found, NotObserved) else beside | found
    own = found.reason if isinstance(found, NotObserved) else "the kernel's symbols are functions (no KALLSYMS_ALL)"
    return NotObserved(f"{own}; {beside.reason}")


def _file_symbols(spec: MachineSpec, note: Mapping[str, str], names: Collection[str]) -> dict[str, int] | NotObserved:
    """The addresses of those ``names`` that the first file has which fits the kernel that wrote ``note``."""
    release, lacks = note.get("OSRELEASE", ""), list[str]()
    maps = (MAP, f"{MAP}-{release}") if "/" not in release else (MAP,)
    readers = [(path, map_symbols) for path in spec.beside(*maps)]
    readers += [(path, elf_symbols) for path in spec.beside(VMLINUX)]
    for path, read in readers:
        found = _fitting(path, read, note, names)
        if not isinstance(found, NotObserved):
            return found
        lacks.append(found.reason)
    return NotObserved("; ".join(lacks) or f"neither {MAP} nor {VMLINUX} lies beside the Image")


def _fitting(
    path: Path, read: Callable[[Path, Collection[str]], Addresses], note: Mapping[str, str], names: Collection[str]
) -> dict[str, int] | NotObserved:
    told = {
        match[1]: int(text, 16)
        for key, text in note.items()
        if (match := _TOLD.fullmatch(key)) is not None and match[1] not in _POINTERS and _ADDRESS.fullmatch(text)
    }
    try:
        places = read(path, {*names, *told})
    except (OSError, ValueError) as error:
        return _unreadable(path, error)
    moved = {name: {(told[name] - at) % TOP for at in places[name]} for name in told if name in places}
    if len(moved) < 2:
        return NotObserved(f"{path} has too few of the symbols in the kernel's vmcoreinfo to tell whether it fits")
    by = set.intersection(*moved.values())
    if len(by) != 1:
        shown = ", ".join(f"{name} by {min(offsets):#x}" for name, offsets in moved.items())
        return NotObserved(f"the symbols in {path} do not fit the Image: they are moved differently ({shown})")
    [offset] = by
    return {name: (places[name][0] + offset) % TOP for name in names if name in places}


def map_symbols(path: Path, wanted: Collection[str]) -> Addresses:
    """The addresses of ``wanted`` in a System.map (scripts/mksysmap). Raises OSError, ValueError for another text."""
    names, found = {name.encode(): name for name in wanted}, dict[str, list[int]]()
    for number, row in enumerate(read_file(path, _MAX_MAP).splitlines(), 1):
        match = _LINE.fullmatch(row)
        if match is None:
            raise ValueError(f"line {number} is none of a {MAP}: {row[:60].decode(errors='replace')!r}")
        if match[2] in names:
            found.setdefault(names[match[2]], []).append(int(match[1], 16))
    return {name: sorted(places) for name, places in found.items()}


def elf_symbols(path: Path, wanted: Collection[str]) -> Addresses:
    """The addresses of ``wanted`` in a vmlinux's table of symbols. Raises OSError, ValueError for another file."""
    with open_regular(path) as file:
        sections = read_sections(file)
        table = next((section for section in sections if section.kind == SHT_SYMTAB), None)
        if table is None or table.link >= len(sections):
            raise ValueError("it has no table of symbols")
        texts = read_section(file, sections[table.link], _MAX_TABLE)
        rows = np.frombuffer(read_section(file, table, _MAX_TABLE), _SYMBOL)
    rows = rows[(rows["section"] > 0) & (rows["section"] < _SHN_LORESERVE) & (rows["info"] & 15 <= _STT_FUNC)]
    found = {}
    for name in wanted:
        values = rows["value"][np.isin(rows["name"], list(_starts(texts, name.encode() + b"\0")))]
        if len(values):
            found[name] = sorted(values.tolist())
    return found


def _starts(texts: bytes, text: bytes) -> Iterable[int]:
    """Every place of ``text``: the tail of a longer one serves as well."""
    at = texts.find(text)
    while at >= 0:
        yield at
        at = texts.find(text, at + 1)


def find_types(spec: MachineSpec, image: Btf | None, note: Mapping[str, str]) -> Btf | NotObserved:
    """The layouts of the kernel's types: those in its ``image``, else those beside it, in LAYOUTS or in a vmlinux."""
    try:
        types = _file_types(spec) if image is None else image
        return types if isinstance(types, NotObserved) else checked_types(types, note)
    except ParseError as error:
        return NotObserved(error.message)


def _file_types(spec: MachineSpec) -> Btf | NotObserved:
    lack = f"the kernel's image has no BTF, and there is no {LAYOUTS} beside it"
    for path in spec.beside(LAYOUTS, VMLINUX):
        try:
            blob = find_btf(read_file(path, MAX_BLOB) if path.name == LAYOUTS else _elf_types(path))
        except (OSError, ValueError) as error:
            return _unreadable(path, error)
        if blob is not None:
            return Btf(blob)
        lack = f"{path} holds no BTF"
    return NotObserved(lack)


def _elf_types(path: Path) -> bytes:
    with open_regular(path) as file:
        section = next((section for section in read_sections(file) if section.name == ".BTF"), None)
        return b"" if section is None else read_section(file, section, MAX_BLOB)


def _unreadable(path: Path, error: OSError | ValueError) -> NotObserved:
    why = error.strerror if isinstance(error, OSError) else error
    return NotObserved(f"{path} cannot be read: {why}")
