# SPDX-License-Identifier: GPL-2.0-or-later
"""memhp: drives Linux memory hotplug in QEMU guests and proves the kernel's state after every step."""

__version__ = "0.1.0"
