# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import ast
from pathlib import Path

import pytest

import harness
from harness.errors import InfraError
from harness.kmem.edit import MemoryEditor
from harness.kmem.physical_memory import OutsideMemory, PhysicalMemory, Region
from harness.units import AddrRange


def region(directory: Path, start: int, content: bytes, *, offset: int = 0) -> Region:
    path = directory / f"ram-{start:x}"
    path.write_bytes(bytes(offset) + content)
    return Region(AddrRange.sized(start, len(content)), path, offset)


@pytest.fixture
def places(tmp_path: Path) -> list[Region]:
    return [region(tmp_path, 0x1000, bytes(range(256)) * 16), region(tmp_path, 0x8000, b"high" * 64, offset=0x100)]


def content(places: list[Region]) -> list[bytes]:
    return [place.path.read_bytes() for place in places]


def test_what_is_written_is_there_and_undone_byte_for_byte(places: list[Region]) -> None:
    before = content(places)
    with PhysicalMemory(places) as memory, MemoryEditor(places) as editor:
        with editor.undone():
            editor.write_word(0x1008, 0x1122334455667788)
            editor.write(0x8003, b"changed")
            assert editor.read_word(0x1008) == 0x1122334455667788
            assert memory.read(0x1008, 8) == bytes.fromhex("8877665544332211")
            assert memory.read(0x8000, 12) == b"higchangedgh"
        assert content(places) == before
        assert memory.read(0x8000, 12) == b"highhighhigh"


def test_edits_of_one_place_are_undone_in_reverse(places: list[Region]) -> None:
    before = content(places)
    with MemoryEditor(places) as editor:
        for number in range(5):
            editor.write(0x1010 + number, b"xxxxxxxx")
            editor.write_word(0x1010, number)
        editor.undo()
        assert content(places) == before
        editor.undo()
        assert content(places) == before


def test_leaving_the_block_undoes_whatever_happened(places: list[Region]) -> None:
    before = content(places)
    with pytest.raises(KeyError), MemoryEditor(places) as editor:
        editor.write(0x1000, b"lost")
        raise KeyError("something else")
    assert content(places) == before


def test_closing_undoes_what_is_left(places: list[Region]) -> None:
    before = content(places)
    editor = MemoryEditor(places)
    editor.write(0x1000, b"lost")
    editor.close()
    assert content(places) == before
    with pytest.raises(OutsideMemory):
        editor.read(0x1000, 1)


def test_a_guest_that_writes_meanwhile_is_noticed_and_all_is_put_back(places: list[Region]) -> None:
    before = content(places)
    with MemoryEditor(places) as editor:
        editor.write(0x1000, b"first")
        editor.write(0x1100, b"second")
        with places[0].path.open("r+b") as guest:
            guest.seek(0x100)
            guest.write(b"GUEST")
        with pytest.raises(InfraError, match=r"memory changed where it was edited: 00001100-00001105") as caught:
            editor.undo()
        assert caught.value.hint == "the guest must be paused while its memory is edited"
        assert content(places) == before


@pytest.mark.parametrize(("address", "size"), [(0xFFC, 8), (0x1FFC, 8), (0x8100, 1), (0x9000, 8)])
def test_what_is_not_there_cannot_be_written(places: list[Region], address: int, size: int) -> None:
    before = content(places)
    with MemoryEditor(places) as editor:
        with pytest.raises(OutsideMemory, match="the guest has no memory at physical"):
            editor.write(address, bytes(size))
        with pytest.raises(OutsideMemory):
            editor.read(address, size)
    assert content(places) == before


def test_a_file_that_cannot_be_opened_is_named(places: list[Region], tmp_path: Path) -> None:
    missing = Region(AddrRange(0x20000, 0x21000), tmp_path / "missing")
    with pytest.raises(
        InfraError, match=r"cannot write to the guest's memory 00020000-00020fff: No such file.*missing"
    ):
        MemoryEditor([*places, missing])


def test_a_file_that_is_too_short_is_named(places: list[Region]) -> None:
    short = Region(AddrRange(0x20000, 0x40000), places[0].path)
    with pytest.raises(InfraError, match=r"ram-1000 is too short for the guest's memory 00020000-0003ffff"):
        MemoryEditor([*places, short])


def test_a_file_that_shrinks_is_noticed(places: list[Region]) -> None:
    with MemoryEditor(places) as editor:
        places[0].path.write_bytes(b"")
        with pytest.raises(OutsideMemory):
            editor.read(0x1000, 8)


def test_nothing_else_in_the_harness_opens_memory_for_writing() -> None:
    root = Path(harness.__file__).parent
    writers = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("O_RDWR", "pwrite", "PROT_WRITE")
    }
    # qemu/saved_machine.py fills the memory of machines that are not running yet, shell/keeper.py opens /dev/null,
    # scenarios/memorypromises.py writes to its file in the cache.
    others = {"qemu/saved_machine.py", "scenarios/memorypromises.py", "shell/keeper.py"}
    assert writers == {"kmem/edit.py", *others}
