# SPDX-License-Identifier: GPL-2.0-or-later
"""What the harness did to a guest, as values that can be logged, saved and replayed through the model.

An action stands for something that *took effect*: a refused request is recorded by its step, not here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

#: memory_block_online types of sysfs, and what auto_online_blocks accepts beside ``offline``
ONLINE_TYPES = ("online", "online_kernel", "online_movable")


@dataclass(frozen=True, slots=True)
class PlugDimm:
    """pc-dimm ``id`` of ``size`` bytes was hot-added; ``slot``/``address`` None: QEMU chose.

    ``kernel_added`` is False where the kernel must refuse the range although QEMU accepted it (a DIMM that is not
    made of whole memory blocks), so that no state in the guest may change.
    """

    id: str
    size: int
    node: int = 0
    slot: int | None = None
    address: int | None = None
    kernel_added: bool = True


@dataclass(frozen=True, slots=True)
class PlugVirtioMem:
    """virtio-mem-pci ``id`` with a region of ``max_size`` bytes was hot-plugged below root port ``port``.

    ``address`` None: QEMU chose.
    """

    id: str
    max_size: int
    block_size: int
    requested: int = 0
    node: int = 0
    port: str = ""
    address: int | None = None


@dataclass(frozen=True, slots=True)
class PlugVirtioPmem:
    """virtio-pmem-pci ``id`` of ``size`` bytes was hot-plugged below root port ``port``."""

    id: str
    size: int
    port: str = ""


@dataclass(frozen=True, slots=True)
class Unplug:
    """The device ``id`` is gone (DEVICE_DELETED)."""

    id: str


@dataclass(frozen=True, slots=True)
class Resize:
    """virtio-mem ``id`` was asked for ``requested`` bytes and was given time to settle."""

    id: str
    requested: int


@dataclass(frozen=True, slots=True)
class SetBlock:
    """Memory block ``index`` went to ``state`` (one of ONLINE_TYPES, or offline)."""

    index: int
    state: str


@dataclass(frozen=True, slots=True)
class SetAutoOnline:
    """auto_online_blocks was set to ``policy`` (offline or one of ONLINE_TYPES)."""

    policy: str


@dataclass(frozen=True, slots=True)
class SetPmemMode:
    """virtio-pmem ``id`` went to ``mode`` (raw, devdax, kmem); its memmap is in ``map`` (mem, dev), ``align`` bytes."""

    id: str
    mode: str
    map: str = "mem"
    align: int = 2 << 20


@dataclass(frozen=True, slots=True)
class SetDaxState:
    """``state`` (unplugged, or one of ONLINE_TYPES) was written to daxX.Y/state of virtio-pmem ``id`` in kmem mode."""

    id: str
    state: str


@dataclass(frozen=True, slots=True)
class StartLoad:
    """A load of ``kind`` was started: what it has done to the kernel's page tables may stay when it rests or ends."""

    kind: str


@dataclass(frozen=True, slots=True)
class Reboot:
    """The guest came up once more, with every device still plugged: a new kernel, of which nothing is known yet."""


Action = (
    PlugDimm
    | PlugVirtioMem
    | PlugVirtioPmem
    | Unplug
    | Resize
    | SetBlock
    | SetAutoOnline
    | SetPmemMode
    | SetDaxState
    | StartLoad
    | Reboot
)

_BY_NAME: dict[str, type[Action]] = {
    kind.__name__: kind
    for kind in (
        *(PlugDimm, PlugVirtioMem, PlugVirtioPmem, Unplug, Resize, SetBlock, SetAutoOnline, SetPmemMode),
        *(SetDaxState, StartLoad, Reboot),
    )
}


def action_to_json(action: Action) -> dict[str, object]:
    """Return ``action`` as a JSON object with its type under ``action``."""
    return {"action": type(action).__name__, **dataclasses.asdict(action)}


def action_from_json(value: Mapping[str, object]) -> Action:
    """Inverse of action_to_json; raises ValueError for anything it did not write."""
    fields = dict(value)
    name = fields.pop("action", None)
    kind = _BY_NAME.get(str(name))
    if kind is None:
        raise ValueError(f"unknown action {name!r}")
    try:
        return cast(Callable[..., Action], kind)(**fields)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from None
