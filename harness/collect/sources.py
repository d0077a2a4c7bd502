# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be read of a guest: the names of the sources, and what the kernel lacks if one is missing."""

from __future__ import annotations

#: sources of guest-scripts/collect that change while the kernel runs
STATE_SOURCES = (
    "boot_id",
    "uptime",
    "iomem",
    "blocks",
    "auto_online",
    "meminfo",
    "zoneinfo",
    "slabinfo",
    "dax",
    "dmesg",
    "vmstat",
    "ptdump",
)
#: sources that do not change
FACT_SOURCES = ("release", "cmdline", "auxv", "block_size", "config", "kcore", "parameters", "settings")

#: raw name of the list of sources that were not read: lines of ``name reason``
ABSENT = "absent"
#: sources from QEMU and the console, stored as JSON
HOST_SOURCES = ("devices", "backends", "console")

#: why a source is missing
MISSING = {
    "iomem": "this kernel has no /proc/iomem",
    "blocks": "this kernel has no CONFIG_MEMORY_HOTPLUG",
    "auto_online": "this kernel has no CONFIG_MEMORY_HOTPLUG",
    "block_size": "this kernel has no CONFIG_MEMORY_HOTPLUG",
    "meminfo": "this kernel has no /proc/meminfo",
    "vmstat": "this kernel has no /proc/vmstat",
    "zoneinfo": "this kernel has no /proc/zoneinfo",
    "slabinfo": "this kernel has no CONFIG_SLUB_DEBUG",
    "ptdump": "this kernel has no CONFIG_PTDUMP_DEBUGFS",
    "dmesg": "this kernel has no CONFIG_PRINTK",
    "kcore": "this kernel has no CONFIG_PROC_KCORE",
}
