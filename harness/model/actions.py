# SPDX-License-Identifier: GPL-2.0-or-later
"""What the harness did to a guest, as values that can be logged, saved and replayed through the model.

An action stands for something that *took effect*: a refused request is recorded by its step, not here. What is done to
one kind of device only is an action of ``harness.model.devices``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

#: memory_block_online types of sysfs, and what auto_online_blocks accepts beside ``offline``
ONLINE_TYPES = ("online", "online_kernel", "online_movable")


@dataclass(frozen=True, slots=True)
class Action:
    """Base of all actions."""


ActionT = TypeVar("ActionT", bound=Action)

_BY_NAME: dict[str, type[Action]] = {}


def action(kind: type[ActionT]) -> type[ActionT]:
    """Class decorator of an action: it is saved under the name of its class."""
    _BY_NAME[kind.__name__] = kind
    return kind


@action
@dataclass(frozen=True, slots=True)
class Unplug(Action):
    """The device ``id`` is gone (DEVICE_DELETED)."""

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
    """A load of ``kind`` was started: what it has done to the kernel's page tables may stay when it rests or ends."""

    kind: str


@action
@dataclass(frozen=True, slots=True)
class Reboot(Action):
    """The guest came up once more, with every device still plugged: a new kernel, of which nothing is known yet."""


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
