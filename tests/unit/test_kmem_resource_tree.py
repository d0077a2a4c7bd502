# SPDX-License-Identifier: GPL-2.0-or-later
"""The resource tree in made-up memory: equal to what the kernel prints, and bounded whatever the memory contains."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from iomem_text import render_iomem
from kmem_count_guest import IMAGE, LINEAR, SIZE, CountGuest
from test_kmem_btf import Writer

from harness.kmem.btf import Btf
from harness.kmem.lookup import KernelReader
from harness.kmem.physical_memory import Flags, Words
from harness.kmem.resource_tree import MAX_RESOURCES, ROOT, ResourceTree, resource_tree
from harness.parsers.iomem import parse_iomem
from harness.state import IomemEntry, NotObserved
from harness.units import AddrRange

MEMBERS = ("start", "end", "name", "flags", "desc", "parent", "sibling", "child")
NAME, PARENT, SIBLING, CHILD = (8 * MEMBERS.index(name) for name in ("name", "parent", "sibling", "child"))
RAM = IomemEntry(AddrRange(1 << 30, 1 << 31), "System RAM", (IomemEntry(AddrRange(1 << 30, (1 << 30) + 5), "Kernel"),))


def types(**changes: int) -> Btf:
    writer = Writer()
    long, text = writer.int(), writer.add(2, "", 0)
    places = {name: 64 * at for at, name in enumerate(MEMBERS)} | changes
    members = [(name, text if name in ("name", "parent") else long, at) for name, at in places.items() if at >= 0]
    writer.struct("resource", 64, *members)
    return Btf(writer.blob())


class ResourceGuest(CountGuest):
    """A kernel with the tree ``entries``; ``at`` is the address of each resource by its name."""

    def __init__(self, path: Path, entries: Sequence[IomemEntry]) -> None:
        super().__init__(path)
        self.at: dict[str, int] = {"root": self.image(64)}
        self._room = (0, 0)
        self.put(self.at["root"], 0, -1, self.text("PCI mem"), 0, 0, 0, 0, self.level(entries, self.at["root"]))

    def some(self, size: int) -> int:
        """Room in the linear map, 8-byte aligned, also across pages."""
        start, left = self._room
        if left < size:
            start, left = self.linear(self.page()), 4096
            for _ in range(3):
                self.page()
                left += 4096
        self._room = (start + size + -size % 8, left - size - -size % 8)
        return start

    def text(self, name: str) -> int:
        """A C string: in the image or the linear map, at any alignment."""
        data = name.encode() + b"\0"
        odd = len(name) % 8
        at = (self.image(len(data) + 8) if len(name) % 2 else self.some(len(data) + 8)) + odd
        self.write(at, data)
        return at

    def level(self, entries: Sequence[IomemEntry], parent: int) -> int:
        addresses = [self.image(64) if number == 1 else self.some(64) for number, _ in enumerate(entries)]
        for number, (address, entry) in enumerate(zip(addresses, entries, strict=True)):
            sibling = addresses[number + 1] if number + 1 < len(addresses) else 0
            self.at[entry.name] = address
            where = (entry.range.start, entry.range.end - 1)
            child = self.level(entry.children, address)
            self.put(address, *where, self.text(entry.name), 0, 0, parent, sibling, child)
        return addresses[0] if addresses else 0

    def tree(self, btf: Btf | None = None) -> ResourceTree | NotObserved:
        with self.reader() as reader:
            return resource_tree(reader, {ROOT: self.at["root"]}, types() if btf is None else btf)

    def seen(self, tree: ResourceTree) -> str:
        """Its text, from a copy of a paused guest after one of the running guest."""
        with self.reader() as reader:
            before = tree.copy(reader)
        return self.seen_after(tree, before)

    def seen_after(self, tree: ResourceTree, before: object) -> str:
        with self.reader() as reader:
            return tree.copy(reader, before).text().decode()


def sound(guest: ResourceGuest) -> ResourceTree:
    found = guest.tree()
    assert isinstance(found, ResourceTree), found
    return found


_NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=30)
_RANGES = st.builds(AddrRange.sized, st.integers(0, 1 << 62), st.integers(1, 1 << 62))


def _entries(depth: int) -> st.SearchStrategy[tuple[IomemEntry, ...]]:
    children = st.just(()) if depth == 3 else st.deferred(lambda: _entries(depth + 1))
    return st.lists(st.builds(IomemEntry, _RANGES, _NAMES, children), max_size=3).map(tuple)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_entries(0), st.booleans())
def test_the_text_is_what_the_kernel_prints(tmp_path: Path, entries: tuple[IomemEntry, ...], fresh: bool) -> None:
    entries = (RAM, *entries)
    guest = ResourceGuest(tmp_path / "memory", entries)
    tree = sound(guest)
    assert (guest.seen_after(tree, None) if fresh else guest.seen(tree)) == render_iomem(entries)


def test_what_came_and_went_since_the_look_is_followed(tmp_path: Path) -> None:
    gone, more = IomemEntry(AddrRange(0, 4096), "gone"), IomemEntry(AddrRange(1 << 40, 1 << 41), "more")
    guest = ResourceGuest(tmp_path / "memory", (gone, RAM))
    tree = sound(guest)
    with guest.reader() as reader:
        before = tree.copy(reader)
    guest.put(guest.at["root"] + CHILD, guest.at["System RAM"])
    guest.put(guest.at["System RAM"] + SIBLING, guest.level((more,), guest.at["root"]))
    guest.put(guest.at["Kernel"] + NAME, guest.text("Kernel code"))
    text = guest.seen_after(tree, before)
    assert [line.strip().partition(" : ")[2] for line in text.splitlines()] == ["System RAM", "Kernel code", "more"]


def test_what_was_found_before_is_read_at_once_and_what_has_gone_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = tuple(IomemEntry(AddrRange.sized(number << 12, 4096), f"entry {number}") for number in range(30))
    guest = ResourceGuest(tmp_path / "memory", (RAM, *entries))
    tree = sound(guest)
    reads: list[int] = []
    gather = KernelReader.gather

    def counted(reader: KernelReader, addresses: Words, count: int) -> tuple[Words, Flags]:
        reads.append(len(addresses))
        return gather(reader, addresses, count)

    monkeypatch.setattr(KernelReader, "gather", counted)
    with guest.reader() as reader:
        first = tree.copy(reader)
        slow = len(reads)
        second = tree.copy(reader, first)
        assert slow > 30 and len(reads) == slow + 1 and second.text() == first.text()
        guest.put(guest.at["System RAM"] + SIBLING, 0)
        third = tree.copy(reader, second)
        addresses, names = third.in_tree()
    assert third.text().decode() == render_iomem((RAM,))
    assert set(addresses.tolist()) == {guest.at[name] for name in ("root", "System RAM", "Kernel")} and len(names) == 3


def test_names_without_text(tmp_path: Path) -> None:
    guest = ResourceGuest(tmp_path / "memory", (IomemEntry(AddrRange(0, 1), "a"), RAM))
    tree = sound(guest)
    guest.put(guest.at["a"] + NAME, 0)
    assert guest.seen(tree).startswith("00000000-00000000 : <BAD>\n")
    guest.put(guest.at["a"] + NAME, 0x1234)
    assert guest.seen(tree).startswith("00000000-00000000 : \n")
    guest.put(guest.at["a"] + NAME, guest.text("x" * 500))
    assert len(guest.seen(tree).splitlines()[0]) < 160


@pytest.mark.parametrize(
    ("member", "value", "line"),
    [
        (SIBLING, "Kernel", "is in the tree twice"),
        (SIBLING, "System RAM", "is in the tree twice"),
        (CHILD, "root", "is in the tree twice"),
        (SIBLING, 0x1234, "the resource at 0x1234 cannot be read"),
        (CHILD, LINEAR + SIZE - 8, "cannot be read"),
        (CHILD, LINEAR + 4, "cannot be read"),
        (SIBLING, IMAGE + (1 << 30), "cannot be read"),
        (PARENT, "Kernel", "has another parent"),
    ],
)
def test_a_bad_pointer_is_a_line_that_no_kernel_prints(
    tmp_path: Path, member: int, value: int | str, line: str
) -> None:
    guest = ResourceGuest(tmp_path / "memory", (RAM, IomemEntry(AddrRange(1 << 40, 1 << 41), "last")))
    tree = sound(guest)
    guest.put(guest.at["last"] + member, guest.at[value] if isinstance(value, str) else value)
    text = guest.seen(tree)
    bad = [row for row in text.splitlines() if " : " not in row]
    assert len(bad) in (1, 2) and line in "".join(bad)
    assert text.count("System RAM") == 1


def test_a_tree_without_end_is_read_up_to_a_limit(tmp_path: Path) -> None:
    guest = ResourceGuest(tmp_path / "memory", (RAM,))
    tree = sound(guest)
    start, count = guest.linear(guest.page()), MAX_RESOURCES + 100
    rows = [(at, at, 0, 0, 0, guest.at["root"], start + 64 * (at + 1), 0) for at in range(count)]
    guest.write(start, b"".join(struct.pack("<8Q", *row) for row in rows))
    guest.put(guest.at["root"] + CHILD, start)
    lines = guest.seen_after(tree, None).splitlines()
    assert len(lines) <= MAX_RESOURCES and "cannot be read" in lines[-1]


@pytest.mark.parametrize(
    ("btf", "why"),
    [
        (types(child=-1), "the layout of struct resource is unknown: its member child"),
        (types(end=68), "the layout of struct resource is unknown: its member end"),
        (types(child=64 * 6, sibling=64 * 7), "none of them is System RAM"),
        (types(parent=64 * 3), "this is not where the kernel keeps its resources: the resource at"),
        (types(name=64 * 4), "none of them is System RAM"),
    ],
)
def test_a_layout_of_another_kernel_is_refused(tmp_path: Path, btf: Btf, why: str) -> None:
    found = ResourceGuest(tmp_path / "memory", (RAM,)).tree(btf)
    assert isinstance(found, NotObserved) and why in found.reason


def test_a_kernel_without_the_symbol(tmp_path: Path) -> None:
    guest = ResourceGuest(tmp_path / "memory", (RAM,))
    with guest.reader() as reader:
        found = resource_tree(reader, {}, types())
    assert found == NotObserved("the kernel's symbols have no iomem_resource (CONFIG_KALLSYMS_ALL)")


def test_the_text_is_parsed_as_the_kernels_own(tmp_path: Path) -> None:
    guest = ResourceGuest(tmp_path / "memory", (RAM,))
    assert parse_iomem(guest.seen(sound(guest))) == (RAM,)
