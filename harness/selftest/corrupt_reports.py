# SPDX-License-Identifier: GPL-2.0-or-later
"""Corruptions of QEMU's answers, of the console, and of the reported ends of steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

from harness.check import DumpReport, Evidence, ResizeReport, Slope, TouchReport, UnplugReport
from harness.selftest.corruption import Case, Edit, TextCorruption, appended, in_json, sources
from harness.selftest.scene import Inapplicable, Scene
from harness.units import MIB


def _device(kind: str, change: Callable[[Scene, dict[str, Any]], dict[str, Any]]) -> Edit:
    """Change the report of the first device of a kind."""

    def apply(scene: Scene, devices: list[dict[str, Any]]) -> list[dict[str, Any]]:
        id = scene.device(kind).id
        return [{**item, **change(scene, item)} if item["id"] == id else item for item in devices]

    return in_json(apply)


def _moved(scene: Scene, item: dict[str, Any]) -> dict[str, Any]:
    return {"range": [address + scene.block_size for address in item["range"]]}


def _lost(scene: Scene, devices: list[Any]) -> list[Any]:
    if not devices:
        raise Inapplicable("nothing is plugged")
    return devices[1:]


def _twice(scene: Scene, devices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    size = 2 * scene.block_size
    if not devices:
        raise Inapplicable("nothing is plugged")
    start = max(item["range"][1] for item in devices)
    return [*devices, {**devices[0], "id": "intruder", "range": [start, start + size]}]


def _backend_left(scene: Scene, backends: dict[str, int]) -> dict[str, int]:
    return {**backends, "mem-intruder": 0}


def _backend_lost(scene: Scene, backends: dict[str, int]) -> dict[str, int]:
    lost = scene.device("dimm").backend
    return {id: used for id, used in backends.items() if id != lost}


def _backend_full(scene: Scene, backends: dict[str, int]) -> dict[str, int]:
    device = scene.device("virtio-mem")
    return {**backends, device.backend: device.size + 4096}


def steps(*cases: Case[Callable[[Scene], Evidence]]) -> tuple[TextCorruption, ...]:
    """Corruptions of the report of a step."""
    return tuple(TextCorruption(case.name, "step report", case.summary, case.invariants, case.how) for case in cases)


def _unplugs(*endings: str, refused: bool = False) -> Callable[[Scene], Evidence]:
    """Change the end of the step's first unplug."""

    def edit(scene: Scene) -> Evidence:
        unplugs = scene.evidence.unplugs
        if not unplugs:
            raise Inapplicable("nothing was unplugged")
        return scene.with_reports(unplugs=(UnplugReport(unplugs[0].id, endings, refused), *unplugs[1:]))

    return edit


def _resize(short: int, refused: str | None = None) -> Callable[[Scene], Evidence]:
    """The virtio-mem device was asked for its current size, and ended ``short`` bytes away from it."""

    def edit(scene: Scene) -> Evidence:
        device = scene.device("virtio-mem")
        requested = device.requested_size or 0
        return scene.with_reports(resizes=(ResizeReport(device.id, requested, requested - short, refused),))

    return edit


def _touched(change: Callable[[TouchReport], TouchReport]) -> Callable[[Scene], Evidence]:
    def edit(scene: Scene) -> Evidence:
        if not scene.evidence.touches or not scene.evidence.touches[0].used:
            raise Inapplicable("no hot-added memory was touched")
        first, *others = scene.evidence.touches
        return scene.with_reports(touches=(change(first), *others))

    return edit


def _dump_lacks(scene: Scene) -> Evidence:
    return scene.with_reports(dumps=(DumpReport("/proc/kcore", scene.online(), ()),))


def _dump_holds(scene: Scene) -> Evidence:
    gone = scene.removed()
    return scene.with_reports(dumps=(DumpReport("/proc/kcore", gone, (gone,)),))


def _leak(scene: Scene) -> Evidence:
    return scene.with_reports(slopes=(Slope("slab kernfs_node_cache", Fraction(128), "bytes"),))


def _failed(scene: Scene) -> Evidence:
    """An action that changed something is said to have failed."""
    before = scene.evidence.before
    if before is None or before.blocks == scene.evidence.observed.blocks:
        raise Inapplicable("the step changed no memory block")
    return scene.with_reports(failed=True)


#: name -> a kernel log line that reports trouble, one for each spelling (v6.12)
_TROUBLE = {
    "warning": "WARNING: CPU: 0 PID: 61 at mm/memory_hotplug.c:1 remove_memory_block+0x1c/0x80",
    "bug": "kernel BUG at mm/sparse-vmemmap.c:1!",
    "bad-page": "BUG: Bad page state in process kworker/u8:0  pfn:80000",
    "oops-arm64": "Internal error: Oops: 0000000096000004 [#1] SMP",
    "oops-riscv": "Oops [#1]",
    "fault": "Unable to handle kernel paging request at virtual address ffff800080000000",
    "panic": "Kernel panic - not syncing: Fatal exception",
    "kasan": "BUG: KASAN: slab-use-after-free in memory_block_release+0x1c/0x80",
    "kfence": "BUG: KFENCE: use-after-free read in memory_block_release+0x1c/0x80",
    "lockdep": "WARNING: possible circular locking dependency detected",
    "rcu-stall": "rcu: INFO: rcu_sched self-detected stall on CPU",
    "hung-task": "INFO: task kworker/u8:0:11 blocked for more than 120 seconds.",
    "soft-lockup": "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:61]",
}

_DEVICES = sources(
    "devices",
    Case("device-moved", "a DIMM has another address", "QMP-1", _device("dimm", _moved)),
    Case("device-lost", "a device is missing", "QMP-1", in_json(_lost)),
    Case("device-intruder", "an unexpected device is there", "QMP-1", in_json(_twice)),
    Case(
        "device-slot",
        "a DIMM has another slot",
        "QMP-1",
        _device("dimm", lambda scene, item: {"slot": item["slot"] + 1}),
    ),
    Case(
        "device-node",
        "a device belongs to another node",
        "QMP-1",
        _device("dimm", lambda scene, item: {"node": item["node"] + 1}),
    ),
    Case(
        "device-plugged-size",
        "virtio-mem has plugged one block too few",
        "QMP-1",
        _device("virtio-mem", lambda scene, item: {"size": item["size"] - item["block_size"]}),
    ),
    Case(
        "device-requested-size",
        "virtio-mem has another requested size",
        "QMP-1",
        _device("virtio-mem", lambda scene, item: {"requested_size": 0}),
    ),
)
_BACKENDS = sources(
    "backends",
    Case("backend-left", "a backend outlives its device", "MEM-2", in_json(_backend_left)),
    Case("backend-lost", "a backend is gone before its device", "MEM-2", in_json(_backend_lost)),
    Case("backend-too-full", "unplugged blocks still use host memory", "MEM-2", in_json(_backend_full)),
)
_STEPS = steps(
    Case("unplug-ended-twice", "an unplug ended twice", "QMP-2", _unplugs("DEVICE_DELETED", "MEM_UNPLUG_ERROR")),
    Case("unplug-never-ended", "an unplug never ended", "QMP-2", _unplugs()),
    Case(
        "unplug-refused-but-gone",
        "an unplug ended with the device's removal, but the device is still there",
        "QMP-2",
        _unplugs("DEVICE_DELETED", refused=True),
    ),
    Case("resize-short", "a resize stopped short", "QMP-3", _resize(2 * MIB)),
    Case("resize-refused-but-done", "QEMU refused a resize, but performed it", "QMP-3", _resize(-2 * MIB, "not now")),
    Case(
        "unplug-deleted-without-event", "a device that the guest keeps is gone", "QMP-2", _unplugs("ACPI_OST_REFUSED")
    ),
    Case(
        "touch-mismatch",
        "memory has lost its content",
        "LIV-1",
        _touched(lambda report: replace(report, mismatches=report.mismatches + 1)),
    ),
    Case(
        "touch-never-used",
        "online memory is never allocated",
        "LIV-1",
        _touched(lambda report: replace(report, used=tuple((where, 0) for where, _ in report.used))),
    ),
)
_LOG = sources(
    "dmesg",
    *(
        Case(f"log-{name}", "the kernel complains", "LOG-1", appended(f"<4>[   99.000000] {line}"))
        for name, line in _TROUBLE.items()
    ),
    Case(
        "block-kept-for-nothing",
        "a block is kept for a leaf that ends with it",
        "BLK-3",
        appended("<4>[   99.000000] [40200000 48000000] splits a leaf entry in vmemmap"),
    ),
)
_ENDS = steps(
    Case("dump-lacks-memory", "a crash dump lacks memory that was added", "IOM-4", _dump_lacks),
    Case("dump-holds-removed", "a crash dump holds memory that was removed", "IOM-4", _dump_holds),
    Case("slope", "each round of a soak leaves an object of sysfs behind", "MEM-3", _leak),
    Case("failure-not-undone", "an action that failed leaves something behind", "RBK-1", _failed),
    Case(
        "console-death",
        "the kernel dies in the step",
        "LOG-1",
        lambda scene: scene.with_reports(alarms=(_TROUBLE["panic"],)),
    ),
)
_CONSOLE = sources(
    "console",
    Case(
        "console-oops",
        "the console shows an Oops that the log lacks",
        "LOG-1",
        in_json(lambda scene, lines: [*lines, _TROUBLE["oops-riscv"]]),
    ),
)
CORRUPTIONS = (*_DEVICES, *_BACKENDS, *_STEPS, *_LOG, *_ENDS, *_CONSOLE)
