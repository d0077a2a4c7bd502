# SPDX-License-Identifier: GPL-2.0-or-later
# What the QEMU that memhp builds for riscv64 contains: one board and the devices memhp puts on it.
# The board selects the rest by itself: PLIC, APLIC, IMSIC, 16550 UART, pflash, fw_cfg, ACPI GED, PCIe host bridge, pc-dimm.
CONFIG_RISCV_VIRT=y

# hot-plug slots
CONFIG_PCIE_PORT=y
CONFIG_VIRTIO_PCI=y

# memory devices
CONFIG_VIRTIO_MEM=y
CONFIG_VIRTIO_PMEM=y

# around them
CONFIG_VIRTIO_BALLOON=y
CONFIG_VIRTIO_BLK=y
CONFIG_VIRTIO_NET=y
CONFIG_VIRTIO_RNG=y
CONFIG_VIRTIO_SERIAL=y
