# SPDX-License-Identifier: GPL-2.0-or-later
"""A verb: one record for scenario files, the prompt, ``parallel`` and ``memhp list verbs``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from harness.config.arguments import Args
from harness.deadline import Deadline
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.scenarios.verbs.plan import Plan

A = TypeVar("A", bound=Args)


@dataclass(frozen=True, slots=True)
class Known:
    """What the words of a line can mean: ``devices`` maps ids to their kind or, for virtio-pmem, to its mode."""

    devices: Mapping[str, str]
    loads: Collection[str] = ()
    held: Collection[str] = ()

    def ids(self, kind: str) -> Collection[str]:
        """The ids of that kind (``Argument.names``) that there are."""
        return {"device": self.devices, "load": self.loads, "held": self.held}[kind]


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a line that is no argument as it stands: ``read`` makes some of ``arguments`` of it.

    It returns them as a file spells them; ``choices`` are some of what it can be.
    """

    label: str
    arguments: tuple[str, ...]
    read: Callable[[str, Known], Mapping[str, str]]
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """How a person types a verb: ``form`` is ``plug dimm <size> [id]``, after which the other arguments are name=value.

    Words of it stand as they are, an argument is ``<name>``, or ``[name]`` if it may be left out; ``words`` has those
    that are more than an argument. An id that is left out starts with ``fresh``, in which arguments may stand:
    ``{kind}``. ``mode``: the line means this verb only of a device in that mode.
    """

    form: str
    words: Mapping[str, Word] = field(default_factory=dict)
    fresh: str = ""
    mode: str = ""

    @property
    def command(self) -> str:
        """Its first word."""
        return self.form.partition(" ")[0]


@dataclass(frozen=True, slots=True)
class Verb(Generic[A]):
    """One kind of step.

    ``run`` does it. ``follow`` raises ``Impossible`` for a step that makes no sense in a plan, and changes the plan as
    a step with that ending does. ``needs`` are the requirements without which it cannot be done, ``more_needs`` those
    of certain arguments; ``require`` raises UnsupportedError for a kernel whose configuration is not enough.

    ``parallel``: it can run in parallel with others, unless its arguments make it ``unwaited``: the guest may be
    at work when it ends. ``room``: it takes room for devices, or frees some, so that its place depends on what comes
    first, unless it is ``placed`` (``place_hint`` says how). ``can_fail``: the kernel can be made to fail at it.
    """

    name: str
    summary: str
    arguments: type[A]
    run: Callable[[Session, A, Deadline], Outcome]
    line: Line
    follow: Callable[[Plan, A, str], None] = lambda plan, args, expect: None
    needs: tuple[str, ...] = ()
    more_needs: Callable[[A], tuple[str, ...]] = lambda args: ()
    require: Callable[[A, Mapping[str, str]], None] = lambda args, config: None
    parallel: bool = False
    unwaited: Callable[[A], bool] = lambda args: False
    room: Literal["", "takes", "frees"] = ""
    placed: Callable[[A], bool] = lambda args: False
    place_hint: str = "do one after the other"
    can_fail: bool = False


#: a verb of any arguments: what they are, each record knows by itself
AnyVerb = Verb[Any]
