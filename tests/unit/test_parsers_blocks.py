# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory blocks, in any order of their files."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ParseError
from harness.parsers.blocks import parse_blocks
from harness.state import MemoryBlock

FIXTURES = Path(__file__).parent / "fixtures"

GOOD = """\
memory32/state:offline
memory32/phys_index:00000020
memory32/removable:1
memory32/valid_zones:Normal Movable
memory32/node:0
"""


def test_one_block() -> None:
    assert parse_blocks(GOOD) == (MemoryBlock(32, 0x20, "offline", True, ("Normal", "Movable"), (0,)),)


def test_absent_files_are_none_and_links_may_be_many_or_missing() -> None:
    text = "memory2/state:online\nmemory2/phys_index:00000002\nmemory2/node:3\nmemory2/node:1\n"
    assert parse_blocks(text) == (MemoryBlock(2, 2, "online", None, None, (1, 3)),)
    assert parse_blocks("memory2/state:online\nmemory2/phys_index:00000002\n")[0].nodes == ()


@pytest.mark.parametrize(
    ("name", "indices", "states"),
    [
        ("arm64-stock", range(8, 16), {"online"}),
        ("riscv64-stock", range(16, 24), {"online"}),
        ("arm64-dimm-added", range(8, 24), {"online", "offline"}),
        ("arm64-dimm-online", range(8, 24), {"online"}),
    ],
)
def test_recorded(name: str, indices: range, states: set[str]) -> None:
    blocks = parse_blocks((FIXTURES / name / "blocks.txt").read_text())
    assert {block.index for block in blocks} >= set(indices)
    assert [block.phys_index for block in blocks] == [block.index for block in blocks]
    assert {block.state for block in blocks} == states
    assert {block.nodes for block in blocks} == {(0,)}
    assert all(block.removable and block.valid_zones for block in blocks)


def test_recorded_dimm_may_go_to_two_zones() -> None:
    blocks = parse_blocks((FIXTURES / "arm64-dimm-added/blocks.txt").read_text())
    assert {block.valid_zones for block in blocks if block.index >= 16} == {("Normal", "Movable")}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no memory block"),
        ("memory1/state:online\n", "memory1 has no phys_index"),
        ("memory1/phys_index:00000001\n", "memory1 has no state"),
        (GOOD + "memory32/state:online\n", "the same file twice"),
        (GOOD + "memory32/node:0\n", "the same node link twice"),
        (GOOD + "memory33/removable:2\n", "not valid content of 'removable'"),
        (GOOD + "memory33/state:\n", "not valid content of 'state'"),
        (GOOD + "memory33/phys_index:21\n", "not valid content of 'phys_index'"),
        (GOOD + "memory33/phys_index:000000021\n", "not valid content of 'phys_index'"),
        (GOOD + "memory33/valid_zones:\n", "not valid content of 'valid_zones'"),
        (GOOD + "memory33/node:node0\n", "not valid content of 'node'"),
        (GOOD[:-1], "ends in the middle of a line"),
    ],
)
def test_refusals(text: str, why: str) -> None:
    with pytest.raises(ParseError, match=why.replace("(", r"\(")) as caught:
        parse_blocks(text)
    assert caught.value.source == "/sys/devices/system/memory"


def test_a_state_only_a_broken_kernel_prints_is_kept_for_the_check() -> None:
    assert parse_blocks(GOOD.replace("offline", "ERROR-UNKNOWN-7"))[0].state == "ERROR-UNKNOWN-7"


def _render(block: MemoryBlock) -> list[str]:
    head = f"memory{block.index}/"
    rows = [f"{head}state:{block.state}", f"{head}phys_index:{block.phys_index:08x}"]
    if block.removable is not None:
        rows.append(f"{head}removable:{int(block.removable)}")
    if block.valid_zones is not None:
        rows.append(f"{head}valid_zones:{' '.join(block.valid_zones)}")
    return rows + [f"{head}node:{node}" for node in block.nodes]


_BLOCKS = st.lists(
    st.builds(
        MemoryBlock,
        index=st.integers(0, 1 << 40),
        phys_index=st.integers(0, (1 << 64) - 1),
        state=st.sampled_from(["online", "offline", "going-offline"]),
        removable=st.sampled_from([True, False, None]),
        valid_zones=st.one_of(
            st.none(), st.lists(st.sampled_from(["none", "DMA", "DMA32", "Normal", "Movable"]), min_size=1).map(tuple)
        ),
        nodes=st.sets(st.integers(0, 1023), max_size=3).map(lambda nodes: tuple(sorted(nodes))),
    ),
    min_size=1,
    unique_by=lambda block: block.index,
)


@given(_BLOCKS, st.randoms(use_true_random=False))
def test_any_order_of_lines_parses_to_the_same(blocks: list[MemoryBlock], shuffler: random.Random) -> None:
    rows = [row for block in blocks for row in _render(block)]
    shuffler.shuffle(rows)
    assert parse_blocks("".join(row + "\n" for row in rows)) == tuple(sorted(blocks, key=lambda block: block.index))
