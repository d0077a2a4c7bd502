# SPDX-License-Identifier: GPL-2.0-or-later
"""A verb: one class for scenario files, the prompt, ``parallel`` and ``memhp list verbs``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from harness.config.arguments import Args
from harness.deadline import Deadline
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.scenarios.verbs.plan import Impossible, Plan


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
class Verb(Args):
    """One kind of step: a subclass is the verb, its fields are the arguments; an instance is a step that can be run.

    ``needs`` are the requirements without which it cannot be done (``requirements`` adds those of certain arguments).
    ``parallel``: it can run in parallel with others, unless it is ``unwaited``. ``room``: it takes room for devices, or
    frees some, so that its place depends on what comes first, unless it is ``placed`` (``place_hint`` says how).
    ``can_fail``: the kernel can be made to fail at it; ``knows_why``: it tells the failure that is meant from others.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    line: ClassVar[Line]
    needs: ClassVar[tuple[str, ...]] = ()
    parallel: ClassVar[bool] = False
    room: ClassVar[Literal["", "takes", "frees"]] = ""
    place_hint: ClassVar[str] = "do one after the other"
    can_fail: ClassVar[bool] = False
    knows_why: ClassVar[bool] = False

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        """Do it: the work of ``Session.act``."""
        raise NotImplementedError

    def follow(self, plan: Plan, expect: str = "done") -> None:
        """Change ``plan`` as the step with that ending does; raises Impossible if it makes no sense there."""

    def require(self, config: Mapping[str, str]) -> None:
        """Raise UnsupportedError for a kernel whose configuration is not enough."""

    def requirements(self) -> tuple[str, ...]:
        """The names of all requirements with these arguments."""
        return self.needs

    @property
    def unwaited(self) -> bool:
        """The guest may still be at work when it ends."""
        return False

    @property
    def placed(self) -> bool:
        """The arguments say where its device goes."""
        return False

    def title(self, expect: str = "done") -> str:
        """The step in one line for people: ``plug-dimm dimm0 1G``."""
        return " ".join([self.name, *self.spelled()]) + ("" if expect == "done" else f" ({expect})")

    def require_beside(self, earlier: Sequence[Verb], later: Sequence[Verb]) -> None:
        """Raise Impossible unless it can run in parallel with the steps before and after it.

        No two of them may use the same id, and the place of none may depend on another.
        """
        for _, id in self.ids() & {named for other in earlier for named in other.ids()}:
            raise Impossible(None, f"two parallel steps use {id!r}", "run them one after the other")
        if self.room == "takes" and not self.placed and any(other.room for other in (*earlier, *later)):
            raise Impossible(None, "its place depends on the order of parallel steps", self.place_hint)
