# SPDX-License-Identifier: GPL-2.0-or-later
"""The exact state that the model predicts after each action."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.state import MemoryBlock, MemoryDevice, NotObserved, Zone
from harness.units import AddrRange


@dataclass(frozen=True, slots=True)
class IomemAddition:
    """An entry that /proc/iomem must have in addition to those after boot; ``owner`` is the device's id.

    Nesting follows from the ranges: the parent of an addition is the smallest entry that covers it; of two entries
    with the same range, the earlier one in the model's order is the parent.
    """

    range: AddrRange
    name: str
    owner: str


@dataclass(frozen=True, slots=True)
class PciWindow:
    """A hot-plugged PCI device: its BARs may appear below bridge bus ``port``, and nothing else new."""

    port: str
    owner: str


@dataclass(frozen=True, slots=True)
class LinearPiece:
    """A physical range that one arch_add_memory() call maps; leaves never span two calls.

    ``pages`` is ram (add_memory_resource, mapped with pgprot_mhp) or device (memremap_pages, plain PAGE_KERNEL).
    ``altmap`` is the part of the device that holds its struct pages, None if they are in memory that was online then.
    ``folded`` is the size of a folded memmap, of which only the first two pages have their own frames, 0 if not folded.
    """

    range: AddrRange
    owner: str
    pages: str
    altmap: AddrRange | None = None
    folded: int = 0


@dataclass(frozen=True, slots=True)
class ExpectedSection:
    """One present entry of mem_section: flags named as in ``state.Section``, bit N for sub-section N."""

    number: int
    flags: frozenset[str]
    subsections: int


@dataclass(frozen=True, slots=True)
class ExpectedState:
    """The state that every source must show. Bytes and half-open ranges; zone counts in pages as in ``state.Zone``.

    ``memmap`` are the physical ranges (sub-section multiples) whose struct pages are mapped, boot sections included;
    ``hot`` is the part of them added after boot, ``memmap_pages`` the pages that describe it. ``virtio_names`` maps
    device ids to the kernel's virtioN name. ``linear_split``: permissions of single pages of the linear map were
    changed; ``memmap_split``: the memmap of huge pages was folded; both split larger leaves for good.
    ``managed_bytes`` is the change of MemTotal since boot.
    ``dax_states`` maps the dax devices bound to the kmem driver to the content of their state file, on kernels that
    have it (drivers/dax/kmem.c, v7.3). ``spanned`` maps memory blocks of hot-added RAM to the leaf of the linear map
    that extends beyond them; not observed if it is unknown how this kernel maps RAM. ``broken`` maps the blocks of
    boot memory that no kernel offlines to what they have: a hole, or pages of several zones.
    """

    devices: tuple[MemoryDevice, ...]
    iomem: tuple[IomemAddition, ...]
    pci: tuple[PciWindow, ...]
    blocks: tuple[MemoryBlock, ...]
    auto_online: str
    zones: tuple[Zone, ...]
    managed_bytes: int
    linear: tuple[LinearPiece, ...]
    memmap: tuple[AddrRange, ...]
    hot: tuple[AddrRange, ...]
    memmap_pages: int
    virtio_names: Mapping[str, str]
    kernel_memory: tuple[AddrRange, ...]
    sections: tuple[ExpectedSection, ...]
    once: tuple[AddrRange, ...]
    linear_split: bool = False
    memmap_split: bool = False
    dax_states: Mapping[str, str] = field(default_factory=dict)
    spanned: Mapping[int, str] | NotObserved = field(default_factory=dict)
    broken: Mapping[int, str] = field(default_factory=dict)
