# SPDX-License-Identifier: GPL-2.0-or-later
"""The options that a kernel needs to boot a memhp guest, checked before it is built or booted."""

from __future__ import annotations

from collections.abc import Mapping

from harness.arch import ArchSpec
from harness.errors import UsageError

#: option -> its purpose
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
#: drivers that the guest's init can load
_DRIVERS = ("VIRTIO_PCI", "VIRTIO_NET")
#: the drivers of the guest's console, on which a line says that it is up
CONSOLES = {"ttyAMA0": "SERIAL_AMBA_PL011_CONSOLE", "ttyS0": "SERIAL_8250_CONSOLE"}


def missing_to_boot(arch: ArchSpec, config: Mapping[str, str]) -> dict[str, str]:
    """The options that ``config`` lacks, and their purpose; drivers may be modules."""
    needs = BOOT_NEEDS | {CONSOLES[arch.console]: f"the console {arch.console}"}
    return {
        name: why
        for name, why in needs.items()
        if config.get(name) != "y" and not (name in _DRIVERS and config.get(name) == "m")
    }


def require_bootable(arch: ArchSpec, config: Mapping[str, str], name: str, remedy: str) -> None:
    """Raise UsageError naming the options that the kernel ``name`` lacks; ``remedy`` says how to get them."""
    missing = missing_to_boot(arch, config)
    if missing:
        told = ", ".join(f"CONFIG_{option} ({why})" for option, why in missing.items())
        raise UsageError(
            f"{name} cannot boot a memhp guest: it lacks {told}",
            hint=f"{remedy}; for drivers that are modules, add --modules DIR",
        )
