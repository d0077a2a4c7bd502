# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest or a kernel image that wants to hurt the host: memory and time are bounded, and the reason is told."""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_limits import bounded
from kmem_walk_oracle import FORMATS, memory_of
from qemu_peer import Peer, session
from test_kmem_table_walk import entry_for, leaf_bits, pointer

import harness.qemu.qmp as qmp_module
from harness.artifacts.image import embedded_config, read_image
from harness.collect.hostside import KERNEL_SOURCES, KernelCopy, kernel_sources
from harness.collect.look import _unpack_config
from harness.deadline import Deadline
from harness.errors import ParseError, QemuError, UsageError
from harness.kmem.btf import find_btf
from harness.kmem.table_walk import copy_tables
from harness.state import NotObserved

MIB = 1 << 20


def test_page_tables_in_a_million_pieces() -> None:
    """Every second entry of 5,632 tables is empty: many runs of one page each."""
    tables, leaves = FORMATS["riscv64-sv39"], 5632
    middle = leaves // 512
    words = np.zeros((1 + middle + leaves, 512), dtype=np.uint64)
    for number in range(middle):
        words[0, number] = pointer(tables, 1 + number)
        words[1 + number] = [pointer(tables, 1 + middle + 512 * number + entry) for entry in range(512)]
    words[1 + middle :, 1::2] = [
        entry_for(tables, 0x8000_0000 + page * 4096, leaf_bits(tables)) for page in range(1, 512, 2)
    ]
    with memory_of(words.reshape(-1)) as memory, bounded(seconds=30, memory=500 * MIB):
        nothing = NotObserved("no sections")
        sources, reasons = kernel_sources(
            KernelCopy(copy_tables(memory, tables), nothing, 0.0, nothing, {}, nothing, ()), memory
        )
    assert sources == {}
    assert set(reasons) == set(KERNEL_SOURCES)
    assert "1057024 runs" in reasons["host_tables"]


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: gzip.compress(data, 1)], ids=["9", "1"])
def test_an_embedded_configuration_of_300_MB(pack: Any) -> None:
    image = b"IKCFG_ST" + pack(bytes(300 * MIB)) + b"IKCFG_ED"
    with bounded(memory=64 * MIB):
        assert embedded_config(image) is None


def test_a_configuration_file_of_300_MB() -> None:
    packed = gzip.compress(bytes(300 * MIB), 1)
    with bounded(memory=64 * MIB), pytest.raises(ParseError, match=r"config.gz.*larger than 4M"):
        _unpack_config(packed)


@pytest.mark.parametrize("how", ["gzip", "xz", "zstd"])
def test_an_image_that_unpacks_to_300_MB(tmp_path: Path, how: str) -> None:
    path, large = tmp_path / "Image", tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(300 * MIB)
    words = {"gzip": ["gzip", "-1c"], "xz": ["xz", "-0c"], "zstd": ["zstd", "-1qc"]}[how]
    if shutil.which(words[0]) is None:
        pytest.skip(f"no {words[0]}")
    with path.open("wb") as file:
        subprocess.run([*words, str(large)], stdout=file, check=True)
    with bounded(seconds=60, memory=700 * MIB), pytest.raises(UsageError, match=r"cannot unpack .*256 ?M"):
        read_image(path)


def test_an_lzma_image_that_wants_a_dictionary_of_3_GB(tmp_path: Path) -> None:
    packed = lzma.compress(bytes(MIB), format=lzma.FORMAT_ALONE)
    path = tmp_path / "Image"
    path.write_bytes(packed[:1] + struct.pack("<I", 3 << 30) + packed[5:])
    with bounded(memory=700 * MIB), pytest.raises(UsageError, match=r"cannot unpack .*[Mm]emory usage limit"):
        read_image(path)


def test_a_kernel_that_is_a_sparse_terabyte(tmp_path: Path) -> None:
    path = tmp_path / "Image"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with bounded(), pytest.raises(UsageError, match="larger than"):
        read_image(path)


def test_the_search_for_btf_is_linear() -> None:
    strings = 4 * MIB
    head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 8, 8, strings) + bytes(40)
    image = head * 60_000 + b"\1" * (2 * strings)
    with bounded(seconds=5):
        assert find_btf(image) is None


def test_a_flood_of_events_ends_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp_module, "MAX_EVENTS", 1 << 20)

    def flood(peer: Peer, arguments: dict[str, Any]) -> Any:
        for number in range(20_000):
            peer.event("ACPI_DEVICE_OST", info={"device": "dimm0", "source": number, "status": 0})
        return {}

    peer = Peer({"flood": flood})
    with session(peer, tmp_path, exit_report=lambda: "") as qmp:
        qmp.execute("flood", deadline=Deadline(60))
        with pytest.raises(QemuError, match="more than 1M of events"):
            qmp.wait_event(lambda event: False, since=0, deadline=Deadline(60), awaited="nothing")
        with pytest.raises(QemuError, match="more than 1M of events"):
            qmp.execute("query-status", deadline=Deadline(60))
    peer.close()
    assert (tmp_path / "qmp.jsonl").stat().st_size < 2 << 20
