# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's tree of physical address ranges (struct resource, include/linux/ioport.h), as /proc/iomem prints it.

The tree is linked by pointers, and to follow them one after the other takes long. So the resources that an earlier copy
found are read at once, and only what came since is followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from harness.kmem.btf import Btf
from harness.kmem.lookup import KernelReader
from harness.kmem.physical_memory import Flags, Words
from harness.state import NotObserved

ROOT = "iomem_resource"
#: a guest with hundreds of devices has thousands
MAX_RESOURCES = 1 << 14
#: bytes of a name that are read; the kernel's longest have some 40
_NAME = 128
#: more links than any kernel's: deeper resources are not indented further
_MAX_DEPTH = 32


class Resource(NamedTuple):
    """One struct resource: ``end`` is its last address, all others but ``start`` are pointers."""

    start: int
    end: int
    name: int
    parent: int
    sibling: int
    child: int


@dataclass(frozen=True, slots=True)
class ResourceCopy:
    """A copy of the tree: the words of each struct resource at ``addresses``, and of each name at ``names``.

    ``resources_read`` and ``names_read`` tell which words could be read; ``places`` are as in ``ResourceTree``.
    """

    root: int
    places: Mapping[str, int]
    addresses: Words
    resources: Words
    resources_read: Flags
    names: Words
    texts: Words
    texts_read: Flags

    def links(self, *members: str) -> Words:
        """The pointers in ``members`` of all resources that could be read."""
        whole = self.resources[self.resources_read.all(axis=1)]
        found: Words = np.unique(whole[:, [self.places[name] for name in members]])
        return np.asarray(found[found != 0])

    def found(self) -> dict[int, Resource]:
        """The resources that could be read, by address."""
        whole = self.resources_read.all(axis=1)
        columns = (self.resources[whole, self.places[name]].tolist() for name in Resource._fields)
        rows = (Resource(*row) for row in zip(*columns, strict=True))
        return dict(zip(self.addresses[whole].tolist(), rows, strict=True))

    def in_tree(self) -> tuple[Words, Words]:
        """The addresses of the resources that the tree had, and of their names; the root's is among the former."""
        found, seen, todo = self.found(), dict.fromkeys([self.root]), [self.root]
        while todo:
            one = found.get(todo.pop())
            for address in () if one is None else (one.sibling, one.child):
                if address in found and address not in seen:
                    seen[address] = None
                    todo.append(address)
        names = dict.fromkeys(found[address].name for address in seen if address in found)
        names.pop(0, None)
        return np.array(list(seen), dtype=np.uint64), np.array(list(names), dtype=np.uint64)

    def text(self) -> bytes:
        """The tree as r_show prints it (kernel/resource.c); what it cannot print becomes a line that says so.

        The nesting is that of the tree, without the kernel's limit (MAX_IORES_LEVEL).
        """
        return b"".join(line + b"\n" for line in self.lines())

    def lines(self) -> Iterator[bytes]:
        """The lines of ``text``; only those that the kernel cannot print have no `` : ``."""
        found = self.found()
        names = dict(self._names())
        todo, seen = [(self.root, 0, -1)], set[int]()
        while todo:
            address, above, depth = todo.pop()
            if address not in found or address in seen:
                why = "is in the tree twice" if address in seen else "cannot be read"
                yield f"the resource at {address:#x} {why}".encode()
                continue
            seen.add(address)
            one = found[address]
            if depth >= 0:
                indent = " " * (2 * min(depth, _MAX_DEPTH))
                yield f"{indent}{one.start:08x}-{one.end:08x} : ".encode() + (names[one.name] if one.name else b"<BAD>")
            if one.parent != above:
                yield f"the resource at {address:#x} has another parent: {one.parent:#x}".encode()
            if one.sibling and depth >= 0:
                todo.append((one.sibling, above, depth))
            if one.child:
                todo.append((one.child, address, depth + 1))

    def _names(self) -> Iterator[tuple[int, bytes]]:
        """The name at each address, up to its NUL, or as much of it as was read."""
        count = self.texts.shape[1]
        for address, words, read in zip(self.names.tolist(), self.texts, self.texts_read, strict=True):
            readable = count if read.all() else int(np.argmin(read))
            yield address, words[:readable].tobytes()[address % 8 :].partition(b"\0")[0]


@dataclass(frozen=True, slots=True)
class ResourceTree:
    """Where the tree is: the address of its root, and each member's place in a struct resource, in words."""

    root: int
    places: Mapping[str, int]
    size: int

    def copy(self, reader: KernelReader, before: object = None) -> ResourceCopy:
        """Copy the tree, of which ``before`` is an earlier copy. It terminates whatever the tree contains."""
        if isinstance(before, ResourceCopy):
            addresses, names = before.in_tree()
        else:
            addresses, names = np.array([self.root], dtype=np.uint64), np.array([], dtype=np.uint64)
        parts = [self._read(reader, addresses, names)]
        known = set(addresses.tolist())
        told = set(names.tolist())
        while True:
            links = set(parts[-1].links("sibling", "child").tolist()) - known
            titles = set(parts[-1].links("name").tolist()) - told
            if (not links and not titles) or len(known) + len(links) > MAX_RESOURCES:
                return _joined(parts)
            known |= links
            told |= titles
            parts.append(self._read(reader, *(np.array(list(new), dtype=np.uint64) for new in (links, titles))))

    def _read(self, reader: KernelReader, addresses: Words, names: Words) -> ResourceCopy:
        # Both at once: the number of calls matters, not that of the words.
        count = max(self.size, _NAME // 8)
        words, read = reader.gather(np.concatenate([addresses, names & ~np.uint64(7)]), count)
        own, texts = slice(len(addresses)), slice(len(addresses), None)
        return ResourceCopy(
            self.root,
            self.places,
            addresses,
            words[own, : self.size],
            read[own, : self.size],
            names,
            words[texts],
            read[texts],
        )


def _joined(parts: Sequence[ResourceCopy]) -> ResourceCopy:
    if len(parts) == 1:
        return parts[0]

    def all_of(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])

    return replace(
        parts[0],
        addresses=all_of("addresses"),
        resources=all_of("resources"),
        resources_read=all_of("resources_read"),
        names=all_of("names"),
        texts=all_of("texts"),
        texts_read=all_of("texts_read"),
    )


def resource_tree(reader: KernelReader, symbols: Mapping[str, int], types: Btf) -> ResourceTree | NotObserved:
    """Find the tree of a paused guest. Raises ParseError for broken BTF."""
    if ROOT not in symbols:
        return NotObserved(f"the kernel's symbols have no {ROOT} (CONFIG_KALLSYMS_ALL)")
    size, places = types.size("resource"), {}
    for name in Resource._fields:
        member = types.member("resource", name)
        if size is None or member is None or member.size != 8 or member.bit_offset % 64:
            return NotObserved(f"the layout of struct resource is unknown: its member {name}")
        places[name] = member.bit_offset // 64
    assert size is not None
    tree = ResourceTree(symbols[ROOT], places, -(-size // 8))
    why = _unlike(tree.copy(reader))
    return NotObserved(f"this is not where the kernel keeps its resources: {why}") if why else tree


def _unlike(copy: ResourceCopy) -> str:
    """Why this is no tree of a booted kernel, "" if it is: then the layout is not that of this kernel."""
    lines = list(copy.lines())
    bad = next((line for line in lines if b" : " not in line), None)
    if bad is not None:
        return bad.decode()
    return "" if any(b" : System RAM" in line for line in lines) else "none of them is System RAM"
