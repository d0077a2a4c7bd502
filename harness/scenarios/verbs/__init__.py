# SPDX-License-Identifier: GPL-2.0-or-later
"""All verbs, one class each; one file per group."""

from __future__ import annotations

import dataclasses

from harness.config.cold import ColdDevice
from harness.scenarios.verbs import blocks, dimm, fault, load, memory, plugging, pmem, reboot, virtio_mem
from harness.scenarios.verbs.verb import Verb

_GROUPS = (dimm, virtio_mem, pmem, plugging, blocks, memory, load, fault, reboot)
#: every verb by its name: the classes of the groups that have one
VERBS: dict[str, type[Verb]] = {
    kind.name: kind
    for group in _GROUPS
    for kind in vars(group).values()
    if isinstance(kind, type) and issubclass(kind, Verb) and "name" in vars(kind) and kind.__module__ == group.__name__
}


def plugging_of(device: ColdDevice) -> Verb:
    """The step that would plug a device that is there when the guest boots."""
    return VERBS[device.verb](**{field.name: getattr(device, field.name) for field in dataclasses.fields(device)})
