# SPDX-License-Identifier: GPL-2.0-or-later
"""Toy kernels: a fake Image, modules, a source tree that consists of a Makefile."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

from harness.arch import ARM64, ArchSpec
from harness.artifacts.kconfig_check import BOOT_NEEDS, CONSOLES

BANNER = b"\0Linux version 6.12.107-hp (memhp@memhp) (gcc) #1\n\0"
#: what a guest needs to boot
BOOTABLE = "".join(f"CONFIG_{name}=y\n" for name in (*BOOT_NEEDS, *CONSOLES.values()))
CONFIG = f"{BOOTABLE}CONFIG_DEV_DAX_KMEM=y\nCONFIG_X=m\n"


def image(arch: ArchSpec = ARM64, *, config: str | None = CONFIG) -> bytes:
    offset, magic = arch.image_magic
    data = bytearray(4096)
    data[:2] = b"MZ"
    data[offset : offset + len(magic)] = magic
    data += BANNER
    if config is not None:
        data += b"IKCFG_ST" + gzip.compress(config.encode(), mtime=0) + b"IKCFG_ED"
    return bytes(data) + bytes(4096)


def module(*needs: str, release: str = "6.12-x") -> bytes:
    magic = f"vermagic={release} SMP preempt mod_unload aarch64".encode()
    return b"\x7fELF\0depends=" + ",".join(needs).encode() + b"\0name=x\0" + magic + b"\0"


def module_tree(root: Path) -> Path:
    """Create ``lib/modules/RELEASE`` below ``root``."""
    path = root / "lib" / "modules" / "6.12-x"
    (path / "kernel" / "drivers").mkdir(parents=True)
    for name, data in {
        "virtio_net.ko.xz": lzma.compress(module("net_failover", "failover")),
        "net_failover.ko": module("failover"),
        "failover.ko.gz": gzip.compress(module()),
        "virtio-mem.ko": module(),
        "unwanted.ko": module(),
    }.items():
        (path / "kernel" / "drivers" / name).write_bytes(data)
    (path / "modules.builtin").write_text("kernel/drivers/virtio/virtio.ko\nkernel/drivers/virtio/virtio-pci.ko\n")
    return path


#: a kernel whose only source is a Makefile: configuring accepts all options except CONFIG_LOST
TOY = """\
VERSION = 6
PATCHLEVEL = 12
SUBLEVEL = 117
O ?= .
tinyconfig:
\techo '# tiny' > $(O)/.config
olddefconfig:
\ttac $(O)/.config | awk -F= '!seen[$$1]++' | tac | grep -v LOST > $(O)/new
\tcmp -s $(O)/new $(O)/.config || cp $(O)/new $(O)/.config
\trm $(O)/new
Image:
\t@echo '  CC      mm/slub.o'
\tmkdir -p $(O)/arch/arm64/boot $(O)/include/config
\techo image > $(O)/arch/arm64/boot/Image
\techo 6.12-hp > $(O)/include/config/kernel.release
modules:
\tmkdir -p $(O)/drivers
\tcp $(MODULE) $(O)/drivers/virtio_mem.ko
\techo drivers/virtio_mem.o > $(O)/modules.order
"""
