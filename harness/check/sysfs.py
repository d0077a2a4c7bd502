# SPDX-License-Identifier: GPL-2.0-or-later
"""BLK-*: memory blocks in sysfs."""

from __future__ import annotations

from collections.abc import Iterator

from harness.check.evidence import Evidence
from harness.check.registry import Broken, Outcome, invariant
from harness.state import MemoryBlock, NotObserved

SOURCE = "/sys/devices/system/memory"


def _pairs(evidence: Evidence) -> dict[int, tuple[MemoryBlock | None, MemoryBlock | None]] | NotObserved:
    observed = evidence.observed.blocks
    if isinstance(observed, NotObserved):
        return observed
    seen = {block.index: block for block in observed}
    wanted = {block.index: block for block in evidence.expected.blocks}
    return {index: (wanted.get(index), seen.get(index)) for index in sorted(seen.keys() | wanted.keys())}


@invariant(
    "BLK-1",
    "memory blocks are exactly those the ranges cover; phys_index, removable, valid_zones and node links agree",
    source="create_memory_block_devices, valid_zones_show (drivers/base/memory.c, v6.12)",
    motive="93866f55f7e2: mm/memory_hotplug: fix memory block reference leak on remove",
    reads=(SOURCE,),
    needs=("hotplug",),
)
def blk_1(evidence: Evidence) -> Outcome:
    pairs = _pairs(evidence)
    if isinstance(pairs, NotObserved):
        return pairs
    return list(_block_differences(pairs, evidence.layout.facts.memory_block_size, evidence.layout.block_size))


def _block_differences(
    pairs: dict[int, tuple[MemoryBlock | None, MemoryBlock | None]], size: int, wanted_size: int
) -> Iterator[Broken]:
    if size != wanted_size:
        yield Broken("block_size_bytes", f"{wanted_size:x}", f"{size:x}", SOURCE)
    for index, (wanted, seen) in pairs.items():
        where = f"memory{index}"
        if wanted is None or seen is None:
            yield Broken(
                where, "absent" if wanted is None else "present", "absent" if seen is None else "present", SOURCE
            )
            continue
        if seen.phys_index != wanted.phys_index:
            yield Broken(f"{where}/phys_index", f"{wanted.phys_index:08x}", f"{seen.phys_index:08x}", SOURCE)
        if seen.removable not in (None, wanted.removable):
            yield Broken(f"{where}/removable", str(wanted.removable), str(seen.removable), SOURCE)
        if seen.valid_zones not in (None, wanted.valid_zones):
            yield Broken(f"{where}/valid_zones", _words(wanted.valid_zones), _words(seen.valid_zones), SOURCE)
        if seen.nodes != wanted.nodes:
            yield Broken(f"{where}/node*", _words(wanted.nodes), _words(seen.nodes), SOURCE)


def _words(values: tuple[object, ...] | None) -> str:
    return " ".join(map(str, values or ())) or "none"


@invariant(
    "BLK-2",
    "a block follows the requested online type; the auto-online policy, and a kmem device's state, are what was set",
    source="state_store, auto_online_blocks_store (drivers/base/memory.c, v6.12); state_show (drivers/dax/kmem.c, 7.3)",
    motive="a block that is online unasked hides every later refusal",
    reads=("/sys/bus/dax/devices",),
    needs=("hotplug",),
)
def blk_2(evidence: Evidence) -> Outcome:
    pairs = _pairs(evidence)
    if isinstance(pairs, NotObserved):
        return pairs
    broken = [
        Broken(f"memory{index}/state", wanted.state, seen.state, SOURCE)
        for index, (wanted, seen) in pairs.items()
        if wanted is not None and seen is not None and wanted.state != seen.state
    ]
    broken += _dax_states(evidence)
    policy = evidence.observed.auto_online
    if isinstance(policy, NotObserved):
        return broken or policy
    if policy != evidence.expected.auto_online:
        broken.append(Broken("auto_online_blocks", evidence.expected.auto_online, policy, SOURCE))
    return broken or (evidence.observed.dax if isinstance(evidence.observed.dax, NotObserved) else [])


def _dax_states(evidence: Evidence) -> Iterator[Broken]:
    """daxX.Y/state is there while the kmem driver has the device, in kernels that have the file at all."""
    seen = evidence.observed.dax
    for device in () if isinstance(seen, NotObserved) else seen:
        wanted = evidence.expected.dax_states.get(device.name)
        if device.state is not None and device.state != wanted:
            yield Broken(f"{device.name}/state", wanted or "absent", device.state, "/sys/bus/dax/devices")
