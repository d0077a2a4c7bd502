# SPDX-License-Identifier: GPL-2.0-or-later
"""Typed arguments: frozen dataclasses whose annotations say how each field is read, spelled and typed.

::

    @dataclass(frozen=True, slots=True)
    class FillArgs(Args):
        leave: Annotated[int, size(bare=False)]
        times: Annotated[int, count(1)] = 1

A scenario file's ``fill: {leave: 64M}`` is read by ``FillArgs.read``; every mistake is a ConfigError.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, Self, TypeVar, get_args, get_type_hints

from harness.config.yaml import Value, show
from harness.units import MIB, format_size

T = TypeVar("T")

#: sizes of boot RAM and of devices are multiples of this, the sub-section size (include/linux/mmzone.h)
GRANULE = 2 * MIB

_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,39}")
#: names that the machine itself uses
_RESERVED = re.compile(r"(ram|rp)[0-9]+|mem-.*|net0|nic0|rng0|random0|qmp|console|pcie\.0|virtio-.*")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True)
class Argument(Generic[T]):
    """One argument, as an annotation of its field.

    ``read`` checks what a file says. ``spell`` turns a value into words for a step's title, where a ``bare`` argument
    stands without its name. ``label`` stands for it in a usage line; ``choices`` are all that it can be, where they can
    be listed. ``names`` says what it is the id of, "" if it is none; ``new``: of one that the step brings.
    """

    read: Callable[[Value], T]
    spell: Callable[[T], str] = str
    label: str = "N"
    choices: tuple[str, ...] = ()
    bare: bool = False
    names: Literal["", "device", "load", "held"] = ""
    new: bool = False


@dataclass(frozen=True, slots=True)
class Parameter:
    """A field of arguments: ``default`` stands in where one that is not ``required`` is left out."""

    name: str
    argument: Argument[object]
    required: bool
    default: object


@dataclass(frozen=True, slots=True)
class Args:
    """The arguments of one verb; sizes are bytes."""

    @property
    def capacity(self) -> int:
        """The memory that it can add to the guest at most."""
        return 0

    @classmethod
    def read(cls, value: Value) -> Self:
        """The arguments in a mapping of a file; raises ConfigError."""
        known = parameters(cls)
        given = value.mapping(*known)
        if not known:
            for name, found in given.values.items():
                found.fail(f"unknown key {show(name)}", hint="this verb takes no arguments: write {}")
        values = {
            name: given.take(name, one.argument.read)
            if one.required
            else given.take(name, one.argument.read, one.default)
            for name, one in known.items()
        }
        return cls(**values)

    def spelled(self) -> list[str]:
        """Those that matter, in words for people; named ones at their defaults are left out."""
        words = []
        for name, known in parameters(type(self)).items():
            value, bare = getattr(self, name), known.argument.bare
            if value is None or (value == known.default and (value is False or not bare)):
                continue
            word = known.argument.spell(value)
            words.append(word if bare else f"{name}={word}")
        return words

    def ids(self) -> set[tuple[str, str]]:
        """What they name: the kind of thing (``Argument.names``) and its id."""
        named = ((one.argument.names, getattr(self, one.name)) for one in parameters(type(self)).values())
        return {(kind, id) for kind, id in named if kind and id is not None}


def parameters(kind: type[Args]) -> Mapping[str, Parameter]:
    """The fields of ``kind`` by name, in order."""
    hints = get_type_hints(kind, include_extras=True)
    found = {}
    for field in dataclasses.fields(kind):
        argument = _argument_of(hints[field.name])
        assert argument is not None, f"{kind.__name__}.{field.name} does not say how it is read"
        required = field.default is dataclasses.MISSING
        found[field.name] = Parameter(field.name, argument, required, None if required else field.default)
    return found


def _argument_of(hint: object) -> Argument[object] | None:
    for part in (*getattr(hint, "__metadata__", ()), *get_args(hint)):
        found = part if isinstance(part, Argument) else _argument_of(part)
        if found is not None:
            return found
    return None


def id_problem(text: str) -> tuple[str, str] | None:
    """Why ``text`` cannot be the id of a memory device, and what to do; None if it can."""
    if not _ID.fullmatch(text):
        return f"{text!r} cannot be a device id", "a letter, then up to 39 letters, digits, '-', '.' or '_': dimm0"
    if _RESERVED.fullmatch(text):
        return f"device id {text!r} is taken by the machine itself", "choose another, such as dimm0"
    return None


def _read_id(value: Value) -> str:
    text = value.line_of_text()
    wrong = id_problem(text)
    if wrong is not None:
        value.fail(wrong[0], hint=wrong[1])
    return text


def _read_name(value: Value) -> str:
    text = value.line_of_text()
    if not _NAME.fullmatch(text):
        value.fail(f"{text!r} cannot be a load's id", hint="a letter, then up to 31 letters, digits, '-' or '_'")
    return text


def _read_power(value: Value) -> int:
    size = value.size(minimum=MIB)
    if size & (size - 1):
        value.fail(f"{format_size(size)} is not a power of two", hint="such as 2M")
    return size


def size(*, minimum: int = GRANULE, bare: bool = True) -> Argument[int]:
    """A number of bytes."""
    return Argument(lambda value: value.size(minimum=minimum), format_size, "SIZE", bare=bare)


def count(minimum: int = 0, maximum: int = 1 << 20, *, label: str = "N") -> Argument[int]:
    """A whole number."""
    return Argument(lambda value: value.integer(minimum=minimum, maximum=maximum), label=label)


def choice(*known: str, bare: bool = True) -> Argument[str]:
    """One of ``known``."""
    return Argument(lambda value: value.choice(known), label="|".join(known), choices=known, bare=bare)


def device(*, bare: bool = True, new: bool = False) -> Argument[str]:
    """The id of a memory device that is plugged, or of a ``new`` one."""
    return Argument(_read_id, label="ID" if bare else "DEVICE", bare=bare, names="device", new=new)


def boolean(spell: Callable[[bool], str]) -> Argument[bool]:
    """True or false."""
    return Argument(Value.boolean, spell, "true|false", ("true", "false"))


Device = Annotated[str, device()]
NewDevice = Annotated[str, device(new=True)]
#: the id of a load, or of pages that are held
Load = Annotated[str, Argument(_read_name, label="ID", bare=True, names="load")]
NewLoad = Annotated[str, Argument(_read_name, label="ID", bare=True, names="load", new=True)]
Held = Annotated[str, Argument(_read_name, label="ID", bare=True, names="held")]
NewHeld = Annotated[str, Argument(_read_name, label="ID", bare=True, names="held", new=True)]
#: a size such as of a memory block, a power of two of at least 1M
PowerOfTwo = Annotated[int, Argument(_read_power, format_size, "SIZE")]
#: seconds that something may take
Patience = Annotated[int, count(1, 3600, label="SECONDS")]
