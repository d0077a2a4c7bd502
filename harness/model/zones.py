# SPDX-License-Identifier: GPL-2.0-or-later
"""Zone arithmetic of mm/memory_hotplug.c (v6.12): which zone a range joins, and the resulting spans."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from harness.state import Zone
from harness.units import AddrRange, merge_ranges, subtract_ranges

DEVICE = "Device"
MOVABLE = "Movable"
#: the zone of a boot block that has pages of several, as the kernel prints it (valid_zones_show, drivers/base/memory.c)
MIXED = "none"
#: kernel zones from lowest to highest; zoneinfo does not show those that a kernel was built without
KERNEL_ZONES = ("DMA", "DMA32", "Normal")


@dataclass
class ZoneModel:
    """One zone of one node; addresses in bytes, counts in pages.

    ``span`` is the zone's spanned range or None while it is empty; ``online`` are the ranges onlined into it.
    For boot memory ``online`` is the boot RAM inside the span, which shrinking needs.
    """

    node: int
    name: str
    page_size: int
    span: AddrRange | None
    present: int
    managed: int
    online: list[AddrRange] = field(default_factory=list)

    def add(self, piece: AddrRange, managed: int) -> None:
        """online_pages(): grow the span (resize_zone_range), count the pages."""
        self.grow(piece)
        self.online = list(merge_ranges([*self.online, piece]))
        self.present += piece.size // self.page_size
        self.managed += managed

    def grow(self, piece: AddrRange) -> None:
        """resize_zone_range()."""
        if self.span is None:
            self.span = piece
        else:
            self.span = AddrRange(min(self.span.start, piece.start), max(self.span.end, piece.end))

    def remove(self, piece: AddrRange, managed: int) -> None:
        """offline_pages(): shrink_zone_span() changes the span only if the range is at one of its ends."""
        self.online = list(subtract_ranges(self.online, [piece]))
        self.present -= piece.size // self.page_size
        self.managed -= managed
        if self.span is None:
            return
        if self.span.start == piece.start:
            left = [r for r in self.online if r.end > piece.end]
            self.span = AddrRange(max(left[0].start, piece.end), self.span.end) if left else None
        elif self.span.end == piece.end:
            left = [r for r in self.online if r.start < piece.start]
            self.span = AddrRange(self.span.start, min(left[-1].end, piece.start)) if left else None

    def to_state(self) -> Zone:
        spanned = 0 if self.span is None else self.span.size // self.page_size
        start = None if self.span is None or not self.present else self.span.start // self.page_size
        return Zone(self.node, self.name, spanned, self.present, self.managed, start)


class ZoneTable:
    """All zones of a guest."""

    def __init__(self, zones: Iterable[Zone], boot_ram: Iterable[AddrRange], page_size: int) -> None:
        ram = tuple(boot_ram)
        self.page_size = page_size
        self._zones: dict[tuple[int, str], ZoneModel] = {}
        for zone in zones:
            span = None
            if zone.spanned and zone.start_pfn is not None:
                span = AddrRange.sized(zone.start_pfn * page_size, zone.spanned * page_size)
            online = [] if span is None else [r for piece in ram if (r := piece.intersect(span)) is not None]
            self._zones[zone.node, zone.name] = ZoneModel(
                zone.node, zone.name, page_size, span, zone.present, zone.managed, online
            )

    def get(self, node: int, name: str) -> ZoneModel:
        """The zone; raises KeyError if the kernel does not have it."""
        return self._zones[node, name]

    def nodes(self) -> tuple[int, ...]:
        return tuple(sorted({node for node, _ in self._zones}))

    def is_empty(self, node: int) -> bool:
        """True if no zone of ``node`` spans anything."""
        return all(zone.span is None for (owner, _), zone in self._zones.items() if owner == node)

    def bring_online(self, node: int) -> None:
        """hotadd_init_pgdat(): a new node has every zone of the kernel, all empty."""
        for name in dict.fromkeys(name for _, name in self._zones):
            self._zones.setdefault((node, name), ZoneModel(node, name, self.page_size, None, 0, 0))

    def take_offline(self, node: int) -> None:
        """node_set_offline(): its zones disappear."""
        self._zones = {key: zone for key, zone in self._zones.items() if key[0] != node}

    def default_kernel_zone(self, node: int, piece: AddrRange) -> str:
        """default_kernel_zone_for_pfn(): the zone that already spans the range, else ZONE_NORMAL."""
        for name in KERNEL_ZONES:
            zone = self._zones.get((node, name))
            if zone is not None and zone.span is not None and zone.span.overlaps(piece):
                return name
        return KERNEL_ZONES[-1]

    def zone_for(self, node: int, piece: AddrRange, online_type: str) -> str:
        """zone_for_pfn_range() under online_policy=contig-zones; ``online_type`` is one of ONLINE_TYPES."""
        kernel = self.default_kernel_zone(node, piece)
        if online_type == "online_kernel":
            return kernel
        if online_type == "online_movable":
            return MOVABLE
        spans = {name: self._zones[node, name].span for name in (kernel, MOVABLE)}
        in_kernel, in_movable = (span is not None and span.overlaps(piece) for span in (spans[kernel], spans[MOVABLE]))
        return MOVABLE if in_movable and not in_kernel else kernel

    def valid_zones(self, node: int, piece: AddrRange) -> tuple[str, ...]:
        """What valid_zones_show() prints for an offline block (drivers/base/memory.c): the default zone first."""
        default = self.zone_for(node, piece, "online")
        rest = [self.zone_for(node, piece, kind) for kind in ("online_kernel", "online_movable")]
        return (default, *(name for name in rest if name != default))

    def to_state(self) -> tuple[Zone, ...]:
        return tuple(self._zones[key].to_state() for key in self._zones)
