# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import InfraError
from harness.kmem.physical_memory import OutsideMemory, PhysicalMemory, Region
from harness.units import KIB, AddrRange


def region(directory: Path, start: int, content: bytes, *, name: str = "ram", offset: int = 0) -> Region:
    path = directory / f"{name}-{start:x}"
    path.write_bytes(bytes(offset) + content)
    return Region(AddrRange.sized(start, len(content)), path, offset)


def words(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


@pytest.fixture(scope="module")
def pattern() -> bytes:
    return np.random.default_rng(1).bytes(64 * KIB)


def test_it_reads_what_the_files_hold_also_across_regions(tmp_path: Path, pattern: bytes) -> None:
    low, high = pattern[: 16 * KIB], pattern[16 * KIB :]
    with PhysicalMemory([region(tmp_path, 0x5000, high), region(tmp_path, 0x1000, low)]) as memory:
        assert memory.ranges == (AddrRange(0x1000, 0x5000), AddrRange(0x5000, 0x11000))
        assert memory.read(0x1000, len(pattern)) == pattern
        assert memory.read(0x4FF0, 0x20) == pattern[0x3FF0:0x4010]
        assert memory.read(0x1003, 5) == pattern[3:8]
        assert memory.read(0x1000, 0) == b""


@pytest.mark.parametrize(("address", "size"), [(0xFF8, 8), (0x10FF8, 16), (0x11000, 1), (1 << 63, 8)])
def test_what_is_not_there_is_named(tmp_path: Path, pattern: bytes, address: int, size: int) -> None:
    with (
        PhysicalMemory([region(tmp_path, 0x1000, pattern)]) as memory,
        pytest.raises(OutsideMemory, match=r"no memory at physical [0-9a-f]+-") as caught,
    ):
        memory.read(address, size)
    assert caught.value.address in (address, 0x11000)


@given(data=st.data())
def test_gathering_is_reading_one_after_the_other(
    data: st.DataObject, pattern: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    size = 8 << data.draw(st.integers(0, 9))
    starts = data.draw(st.permutations([0x1_0000, 0x4000_0200, 0x5_0000_0000]))
    directory = tmp_path_factory.mktemp("gather")
    regions = []
    for number, start in enumerate(starts):
        offset = data.draw(st.sampled_from([0, 8, 4096, 4104]))
        regions.append(region(directory, start, pattern[number * 8192 : (number + 2) * 8192], offset=offset))
    with PhysicalMemory(regions) as memory:
        places = [at for one in regions for at in range(-(-one.range.start // size) * size, one.range.end - size, size)]
        chosen = data.draw(st.lists(st.sampled_from(places), max_size=20)) if places else []
        found = memory.gather(words(*chosen), size)
        assert found.shape == (len(chosen), size // 8) and found.dtype == np.uint64
        assert found.tobytes() == b"".join(memory.read(at, size) for at in chosen)


def test_gather_refuses_what_it_cannot_do(tmp_path: Path, pattern: bytes) -> None:
    with PhysicalMemory([region(tmp_path, 0x1000, pattern), region(tmp_path, 0x20000, pattern)]) as memory:
        for size in (0, 4, 12):
            with pytest.raises(ValueError, match="not a power of two from 8 on"):
                memory.gather(words(0x1000), size)
        with pytest.raises(ValueError, match="not every address is a multiple of 16"):
            memory.gather(words(0x1000, 0x1008), 16)
        with pytest.raises(OutsideMemory, match="no memory at physical 0001f000-0001ffff"):
            memory.gather(words(0x1000, 0x1F000, 0x20000), 4096)
        with pytest.raises(OutsideMemory):
            memory.gather(words(0x8000_0000_0000_0000), 8)
        assert memory.gather(words(), 64).shape == (0, 8)


def test_holds_counts_whole_pieces_only(tmp_path: Path, pattern: bytes) -> None:
    with PhysicalMemory([region(tmp_path, 0x1000, pattern[:4096]), region(tmp_path, 0x2000, pattern[:8])]) as memory:
        places = words(0xFF8, 0x1000, 0x1FF8, 0x2000, 0x2008, (1 << 64) - 8)
        assert memory.holds(places, 8).tolist() == [False, True, True, True, False, False]
        assert memory.holds(words(0x1000, 0x1800, 0x2000), 4096).tolist() == [True, False, False]


def test_what_the_guest_writes_later_is_seen(tmp_path: Path) -> None:
    one = region(tmp_path, 0, bytes(8192))
    with PhysicalMemory([one]) as memory:
        assert memory.gather(words(4096), 8)[0, 0] == 0
        with one.path.open("r+b") as file:
            os.pwrite(file.fileno(), b"\x2a", 4096)
        assert memory.gather(words(4096), 8)[0, 0] == 42
        assert memory.read(4096, 1) == b"\x2a"


def test_reading_a_hole_leaves_it_a_hole(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with PhysicalMemory([Region(AddrRange(0, 1 << 30), path)]) as memory:
        assert memory.read(1 << 29, 1 << 20) == bytes(1 << 20)
    assert path.stat().st_blocks == 0


def test_what_cannot_be_opened_is_told(tmp_path: Path, pattern: bytes) -> None:
    one = region(tmp_path, 0x1000, pattern[:4096])
    with pytest.raises(
        InfraError, match="two regions of guest memory overlap: 00001000-00001fff and 00001800-00001fff"
    ):
        PhysicalMemory([one, Region(AddrRange(0x1800, 0x2000), one.path)])
    with pytest.raises(InfraError, match=r"cannot read the guest's memory 00000000-00000fff from .*: No such file"):
        PhysicalMemory([one, Region(AddrRange(0, 0x1000), tmp_path / "none")])
    with pytest.raises(InfraError, match="is too short for the guest's memory 00001000-00002fff"):
        PhysicalMemory([Region(AddrRange(0x1000, 0x3000), one.path)])
    with pytest.raises(InfraError, match="is too short"):
        PhysicalMemory([Region(one.range, one.path, offset=8)])
    with pytest.raises(InfraError, match="cannot map the guest's memory"):
        PhysicalMemory([Region(AddrRange(0, 8), tmp_path)])
    assert not [fd for fd in os.listdir("/proc/self/fd") if _target(fd).startswith(str(tmp_path))]


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""


def test_closing_lets_go(tmp_path: Path, pattern: bytes) -> None:
    memory = PhysicalMemory([region(tmp_path, 0x1000, pattern), Region(AddrRange(8, 8), tmp_path / "none")])
    kept = memory.gather(words(0x1000), 4096)
    memory.close()
    memory.close()
    assert kept.tobytes() == pattern[:4096] and memory.ranges == ()
    with pytest.raises(OutsideMemory):
        memory.read(0x1000, 8)
    with pytest.raises(OutsideMemory):
        memory.gather(words(0x1000), 8)


def test_what_is_still_the_same_stays_mapped_and_the_rest_is_released(tmp_path: Path, pattern: bytes) -> None:
    ram = region(tmp_path, 0x1000, pattern)
    dimm, other = region(tmp_path, 0x100000, pattern), region(tmp_path, 0x200000, pattern[:4096])
    first = PhysicalMemory([ram, dimm])
    opened = open_files(tmp_path)
    second = PhysicalMemory([ram, other], first)
    assert opened == [ram.path.name, dimm.path.name] and open_files(tmp_path) == [ram.path.name, other.path.name]
    assert second.ranges == (ram.range, other.range) and second.read(0x1000, 64) == pattern[:64]
    assert first.ranges == ()
    second.close_but([ram.range])
    assert second.ranges == (ram.range,) and open_files(tmp_path) == [ram.path.name]
    del second
    assert open_files(tmp_path) == []


def test_another_file_of_the_same_name_is_mapped_anew(tmp_path: Path, pattern: bytes) -> None:
    ram = region(tmp_path, 0x1000, pattern)
    first = PhysicalMemory([ram])
    ram.path.unlink()
    ram.path.write_bytes(pattern[::-1])
    with PhysicalMemory([ram], first) as second:
        assert second.read(0x1000, 64) == pattern[::-1][:64]


def test_a_region_that_cannot_be_mapped_releases_the_others_too(tmp_path: Path, pattern: bytes) -> None:
    ram = region(tmp_path, 0x1000, pattern)
    first = PhysicalMemory([ram])
    with pytest.raises(InfraError, match="cannot read the guest's memory"):
        PhysicalMemory([ram, Region(AddrRange.sized(0x100000, 4096), tmp_path / "gone")], first)
    assert first.ranges == () and open_files(tmp_path) == []


def open_files(directory: Path) -> list[str]:
    links = (os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())
    return sorted({Path(link).name for link in links if link.startswith(str(directory))})
