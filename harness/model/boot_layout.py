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
    """The guest as QEMU was configured: bytes of boot RAM per node, and the limits for memory devices.

    ``ports`` are the root ports for hot-plugged PCI devices, in order of creation; ``virtio_devices`` is the number of
    virtio devices at boot; ``acpi`` is True for ACPI, False for a device tree. ``cpu_nodes`` are the nodes with a CPU,
    None if all have one. ``cold`` are the memory devices present at boot, in the order in which a kernel finds them.
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
        """True if ``node`` has a CPU, and therefore stays online without memory."""
        return self.cpu_nodes is None or node in self.cpu_nodes

    def device_window(self) -> AddrRange:
        """Where QEMU places memory devices (virt_set_memmap, hw/arm/virt.c, QEMU 10.0)."""
        start = align_up(self.arch.ram_base + self.memory, self.arch.device_memory_alignment)
        return AddrRange.sized(start, self.max_memory - self.memory + self.slots * self.arch.slot_slack)


@dataclass(frozen=True)
class BootLayout:
    """One booted guest: machine, kernel and the state after boot.

    ``kernel`` is None if vmcoreinfo could not be read: what depends on virtual addresses is then not observed.
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
        """Bytes of a pageblock, the smallest unit that virtio-mem unplugs (include/linux/pageblock-flags.h, v6.12).

        This and every other value that depends on a kernel feature raises UnsupportedError if the feature is unknown.
        """
        return self.page_size << known(self.features.pageblock_order, "the size of a pageblock")

    @functools.cached_property
    def features(self) -> KernelFeatures:
        """The features of this kernel."""
        return features_of(self.facts)

    @functools.cached_property
    def maps_pages_only(self) -> bool | NotObserved:
        """True if this kernel maps RAM by single pages (rodata=full, debug_pagealloc, KFENCE), judging by boot RAM.

        The linear alias of the kernel's text and rodata is mapped by blocks in any case: read-only runs do not count.
        """
        tables, dump = self.baseline.host_tables, self.baseline.page_tables
        if self.kernel is None:
            return NotObserved("the kernel's virtual layout is unknown")
        if isinstance(tables, NotObserved) and isinstance(dump, NotObserved):
            return NotObserved(f"page tables were not observed after boot: {tables.reason}; {dump.reason}")
        observed = dump if isinstance(tables, NotObserved) else tables
        assert not isinstance(observed, NotObserved)
        ram, writable = [self.kernel.linear(r) for r in self.machine.node_ranges()], self.machine.arch.writable_word
        return all(
            leaf.level == "PTE" and "CON" not in leaf.attrs
            for leaf in observed.mappings
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
        """Pages of struct page_ext that an online section has, which the kernel counts as memmap.

        They exist if a user of page_ext such as page_owner is built in; only the kernel log gives the size
        (page_ext_init, init_section_page_ext; mm/page_ext.c, v6.12).
        """
        dmesg = self.baseline.dmesg
        matches = () if isinstance(dmesg, NotObserved) else (_PAGE_EXT.fullmatch(line.text) for line in dmesg)
        total = next((int(found[1]) for found in matches if found is not None), 0)
        sections = sum(r.align_outward(self.block_size).size for r in self.machine.node_ranges()) // self.block_size
        return -(-total // sections // self.page_size)

    def folded_memmap(self, align: int) -> int:
        """Bytes of struct pages of one device-dax page of ``align`` bytes if this kernel folds them, else 0.

        A folded compound page keeps two pages of vmemmap, and all others map to the second one; the memmap must be in
        RAM (__vmemmap_can_optimize, vmemmap_populate_compound_pages; v6.12).
        """
        size = self.machine.arch.max_struct_page if self.kernel is None else self.kernel.struct_page_size
        optimizes = known(self.features.folds_dax, "whether device-dax memmap is folded") and size & (size - 1) == 0
        compound = self.memmap_bytes(AddrRange.sized(0, align))
        return compound if optimizes and compound > 2 * self.page_size else 0

    def folds_hugetlb(self) -> bool:
        """True if the memmap of huge pages is folded (hugetlb_vmemmap_optimizable, mm/hugetlb_vmemmap.c, v6.12).

        Later changes of the sysctl vm.hugetlb_optimize_vmemmap are not tracked.
        """
        size = self.machine.arch.max_struct_page if self.kernel is None else self.kernel.struct_page_size
        folds = known(self.features.folds_hugetlb, "whether the memmap of huge pages is folded")
        return folds and size & (size - 1) == 0

    def self_hosted(self, size: int) -> int:
        """Bytes at the start of each block of a DIMM of ``size`` that hold its own struct pages, 0 if none do.

        mhp_supports_memmap_on_memory, memory_block_memmap_on_memory_pages (mm/memory_hotplug.c, v6.12): the
        memory_hotplug.memmap_on_memory parameter is on, and the struct pages fill whole PMDs and pageblocks; old
        kernels also require a DIMM of one block.
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
        """Boot RAM that the kernel knows of, without the memory that firmware keeps.

        Determined by the entries System RAM and reserved (memory without linear map) of /proc/iomem, if it was read
        (request_standard_resources, arch/arm64/kernel/setup.c; init_resources, arch/riscv/kernel/setup.c; v6.12).
        """
        nodes, iomem = self.machine.node_ranges(), self.baseline.resources
        if isinstance(iomem, NotObserved):
            return nodes
        listed = [entry.range for entry in iomem if entry.name.lower() in ("system ram", "reserved")]
        return intersect_ranges(nodes, listed)

    def node_of_pmem(self) -> int:
        """The node of a region's ZONE_DEVICE: that of the first boot memory, regardless of the SRAT.

        memory_add_physaddr_to_nid (mm/numa_memblks.c, v6.12) takes the first that firmware or device tree listed; a
        kernel without CONFIG_NUMA_KEEP_MEMINFO always takes node 0.
        """
        backwards = not self.machine.acpi and self.machine.arch.dt_lists_nodes_backwards
        listed = [node for node, memory in enumerate(self.machine.node_memory) if memory]
        return listed[-1 if backwards else 0] if listed and self._keeps_meminfo() else 0

    def target_node_of_pmem(self) -> int:
        """The node to which kmem adds a region: that of the device window in the SRAT, which is the last one.

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
    """The feature if it was probed; otherwise raises UnsupportedError, saying that ``what`` is unknown."""
    if isinstance(feature, NotObserved):
        raise UnsupportedError(
            "kernel-features",
            f"{what} is unknown, and the expected state depends on it: {feature.reason}",
            hint="build the kernel with CONFIG_IKCONFIG_PROC, or put its .config beside the image",
        )
    return feature


def boot_layout(machine: MachineShape, facts: KernelFacts, baseline: GuestState) -> BootLayout:
    """The layout of a booted guest.

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
