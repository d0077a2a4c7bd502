# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.arch.kernel_layout import KernelLayout
from harness.kmem.address import (
    DirectMap,
    PageMap,
    Untranslated,
    Window,
    direct_map,
)
from harness.state import HostMapping
from harness.units import GIB, KIB, AddrRange

TOP = 1 << 64


def words(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def layout(linear_start: int, phys_offset: int, size: int) -> KernelLayout:
    window = AddrRange.sized(linear_start, size)
    return KernelLayout(linear_start, phys_offset, 0, 64, 4096, frozenset(), 4096, window, AddrRange(0, 0))


def test_the_linear_map() -> None:
    direct = direct_map(layout(0xFFF0 << 48, 0x4000_0000, 1 << 51))
    assert direct.physical(0xFFF00000_3FB4DD00) == 0x7FB4DD00
    with pytest.raises(Untranslated, match="0x0000000000001000 is not in the linear map") as caught:
        direct.physical(0x1000)
    assert caught.value.address == 0x1000


def test_a_linear_map_whose_offset_wrapped_around() -> None:
    """A kernel for 52-bit addresses on a CPU with 48 bits, with a randomised linear map: PHYS_OFFSET is negative."""
    for offset in (0xFFF0B337_C0000000, 0xFFF0B337_C0000000 - TOP):
        direct = direct_map(layout(0xFFF00000_00000000, offset, (1 << 52) - (1 << 47)))
        assert direct.physical(0xFFFF4CC8_BFC3ED00) == 0x7FC3ED00
        found, known = direct.translate(words(0xFFFF4CC8_BFC3ED00, 0xFFFF8000_00000000))
        assert known.tolist() == [True, False] and found[0] == 0x7FC3ED00


@given(st.data())
def test_many_at_once_and_one_by_one_are_the_same(data: st.DataObject) -> None:
    bounds = sorted(data.draw(st.lists(st.integers(0, TOP), min_size=4, max_size=4)))
    windows = tuple(
        Window(AddrRange(*bounds[at : at + 2]), data.draw(st.integers(0, TOP - 1))) for at in (0, 2) if bounds[at] < TOP
    )
    direct = DirectMap(
        tuple(one for one in windows if one.virtual.size < TOP), data.draw(st.sampled_from([0, 255 << 56]))
    )
    near = st.sampled_from([min(max(bound + off, 0), TOP - 1) for bound in bounds for off in (-1, 0, 1)])
    addresses = data.draw(st.lists(near | st.integers(0, TOP - 1), max_size=20))
    found, known = direct.translate(words(*addresses))
    for address, physical, inside in zip(addresses, found.tolist(), known.tolist(), strict=True):
        if inside:
            assert direct.physical(address) == physical
        else:
            with pytest.raises(Untranslated):
                direct.physical(address)


def test_kasan_tags_are_no_part_of_an_address() -> None:
    tagged = 0xF5FF0000_00001000
    kernel = layout(0xFFFF0000_00000000, 0, GIB)
    assert direct_map(kernel, tag=0xFF << 56).physical(tagged) == 0x1000
    assert direct_map(kernel, tag=0xFF << 56).translate(words(tagged))[1].all()
    assert not direct_map(kernel).translate(words(tagged))[1].any()


def test_a_walks_mappings_translate() -> None:
    runs = [
        HostMapping(AddrRange(0x9000, 0xA000), 0x1_0000, "PTE", ()),
        HostMapping(AddrRange.sized(TOP - 4 * KIB, 4 * KIB), 0x7000, "PTE", ()),
        HostMapping(AddrRange(0x1000, 0x3000), 0x4000_0000, "PTE", ()),
    ]
    found, known = PageMap(runs).translate(words(0xFFF, 0x1000, 0x2FFF, 0x3000, 0x9008, 0xA000, TOP - 1))
    assert known.tolist() == [False, True, True, False, True, False, True]
    assert found[known].tolist() == [0x4000_0000, 0x4000_1FFF, 0x1_0008, 0x7FFF]
    nothing, known = PageMap([]).translate(words(0x1000))
    assert nothing.shape == (1,) and not known.any()
