# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own records that the host reads in guest memory, each saved as the text that the kernel would print.

A record is found once per boot by its module in ``kmem``, copied while the guest is paused, and decoded afterwards.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from harness.errors import InfraError, ParseError
from harness.kmem import block_devices, node_zones, resource_tree, vm_counters
from harness.kmem.btf import Btf
from harness.kmem.lookup import KernelReader
from harness.state import NotObserved


class RecordCopy(Protocol):
    """A copy of a record."""

    def text(self) -> bytes:
        """The text of its raw source."""


class Record(Protocol):
    """Where one booted kernel keeps a record."""

    def copy(self, reader: KernelReader, before: RecordCopy | None) -> RecordCopy:
        """Copy it from a paused guest; ``before`` is a copy made just before, while it ran. Raises InfraError."""


@dataclass(frozen=True)
class BootedKernel:
    """A paused guest's kernel: its memory, vmcoreinfo, the addresses of ``SYMBOLS``, and the layouts of its types."""

    reader: KernelReader
    note: Mapping[str, str]
    symbols: Mapping[str, int]
    types: Btf

    @functools.cached_property
    def zones(self) -> node_zones.NodeZones | NotObserved:
        """Where its zones are. Raises InfraError, ParseError."""
        return node_zones.node_zones(self.reader, self.note, self.symbols, self.types)


#: the raw sources, and how each is found; raises InfraError or ParseError
FINDERS: Mapping[str, Callable[[BootedKernel], Record | NotObserved]] = {
    "host_iomem": lambda kernel: resource_tree.resource_tree(kernel.reader, kernel.symbols, kernel.types),
    "host_blocks": lambda kernel: block_devices.block_devices(kernel.symbols, kernel.types, kernel.zones),
    "host_zoneinfo": lambda kernel: kernel.zones,
    "host_vmstat": lambda kernel: vm_counters.vm_counters(kernel.reader, kernel.symbols, kernel.types, kernel.zones),
    "host_meminfo": lambda kernel: vm_counters.total_memory(kernel.note, kernel.symbols),
}
#: the symbols of all records
SYMBOLS = (resource_tree.ROOT, *block_devices.SYMBOLS, *node_zones.SYMBOLS, *vm_counters.SYMBOLS)
RECORD_SOURCES = tuple(FINDERS)

#: each source's record, or why it cannot be read in this boot
Records = Mapping[str, Record | NotObserved]
Copies = Mapping[str, RecordCopy | NotObserved]


def find_records(
    reader: KernelReader,
    note: Mapping[str, str],
    symbols: Mapping[str, int] | NotObserved,
    types: Btf | NotObserved,
) -> Records:
    """Find each record in a paused guest; what cannot be found is NotObserved with the reason."""
    for needed in (symbols, types):
        if isinstance(needed, NotObserved):
            return dict.fromkeys(FINDERS, needed)
    assert not isinstance(symbols, NotObserved) and not isinstance(types, NotObserved)
    kernel = BootedKernel(reader, note, symbols, types)
    found: dict[str, Record | NotObserved] = {}
    for name, find in FINDERS.items():
        try:
            found[name] = find(kernel)
        except (InfraError, ParseError) as error:
            found[name] = NotObserved(error.message)
    return found


def copy_records(records: Records, reader: KernelReader, before: Copies) -> Copies:
    """Copy all ``records``; ``before`` are copies made just before."""
    copies: dict[str, RecordCopy | NotObserved] = {}
    for name, record in records.items():
        last = before.get(name)
        try:
            copies[name] = (
                record
                if isinstance(record, NotObserved)
                else record.copy(reader, None if isinstance(last, NotObserved) else last)
            )
        except InfraError as error:
            copies[name] = NotObserved(error.message)
    return copies


def record_sources(copies: Copies) -> tuple[dict[str, bytes], dict[str, str]]:
    """The raw sources of ``copies``, and the reasons for those that are missing."""
    found = {name: copy.text() for name, copy in copies.items() if not isinstance(copy, NotObserved)}
    return found, {name: copy.reason for name, copy in copies.items() if isinstance(copy, NotObserved)}
