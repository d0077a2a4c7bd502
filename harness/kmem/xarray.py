# SPDX-License-Identifier: GPL-2.0-or-later
"""The entries of a kernel's xarray (lib/xarray.c, include/linux/xarray.h)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.errors import InfraError
from harness.kmem.btf import Btf
from harness.kmem.lookup import KernelReader
from harness.kmem.physical_memory import Words
from harness.state import NotObserved

_INTERNAL, _KIND = 2, 3
#: an internal entry above is a pointer to a node (xa_is_node)
_LAST_PLAIN = 4096
_KEY_BITS = 64


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """Bytes into struct xarray of ``head``, into struct xa_node of ``shift`` and its ``width`` ``slots``."""

    head: int
    shift: int
    slots: int
    width: int


def array_layout(types: Btf) -> ArrayLayout | NotObserved:
    """The layout in the kernel with these ``types``. Raises ParseError for broken BTF."""
    head, shift, slots = (
        types.member("xarray", "xa_head"),
        types.member("xa_node", "shift"),
        types.member("xa_node", "slots"),
    )
    if head is None or shift is None or slots is None or len(slots.dimensions) != 1:
        return NotObserved("the layout of struct xarray is unknown")
    width = slots.dimensions[0]
    if width < 2 or width & (width - 1) or slots.offset % 8 or slots.size != 8 * width or shift.size != 1:
        return NotObserved(f"the layout of struct xa_node is not understood: {width} slots in {slots.size} bytes")
    return ArrayLayout(head.offset, shift.offset, slots.offset, width)


def read_array(reader: KernelReader, layout: ArrayLayout, address: int, most: int) -> tuple[Words, Words]:
    """The indices of the used entries of the xarray at ``address``, ascending, and the entries: aligned pointers.

    It terminates whatever the memory contains, since each level of nodes covers fewer bits than the one above. Raises
    InfraError for more than ``most`` entries on a level, for nodes that cannot be read, and for anything but nodes and
    pointers.
    """
    bits = layout.width.bit_length() - 1
    found = np.array([reader.word(address + layout.head)], dtype=np.uint64)
    index, above = np.zeros(1, dtype=np.uint64), None
    while True:
        used = found != 0
        found, index = found[used], index[used]
        if len(found) > most:
            raise _strange(address, f"more than {most} entries")
        nodes = (found & np.uint64(_KIND) == _INTERNAL) & (found > np.uint64(_LAST_PLAIN))
        if not nodes.any() and not np.any(found & np.uint64(7)):
            return index, found
        if not nodes.all():
            raise _strange(address, "entries that are neither pointers nor nodes, or both on one level")
        rows, read = reader.gather(found - np.uint64(_INTERNAL), layout.slots // 8 + layout.width)
        if not read.all():
            raise _strange(address, "a node that cannot be read")
        shifts = np.unique(rows[:, layout.shift // 8] >> np.uint64(layout.shift % 8 * 8) & np.uint64(0xFF))
        shift = int(shifts[0])
        fits = shift < _KEY_BITS if above is None else shift == above - bits
        if len(shifts) > 1 or shift % bits or not fits:
            raise _strange(address, "nodes that do not fit their level")
        above = shift
        index = (index[:, None] + (np.arange(layout.width, dtype=np.uint64) << np.uint64(shift))).ravel()
        found = rows[:, layout.slots // 8 :].ravel()


def _strange(address: int, what: str) -> InfraError:
    return InfraError(f"the kernel's xarray at {address:#x} has {what}")
