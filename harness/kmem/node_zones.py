# SPDX-License-Identifier: GPL-2.0-or-later
"""The zones of every online node (struct zone, include/linux/mmzone.h), as /proc/zoneinfo prints them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from harness.errors import InfraError
from harness.kmem.btf import Btf
from harness.kmem.lookup import KernelReader
from harness.state import NotObserved, Zone

#: one of the two exists: an array of pointers with CONFIG_NUMA, the only node without
SYMBOLS = ("node_data", "contig_page_data")
_MASK, _MASK_SIZE = "SYMBOL(node_online_map)", "SIZE(nodemask_t)"
#: MAX_NUMNODES is at most 1024 (NODES_SHIFT, arch/*/Kconfig)
_MOST_MASK = 128
_MOST_ZONES = 16
_NAME_BYTES = 32
#: members of struct zone
COUNTS = ("spanned_pages", "present_pages", "managed_pages", "zone_start_pfn")


@dataclass(frozen=True, slots=True)
class OnlineNodes:
    """Where one booted kernel keeps its nodes: ``single`` is the address of the only one, None with CONFIG_NUMA.

    ``array`` is the address of node_data, ``online`` that of the mask of online nodes, of ``mask`` bytes.
    """

    single: int | None
    array: int = 0
    online: int = 0
    mask: int = 0

    def addresses(self, reader: KernelReader) -> Iterator[tuple[int, int]]:
        """Number and address of the pglist_data of every online node. Raises InfraError."""
        if self.single is not None:
            yield 0, self.single
            return
        bits = int.from_bytes(reader.read(self.online, self.mask), "little")
        if bits == 0:
            raise InfraError("no node of the kernel is online")
        for number in range(8 * self.mask):
            if bits >> number & 1:
                yield number, reader.word(self.array + 8 * number)


@dataclass(frozen=True, slots=True)
class ZonesCopy:
    """The zones of a paused guest."""

    zones: tuple[Zone, ...]

    def text(self) -> bytes:
        """What zoneinfo_show_print prints of them (mm/vmstat.c)."""
        lines = []
        for zone in self.zones:
            lines.append(f"Node {zone.node}, zone {zone.name:>8}")
            lines += [f"        {word:<8} {getattr(zone, word)}" for word in ("spanned", "present", "managed")]
            if zone.start_pfn is not None:
                lines.append(f"  start_pfn:           {zone.start_pfn}")
        return "".join(f"{line}\n" for line in lines).encode()


@dataclass(frozen=True, slots=True)
class NodeZones:
    """Where the zones are: ``zones`` is bytes into pglist_data, ``size`` one zone's, ``counts`` offsets of COUNTS.

    ``names`` are the zones' names by number.
    """

    nodes: OnlineNodes
    zones: int
    size: int
    counts: tuple[int, ...]
    names: tuple[str, ...]

    def addresses(self, reader: KernelReader) -> Iterator[tuple[int, str, int]]:
        """Node, name and address of every zone of every online node. Raises InfraError."""
        for node, at in self.nodes.addresses(reader):
            for number, name in enumerate(self.names):
                yield node, name, at + self.zones + number * self.size

    def copy(self, reader: KernelReader, before: object = None) -> ZonesCopy:
        """Read the zones of a paused guest. Raises InfraError."""
        low, high = min(self.counts), max(self.counts) + 8
        found = []
        for node, name, at in self.addresses(reader):
            words = reader.words(at + low, (high - low) // 8)
            spanned, present, managed, start = (words[(offset - low) // 8] for offset in self.counts)
            # zoneinfo does not print it otherwise.
            found.append(Zone(node, name, spanned, present, managed, start if present else None))
        return ZonesCopy(tuple(found))


def online_nodes(note: Mapping[str, str], symbols: Mapping[str, int]) -> OnlineNodes | NotObserved:
    """Where the nodes are, by the kernel's vmcoreinfo ``note`` and the addresses of SYMBOLS."""
    if "contig_page_data" in symbols:
        return OnlineNodes(symbols["contig_page_data"])
    if "node_data" not in symbols:
        return NotObserved("the kernel's symbols have neither node_data nor contig_page_data (CONFIG_KALLSYMS_ALL)")
    mask, size = note.get(_MASK), note.get(_MASK_SIZE, "")
    if mask is None or not size.isdecimal() or int(size) % 8 or not 0 < int(size) <= _MOST_MASK:
        return NotObserved(f"vmcoreinfo has no {_MASK} or no {_MASK_SIZE}")
    return OnlineNodes(None, symbols["node_data"], int(mask, 16), int(size))


def node_zones(
    reader: KernelReader, note: Mapping[str, str], symbols: Mapping[str, int], types: Btf
) -> NodeZones | NotObserved:
    """Find the zones of a paused guest. Raises InfraError, ParseError for broken BTF."""
    nodes = online_nodes(note, symbols)
    if isinstance(nodes, NotObserved):
        return nodes
    zones, size, name = types.member("pglist_data", "node_zones"), types.size("zone"), types.member("zone", "name")
    counts = tuple(
        member.offset
        for word in COUNTS
        if (member := types.member("zone", word)) is not None and member.size == 8 and member.offset % 8 == 0
    )
    if zones is None or size is None or name is None or len(zones.dimensions) != 1 or len(counts) != len(COUNTS):
        return NotObserved("the layout of struct zone is unknown")
    number = zones.dimensions[0]
    if not 0 < number <= _MOST_ZONES or zones.size != number * size:
        return NotObserved(f"the layout of pglist_data is not understood: {number} zones in {zones.size} bytes")
    _, first = next(nodes.addresses(reader))
    places = [reader.word(first + zones.offset + zone * size + name.offset) for zone in range(number)]
    names = tuple(reader.read(at, _NAME_BYTES).partition(b"\0")[0] for at in places)
    if not all(text.isalnum() for text in names) or len(set(names)) != number:
        return NotObserved("the names of the kernel's zones cannot be read")
    return NodeZones(nodes, zones.offset, size, counts, tuple(text.decode() for text in names))
