# SPDX-License-Identifier: GPL-2.0-or-later
"""The constants of one booted guest."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TypeVar

from harness.arch import ArchSpec, PagingMode
from harness.arch.features import KernelFeatures, features_of
from harness.arch.kernel_layout import KernelLayout
from harness.errors import UnsupportedError
from harness.model.actions import Action
from harness.state import GuestState, KernelFacts, NotObserved
from harness.units import AddrRange, align_up, format_size, intersect_ranges

T = TypeVar("T")

_PAGE_EXT = re.compile(r"allocated ([0-9]{1,15}) bytes of page_ext")


@dataclass(frozen=True, slots=True)
class MachineShape:
    """The guest as QEMU was told to build it: bytes of boot RAM per node, and room for more.

    ``ports`` are the root ports a PCI device can be hot-plugged below, in order of creation; ``virtio_devices``
    is how many virtio devices the guest booted with, ``acpi`` whether it booted with ACPI or a device tree.
    ``cpu_nodes`` are the nodes with a CPU, None if all have one. ``cold`` are the devices that are there at boot, in
    the order in which a kernel finds them.
    """

    arch: ArchSpec
    node_memory: tuple[int, ...]
    max_memory: int
    slots: int
    ports: tuple[str, ...]
    virtio_devices: int
    acpi: bool = True
    cpu_nodes: tuple[int, ...] | None = None
    cold: tuple[Action, ...] = ()

    @property
    def memory(self) -> int:
        """Bytes of boot RAM."""
        return sum(self.node_memory)

    def node_ranges(self) -> tuple[AddrRange, ...]:
        """Boot RAM of each node, in address order."""
        out: list[AddrRange] = []
        at = self.arch.ram_base
        for size in self.node_memory:
            out.append(AddrRange.sized(at, size))
            at += size
        return tuple(out)

    def has_cpu(self, node: int) -> bool:
        """True if a CPU belongs to ``node``: it stays online without memory then."""
        return self.cpu_nodes is None or node in self.cpu_nodes

    def device_window(self) -> AddrRange:
        """Where QEMU places memory devices (virt_set_memmap, hw/arm/virt.c, QEMU 10.0)."""
        start = align_up(self.arch.ram_base + self.memory, self.arch.device_memory_alignment)
        return AddrRange.sized(start, self.max_memory - self.memory + self.slots * self.arch.slot_slack)


@dataclass(frozen=True)
class BootLayout:
    """One booted guest: machine, kernel and the state it came up in.

    ``kernel`` is None where vmcoreinfo could not be read: what depends on virtual addresses is then not observed.
    """

    machine: MachineShape
    facts: KernelFacts
    paging: PagingMode
    kernel: KernelLayout | None
    baseline: GuestState

    @property
    def block_size(self) -> int:
        """Bytes of a memory block: one section on both architectures (memory_block_size_bytes)."""
        return self.paging.section_size

    @property
    def page_size(self) -> int:
        return self.paging.page_size

    @property
    def pageblock_size(self) -> int:
        """Bytes of a pageblock, the least that virtio-mem unplugs (include/linux/pageblock-flags.h, v6.12).

        This and every other value that depends on a kernel feature raises UnsupportedError if the feature is unknown.
        """
        return self.page_size << known(self.features.pageblock_order, "the size of a pageblock")

    @functools.cached_property
    def features(self) -> KernelFeatures:
        """What this kernel does."""
        return features_of(self.facts)

    @functools.cached_property
    def maps_pages_only(self) -> bool | NotObserved:
        """True if this kernel maps RAM by single pages (rodata=full, debug_pagealloc, KFENCE), as boot RAM shows.

        The alias of the kernel's own text and rodata is mapped by blocks either way, so read-only runs do not count.
        """
        tables, dump = self.baseline.host_tables, self.baseline.page_tables
        if self.kernel is None:
            return NotObserved("the kernel's virtual layout is unknown")
        if isinstance(tables, NotObserved) and isinstance(dump, NotObserved):
            return NotObserved(f"no page tables were seen after boot: {tables.reason}; {dump.reason}")
        seen = dump if isinstance(tables, NotObserved) else tables
        assert not isinstance(seen, NotObserved)
        ram, writable = [self.kernel.linear(r) for r in self.machine.node_ranges()], self.machine.arch.writable_word
        return all(
            leaf.level == "PTE" and "CON" not in leaf.attrs
            for leaf in seen.mappings
            if writable in leaf.attrs and any(leaf.range.overlaps(part) for part in ram)
        )

    @property
    def pmem_api(self) -> bool:
        """True if the kernel maps pmem write-back (ARCH_MEMREMAP_PMEM, include/linux/io.h, v6.12)."""
        return known(self.features.pmem_api, "whether pmem is mapped write-back")

    def memmap_bytes(self, piece: AddrRange) -> int:
        """Bytes of struct pages that describe ``piece``."""
        size = self.machine.arch.max_struct_page if self.kernel is None else self.kernel.struct_page_size
        return piece.size // self.page_size * size

    @functools.cached_property
    def page_ext_pages(self) -> int:
        """Pages of struct page_ext that a section has while it is online, which the kernel counts as memmap.

        They are there if page_owner or the like is built in; how large one is only the kernel's log tells
        (page_ext_init, init_section_page_ext; mm/page_ext.c, v6.12).
        """
        dmesg = self.baseline.dmesg
        said = () if isinstance(dmesg, NotObserved) else (_PAGE_EXT.fullmatch(line.text) for line in dmesg)
        total = next((int(found[1]) for found in said if found is not None), 0)
        sections = sum(r.align_outward(self.block_size).size for r in self.machine.node_ranges()) // self.block_size
        return -(-total // sections // self.page_size)

    def folded_memmap(self, align: int) -> int:
        """Bytes of struct pages of one device-dax page of ``align`` bytes, 0 if this kernel does not fold them.

        Folded, a compound page keeps two pages of vmemmap, and all others are the second one again; the memmap must be
        in RAM (__vmemmap_can_optimize, vmemmap_populate_compound_pages; v6.12).
        """
        size = self.machine.arch.max_struct_page if self.kernel is None else self.kernel.struct_page_size
        optimizes = known(self.features.folds_dax, "whether device-dax memmap is folded") and size & (size - 1) == 0
        compound = self.memmap_bytes(AddrRange.sized(0, align))
        return compound if optimizes and compound > 2 * self.page_size else 0

    def folds_hugetlb(self) -> bool:
        """True if the memmap of huge pages is folded (hugetlb_vmemmap_optimizable, mm/hugetlb_vmemmap.c, v6.12).

        The sysctl vm.hugetlb_optimize_vmemmap can change that later, which is not followed.
        """
        size = self.machine.arch.max_struct_page if self.kernel is None else self.kernel.struct_page_size
        folds = known(self.features.folds_hugetlb, "whether the memmap of huge pages is folded")
        return folds and size & (size - 1) == 0

    def self_hosted(self, size: int) -> int:
        """Bytes at the head of each block of a DIMM of ``size`` that hold its own struct pages, 0 if they do not.

        mhp_supports_memmap_on_memory, memory_block_memmap_on_memory_pages (mm/memory_hotplug.c, v6.12): the
        memory_hotplug.memmap_on_memory parameter is on, and the struct pages fill whole PMDs and pageblocks; in old
        kernels it is of one block.
        """
        mode = self.facts.parameters.get("memory_hotplug.memmap_on_memory", "N").strip()
        needed = self.memmap_bytes(AddrRange.sized(0, self.block_size))
        if mode in ("N", "0", "") or needed % self.paging.leaf_sizes["PMD"]:
            return 0
        if size != self.block_size and not known(
            self.features.splits_self_hosted, "whether memory of several blocks holds its own struct pages"
        ):
            return 0
        taken = align_up(needed, self.pageblock_size) if mode == "force" else needed
        return 0 if taken % self.pageblock_size or taken == self.block_size else taken

    def boot_memory(self) -> tuple[AddrRange, ...]:
        """Boot RAM that the kernel was told of: what firmware keeps for itself is a hole.

        Where /proc/iomem was read, its entries System RAM and reserved (memory that has no linear map) say so
        (request_standard_resources, arch/arm64/kernel/setup.c; init_resources, arch/riscv/kernel/setup.c; v6.12).
        """
        nodes, iomem = self.machine.node_ranges(), self.baseline.iomem
        if isinstance(iomem, NotObserved):
            return nodes
        told = [entry.range for entry in iomem if entry.name.lower() in ("system ram", "reserved")]
        return intersect_ranges(nodes, told)

    def node_of_pmem(self) -> int:
        """The node of a region's ZONE_DEVICE: that of the first boot memory, whatever the SRAT says.

        memory_add_physaddr_to_nid (mm/numa_memblks.c, v6.12) takes the first that firmware or device tree listed; a
        kernel without CONFIG_NUMA_KEEP_MEMINFO always takes node 0.
        """
        backwards = not self.machine.acpi and self.machine.arch.dt_lists_nodes_backwards
        listed = [node for node, memory in enumerate(self.machine.node_memory) if memory]
        return listed[-1 if backwards else 0] if listed and self._keeps_meminfo() else 0

    def target_node_of_pmem(self) -> int:
        """The node that kmem adds a region to: that of the device window in the SRAT, which is the last one.

        build_srat (hw/arm/virt-acpi-build.c, QEMU 10.0); phys_to_target_node (mm/numa_memblks.c, v6.12), which a
        kernel without CONFIG_NUMA_KEEP_MEMINFO lacks. A device tree does not say.
        """
        knows = self.machine.acpi and self._keeps_meminfo()
        return len(self.machine.node_memory) - 1 if knows else self.node_of_pmem()

    def _keeps_meminfo(self) -> bool:
        if len(self.machine.node_memory) == 1:
            return False
        return known(self.features.keeps_meminfo, "whether the kernel remembers which node the firmware gave to memory")


def known(feature: T | NotObserved, what: str) -> T:
    """The feature if it was probed; otherwise raises UnsupportedError, which says that ``what`` is unknown."""
    if isinstance(feature, NotObserved):
        raise UnsupportedError(
            "kernel-features",
            f"{what} is unknown, and the expected state depends on it: {feature.reason}",
            hint="build the kernel with CONFIG_IKCONFIG_PROC, or put its .config beside the image",
        )
    return feature


def boot_layout(machine: MachineShape, facts: KernelFacts, baseline: GuestState) -> BootLayout:
    """Put together what is known of a booted guest.

    Raises UnsupportedError for a page size that the architecture does not have.
    """
    paging = machine.arch.paging.get(facts.page_size)
    if paging is None:
        known = ", ".join(format_size(size) for size in machine.arch.paging)
        raise UnsupportedError(
            f"page-size-{facts.page_size}",
            f"the guest uses pages of {facts.page_size} bytes, which memhp does not know for {machine.arch.name}",
            hint=f"known page sizes: {known}",
        )
    return BootLayout(machine=machine, facts=facts, paging=paging, kernel=_kernel(machine, facts), baseline=baseline)


def _kernel(machine: MachineShape, facts: KernelFacts) -> KernelLayout | None:
    if isinstance(facts.vmcoreinfo, NotObserved):
        return None
    shadow = features_of(facts).shadow
    if isinstance(shadow, NotObserved):
        return None
    try:
        return machine.arch.kernel_layout(facts.vmcoreinfo, shadow)
    except (KeyError, ValueError):
        return None
