# SPDX-License-Identifier: GPL-2.0-or-later
"""The paging modes of guests, and how to get each: a CPU model, a kernel of another flavour."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.arch.config_queries import Build
from harness.state import NotObserved
from harness.units import KIB


@dataclass(frozen=True, slots=True)
class PagingChoice:
    """``va_bits`` is how many bits of virtual addresses the kernel uses there.

    ``flavour`` is the flavour of the purpose-built kernel with this page size (None: the plain kernel), ``cpu`` the
    argument of QEMU's ``-cpu`` for it (None: the architecture's default).
    """

    name: str
    page_size: int
    va_bits: int
    flavour: str | None = None
    cpu: str | None = None


# FEAT_LPA2 gives 4K and 16K pages 52 bits, FEAT_LVA does so for 64K (Documentation/arch/arm64/memory.rst). QEMU's max
# has both and can lose the first; the Neoverse N1 has neither. Without them, one and the same kernel falls back to
# VA_BITS_MIN (arch/arm64/include/asm/memory.h, v6.12), which is 47 for 16K.
_WITHOUT_LPA2 = "max,pauth-impdef=on,lpa2=off"
_WITHOUT_LVA = "neoverse-n1"

#: architecture -> its paging modes by name, the default first
PAGING_CHOICES: Mapping[str, Mapping[str, PagingChoice]] = {
    arch: {choice.name: choice for choice in choices}
    for arch, choices in {
        "arm64": (
            PagingChoice("4k-52", 4 * KIB, 52),
            PagingChoice("4k-48", 4 * KIB, 48, cpu=_WITHOUT_LPA2),
            PagingChoice("16k-52", 16 * KIB, 52, "16k"),
            PagingChoice("16k-47", 16 * KIB, 47, "16k", _WITHOUT_LPA2),
            PagingChoice("64k-52", 64 * KIB, 52, "64k"),
            PagingChoice("64k-48", 64 * KIB, 48, "64k", _WITHOUT_LVA),
        ),
        # the satp modes of QEMU's rv64 (target/riscv/cpu.c, QEMU 10.0)
        "riscv64": (
            PagingChoice("sv57", 4 * KIB, 57),
            PagingChoice("sv48", 4 * KIB, 48, cpu="rv64,sv57=off"),
            PagingChoice("sv39", 4 * KIB, 39, cpu="rv64,sv57=off,sv48=off"),
        ),
    }.items()
}


def arm64_bits(note: Mapping[str, str]) -> int:
    """Bits of virtual addresses in use; raises KeyError, ValueError.

    VA_BITS is the configured size, TCR_EL1_T1SZ tells the size that the hardware allows; without it they are the same.
    """
    size = note.get("NUMBER(TCR_EL1_T1SZ)")
    return int(note["NUMBER(VA_BITS)"]) if size is None else 64 - int(size, 0)


def va_bits_min(bits: int, page_size: int) -> int:
    """VA_BITS_MIN, arch/arm64/include/asm/memory.h, v6.1 to v7.3: what a kernel for ``bits`` has on lesser hardware."""
    if bits <= 48:
        return bits
    return 47 if page_size == 16 * KIB else 48


def va_bits_of_build(build: Build) -> frozenset[int]:
    """Bits of virtual addresses that an arm64 kernel can have, by its configuration; empty if that does not tell."""
    bits = build.number("ARM64_VA_BITS")
    if bits is None or isinstance(bits, NotObserved):
        return frozenset()
    page_size = 16 * KIB if build.has("ARM64_16K_PAGES") is True else 4 * KIB
    return frozenset({bits, va_bits_min(bits, page_size)})


def riscv64_bits(note: Mapping[str, str]) -> int:
    """Bits of virtual addresses of the mode in satp; raises KeyError, ValueError."""
    return int(note["NUMBER(VA_BITS)"], 0)


#: architecture -> bits of virtual addresses that a booted kernel uses, from its vmcoreinfo note
#: (arch/*/kernel/vmcore_info.c); raises KeyError, ValueError
VA_BITS: Mapping[str, Callable[[Mapping[str, str]], int]] = {"arm64": arm64_bits, "riscv64": riscv64_bits}
