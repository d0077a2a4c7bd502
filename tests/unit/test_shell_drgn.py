# SPDX-License-Identifier: GPL-2.0-or-later
"""drgn at the prompt: its input, and reading guest memory by physical and virtual addresses."""

from __future__ import annotations

import numpy as np
import pytest
from kmem_walk_oracle import BASE, FORMATS, memory_of

from harness.arch import arch_named
from harness.errors import UnsupportedError
from harness.shell import drgn as room


def test_drgn_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"drgn is not installed\n  hint: pip install -e '\.\[drgn\]'"):
        room.require_drgn()


@pytest.mark.parametrize(
    ("name", "index", "entry", "start"),
    [
        ("arm64-4k-39", 0, BASE | 0x701, 0xFFFF_FF80_0000_0000),
        ("riscv64-sv39", 256, BASE >> 2 | 0xC7, 0xFFFF_FFC0_0000_0000),
    ],
)
def test_drgn_reads_memory_through_us(name: str, index: int, entry: int, start: int) -> None:
    drgn = pytest.importorskip("drgn")
    vmcoreinfo = "OSRELEASE=6.12.0\nPAGESIZE=4096\nKERNELOFFSET=0\nSYMBOL(swapper_pg_dir)=ffffffff81000000\n"
    words = np.zeros(3 * 512, dtype=np.uint64)
    words[index], words[1023], words[1024] = entry, 0x6F6D_656D << 32, 0x7972
    with memory_of(words) as memory:
        program = room.open_program(memory, vmcoreinfo, arch_named(name.partition("-")[0]), FORMATS[name])
        assert program.read(BASE + 0x1FFC, 6, physical=True) == b"memory"
        assert program.read(start + 0x1FFC, 6) == b"memory"
        with pytest.raises(drgn.FaultError, match="not mapped by the kernel"):
            program.read(start + (1 << 30) - 2, 4)
        with pytest.raises(drgn.FaultError, match="no guest memory at this address"):
            program.read(start + 0x2FFE, 4)
