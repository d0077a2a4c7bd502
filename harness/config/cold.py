# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory devices that are there when the guest boots, in the words of the verbs that plug them later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.config.verbs import TOP, VERBS
from harness.config.yaml import Value

#: a virtio-pmem is missing: nobody follows its namespaces through a boot
COLD_VERBS = ("plug-dimm", "plug-virtio-mem")


@dataclass(frozen=True, slots=True)
class ColdDevice:
    """``verb`` with its arguments (``Step.args``) as pairs, sizes in bytes."""

    verb: str
    pairs: tuple[tuple[str, Any], ...]

    @property
    def args(self) -> Mapping[str, Any]:
        """The arguments by name."""
        return dict(self.pairs)


def read_devices(value: Value) -> tuple[ColdDevice, ...]:
    """A list such as ``[{plug-dimm: {id: dimm0, size: 1G}}]``, in the order of QEMU's command line."""
    return tuple(_read_device(item) for item in value.items())


def _read_device(value: Value) -> ColdDevice:
    reader = value.mapping(*COLD_VERBS)
    if len(reader.values) != 1:
        value.fail("one device has exactly one verb", hint="one list item for each device")
    verb, body = next(iter(reader.values.items()))
    fields = VERBS[verb].fields
    given = body.mapping(*fields)
    pairs = tuple(
        (name, given.take(name, known.read) if known.required else given.take(name, known.read, known.default))
        for name, known in fields.items()
    )
    if dict(pairs).get("address") == TOP:
        given.values["address"].fail("where the room ends is not known before the machine is", hint="write a number")
    return ColdDevice(verb, pairs)
