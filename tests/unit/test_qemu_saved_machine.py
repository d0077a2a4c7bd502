# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a saved machine: only non-zero pages are kept, and all of them are restored."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.deadline import Deadline
from harness.errors import QemuError
from harness.qemu.machine import Machine
from harness.qemu.saved_machine import PAGE, new_memory, pack, unpack
from harness.units import MIB

SIZE = 2 * MIB


@pytest.fixture
def memory() -> Iterator[dict[str, int]]:
    made = new_memory({"ram0": SIZE, "copy": SIZE})
    yield made
    for fd in made.values():
        os.close(fd)


def filled(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


def test_pages_of_zeros_and_holes_are_left_out(memory: dict[str, int], tmp_path: Path) -> None:
    os.pwrite(memory["ram0"], b"a" * PAGE, 0)
    os.pwrite(memory["ram0"], bytes(PAGE), PAGE)
    os.pwrite(memory["ram0"], b"\0" * 5000 + b"b", 4 * PAGE)
    os.pwrite(memory["ram0"], b"c", SIZE - 1)
    pack(memory["ram0"], tmp_path, "ram0")
    kept = json.loads((tmp_path / "ram0.map").read_text())
    assert kept == {"size": SIZE, "runs": [[0, PAGE], [5 * PAGE, 6 * PAGE], [SIZE - PAGE, SIZE]]}
    assert (tmp_path / "ram0.pages").stat().st_size == 3 * PAGE
    unpack(tmp_path, "ram0", memory["copy"])
    assert os.pread(memory["copy"], SIZE, 0) == os.pread(memory["ram0"], SIZE, 0)


def test_reading_and_writing_back_takes_no_more_memory_than_there_was(memory: dict[str, int], tmp_path: Path) -> None:
    os.pwrite(memory["ram0"], b"x", 17 * PAGE)
    pack(memory["ram0"], tmp_path, "ram0")
    unpack(tmp_path, "ram0", memory["copy"])
    assert filled(memory["ram0"]) == filled(memory["copy"]) == PAGE


def test_empty_memory(memory: dict[str, int], tmp_path: Path) -> None:
    pack(memory["ram0"], tmp_path, "ram0")
    assert (tmp_path / "ram0.pages").stat().st_size == 0
    unpack(tmp_path, "ram0", memory["copy"])
    assert filled(memory["copy"]) == 0


@settings(max_examples=25, deadline=None)
@given(pages=st.dictionaries(st.integers(0, SIZE // PAGE - 1), st.binary(min_size=1, max_size=8), max_size=12))
def test_any_memory_comes_back(pages: dict[int, bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("snapshot")
    memory = new_memory({"ram0": SIZE, "copy": SIZE})
    try:
        for number, data in pages.items():
            os.pwrite(memory["ram0"], data, number * PAGE)
        pack(memory["ram0"], folder, "ram0")
        unpack(folder, "ram0", memory["copy"])
        assert os.pread(memory["copy"], SIZE, 0) == os.pread(memory["ram0"], SIZE, 0)
    finally:
        for fd in memory.values():
            os.close(fd)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "ram0.pages").write_bytes(b"x"), "does not match this machine, or is incomplete"),
        (lambda folder: (folder / "ram0.map").write_text('{"size": 4096, "runs": []}'), "does not match this machine"),
        (lambda folder: (folder / "ram0.map").write_text("{}"), "cannot be read: 'size'"),
        (lambda folder: (folder / "ram0.map").write_text("hello"), "cannot be read"),
        (lambda folder: (folder / "ram0.pages").unlink(), "cannot be read"),
    ],
)
def test_what_is_not_whole_is_refused(spoil: Any, message: str, memory: dict[str, int], tmp_path: Path) -> None:
    os.pwrite(memory["ram0"], b"x", 0)
    pack(memory["ram0"], tmp_path, "ram0")
    spoil(tmp_path)
    with pytest.raises(QemuError, match=message):
        unpack(tmp_path, "ram0", memory["copy"])


def test_a_machine_whose_memory_is_qemus_own_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(QemuError, match="QEMU allocated the machine's memory itself") as caught:
        Machine(cast(Any, None), tmp_path).save(tmp_path, Deadline(1))
    assert caught.value.hint == "launch it with own_memory"
