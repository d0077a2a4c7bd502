# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel must have for a guest of memhp's to come up at all: said before it is built or booted."""

from __future__ import annotations

from collections.abc import Mapping

from harness.arch import ArchSpec
from harness.errors import UsageError

#: option -> what it is for
BOOT_NEEDS = {
    "BLK_DEV_INITRD": "the guest's root is an initrd",
    "RD_GZIP": "the initrd is gzipped",
    "BINFMT_ELF": "its programs",
    "BINFMT_SCRIPT": "/init is a script",
    "PROC_FS": "/proc",
    "SYSFS": "/sys",
    "DEVTMPFS": "/dev",
    "INET": "SSH",
    "PCI": "the network card",
    "VIRTIO_PCI": "the network card",
    "VIRTIO_NET": "the network card",
}
#: what the guest's init can load
_DRIVERS = ("VIRTIO_PCI", "VIRTIO_NET")
#: the guest's console, a line of which says that it is up
CONSOLES = {"ttyAMA0": "SERIAL_AMBA_PL011_CONSOLE", "ttyS0": "SERIAL_8250_CONSOLE"}


def missing_to_boot(arch: ArchSpec, config: Mapping[str, str]) -> dict[str, str]:
    """What ``config`` lacks, and what each is for; drivers may be modules."""
    needs = BOOT_NEEDS | {CONSOLES[arch.console]: f"the console {arch.console}"}
    return {
        name: why
        for name, why in needs.items()
        if config.get(name) != "y" and not (name in _DRIVERS and config.get(name) == "m")
    }


def require_bootable(arch: ArchSpec, config: Mapping[str, str], name: str, remedy: str) -> None:
    """Raise UsageError naming what the kernel ``name`` lacks; ``remedy`` says how to get it."""
    missing = missing_to_boot(arch, config)
    if missing:
        told = ", ".join(f"CONFIG_{option} ({why})" for option, why in missing.items())
        raise UsageError(
            f"{name} cannot boot a guest of memhp's: it has no {told}",
            hint=f"{remedy}; a driver that is a module comes with --modules DIR",
        )
