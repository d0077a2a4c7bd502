# SPDX-License-Identifier: GPL-2.0-or-later
"""The harness's actions on a guest, as values that can be logged, saved and replayed through the model.

An action stands for something that *took effect*: a refused request is recorded by its step, not here. Actions on one
kind of device are in ``harness.model.devices``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

#: online types of a memory block in sysfs, which auto_online_blocks accepts beside ``offline``
ONLINE_TYPES = ("online", "online_kernel", "online_movable")


@dataclass(frozen=True, slots=True)
class Action:
    """Base of all actions."""


ActionT = TypeVar("ActionT", bound=Action)

#: every action by the name under which it is saved
ACTIONS: dict[str, type[Action]] = {}


def action(kind: type[ActionT]) -> type[ActionT]:
    """Class decorator of an action, which is saved under its class name."""
    ACTIONS[kind.__name__] = kind
    return kind


@action
@dataclass(frozen=True, slots=True)
class Unplug(Action):
    """The device ``id`` was removed (DEVICE_DELETED)."""

    id: str


@action
@dataclass(frozen=True, slots=True)
class SetBlock(Action):
    """Memory block ``index`` went to ``state`` (one of ONLINE_TYPES, or offline)."""

    index: int
    state: str


@action
@dataclass(frozen=True, slots=True)
class SetAutoOnline(Action):
    """auto_online_blocks was set to ``policy`` (offline or one of ONLINE_TYPES)."""

    policy: str


@action
@dataclass(frozen=True, slots=True)
class StartLoad(Action):
    """A load of ``kind`` was started; its effects on the kernel's page tables may remain when it is paused or ends."""

    kind: str


@action
@dataclass(frozen=True, slots=True)
class Reboot(Action):
    """The guest rebooted with every device still plugged: a new kernel, about which nothing is known yet."""


def action_to_json(action: Action) -> dict[str, object]:
    """``action`` as a JSON object, with its type under ``action``."""
    return {"action": type(action).__name__, **dataclasses.asdict(action)}
