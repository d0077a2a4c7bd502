# SPDX-License-Identifier: GPL-2.0-or-later
"""Corruptions of the kernel's own records: its resource tree and its log."""

from __future__ import annotations

from collections.abc import Callable

from harness.kmem.resource_tree import Resource
from harness.selftest.corruption import Case, Stroke, memory
from harness.selftest.live import Live
from harness.selftest.scene import Inapplicable
from harness.units import AddrRange

#: resources by their addresses
Tree = dict[int, Resource]


def _hot(live: Live, tree: Tree) -> int:
    """The first resource of a memory device in the tree."""
    window = live.scene.evidence.layout.machine.device_window()
    found = [(one.start, one.end, address) for address, one in tree.items() if one.start in window]
    if not found:
        raise Inapplicable("no resource is that of a memory device")
    return min(found)[2]


def _changed(member: str, value: Callable[[Live, Tree, int], int]) -> Stroke:
    """Change a member of the hot resource."""

    def apply(live: Live) -> str:
        tree = live.resources.copy(live.reader()).found()
        return _put(live, _hot(live, tree), member, value(live, tree, _hot(live, tree)))

    return apply


def _dropped(live: Live) -> str:
    """The pointer to the hot resource leads to the next one."""
    tree = live.resources.copy(live.reader()).found()
    hot = _hot(live, tree)
    for address, one in tree.items():
        for member in ("sibling", "child"):
            if getattr(one, member) == hot:
                return _put(live, address, member, tree[hot].sibling)
    raise Inapplicable("nothing leads to the resource of the memory device")


def _put(live: Live, address: int, member: str, value: int) -> str:
    place = address + 8 * live.resources.places[member]
    live.editor.write_word(live.reader().physical(place), value)
    return f"{member} of the struct resource at {address:#x}"


def _logged(at: int) -> Stroke:
    """Change byte ``at`` of the newest message's block: its number, 8 bytes, and its text."""

    def apply(live: Live) -> str:
        copy = live.log()
        for begin, end in reversed(copy.ring.spans(copy.descriptors, copy.size).tolist()):
            if not begin & 1 and begin // copy.size == (end - 1) // copy.size:
                place = live.reader().physical(copy.data + begin % copy.size + at)
                live.editor.write(place, bytes([live.editor.read(place, 1)[0] ^ 1]))
                return f"the log at position {begin}"
        raise Inapplicable("nothing was logged")

    return apply


CORRUPTIONS = memory(
    "kernel log",
    Case(
        "log-line-changed",
        "a letter of the newest line is another",
        "XCK-6",
        _logged(8),
    ),
    Case(
        "log-line-lost",
        "the newest line's text is another message's",
        "XCK-6",
        _logged(0),
    ),
) + memory(
    "resource tree",
    Case("resource-dropped", "the resource of hot-added memory is not in the tree", "XCK-2", _dropped),
    Case(
        "resource-short",
        "the resource of hot-added memory is a page short",
        "XCK-2",
        _changed("end", lambda live, tree, at: tree[at].end - live.tables.page_size),
    ),
    Case(
        "resource-renamed",
        "the resource of hot-added memory has another's name",
        "XCK-2",
        _changed("name", lambda live, tree, at: tree[live.resources.root].name),
    ),
    Case(
        "resource-nameless",
        "the resource of hot-added memory has no name",
        "XCK-2",
        _changed("name", lambda live, tree, at: 0),
    ),
    Case(
        "resource-orphaned",
        "the resource of hot-added memory has no parent",
        "XCK-2",
        _changed("parent", lambda live, tree, at: 0),
    ),
    Case(
        "resource-cycle",
        "the resource behind hot-added memory is that of hot-added memory",
        "XCK-2",
        _changed("sibling", lambda live, tree, at: at),
    ),
    Case(
        "resource-lost",
        "the resource behind hot-added memory is nowhere",
        "XCK-2",
        _changed("sibling", lambda live, tree, at: live.linear(AddrRange.sized(live.nowhere, 64)).start),
    ),
)
