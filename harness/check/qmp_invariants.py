# SPDX-License-Identifier: GPL-2.0-or-later
"""QMP-*: QEMU's memory devices, and how each request ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from harness.check.evidence import Evidence
from harness.check.registry import Broken, invariant, observed, paired
from harness.state import MemoryDevice
from harness.units import format_size


def _show(device: MemoryDevice | None) -> str:
    if device is None:
        return "absent"
    fields = {field.name: getattr(device, field.name) for field in dataclasses.fields(device)}
    return " ".join(f"{name}={value}" for name, value in fields.items() if value is not None and name != "id")


@invariant(
    "QMP-1",
    "query-memory-devices equals the actions so far: address, size, node, slot, requested-size, plugged size",
    source="hw/mem/memory-device.c, memory_device_get_free_addr (QEMU 10.0)",
    motive="a device placed elsewhere, or left behind, makes every later expectation wrong",
)
def qmp_1(evidence: Evidence) -> Iterator[Broken]:
    devices = paired(evidence.expected.devices, observed(evidence.observed.devices), lambda device: device.id)
    for id, (wanted, seen) in devices.items():
        if wanted != seen:
            yield Broken(id, _show(wanted), _show(seen), "query-memory-devices")


@invariant(
    "QMP-2",
    "each unplug request ends in exactly one of DEVICE_DELETED, MEM_UNPLUG_ERROR, DEVICE_UNPLUG_GUEST_ERROR "
    "or an ACPI _OST refusal, and the device is gone after the first of these alone",
    source="docs/specs/acpi_mem_hotplug.rst, qapi/qdev.json (QEMU 10.0)",
    motive="an unplug that ends twice or never leaves QEMU and guest with different ideas of the memory",
    when=lambda evidence: evidence.unplugs,
)
def qmp_2(evidence: Evidence) -> Iterator[Broken]:
    for report in evidence.unplugs:
        if len(report.endings) != 1:
            yield Broken(report.id, "exactly one ending", ", ".join(report.endings) or "none", "QMP events")
        elif (report.endings[0] == "DEVICE_DELETED") is report.refused:
            there = "still there" if report.refused else "gone"
            yield Broken(
                report.id, "gone after DEVICE_DELETED alone", f"{report.endings[0]}, and {there}", "QMP events"
            )


@invariant(
    "QMP-3",
    "each resize converges to requested-size (a shrink of kernel memory may stop short, and is no verdict then); "
    "a request that QEMU refuses changes nothing",
    source="drivers/virtio/virtio_mem.c, virtio_mem_run_wq (v6.12); hw/virtio/virtio-mem.c (QEMU 10.0)",
    motive="f55484fd7be9: virtio-mem: check if the config changed before fake offlining memory",
    when=lambda evidence: evidence.resizes,
)
def qmp_3(evidence: Evidence) -> Iterator[Broken]:
    wanted = {device.id: device for device in evidence.expected.devices}
    for report in evidence.resizes:
        target = wanted[report.id].size if report.id in wanted else 0
        if report.size != target:
            yield Broken(report.id, format_size(target), format_size(report.size), "query-memory-devices")
