# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of the command line as fields of dataclasses, and the parser's arguments made from them."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from dataclasses import MISSING, field, fields
from typing import Any


def option(
    usage: str,
    help: str,
    *,
    default: object = None,
    read: Callable[[str, str], object] | None = None,
    many: bool = False,
    **more: object,
) -> Any:
    """A field that an option sets: ``usage`` is its flags and its value, as in ``-j --jobs N``.

    Without a value the option sets True; without flags it is a positional argument. ``read`` parses the value and gets
    the option's name for its errors. ``many``: the option can be repeated. ``more`` goes to ``add_argument``, except
    ``group``, which replaces that of the class, and ``opposite``: a flag that sets False, with its help. The default
    MISSING is for what must be given.
    """
    words = usage.split()
    flags = [word for word in words if word.startswith("-")]
    values = tuple(words[len(flags) :])
    if many:
        more["action"], default = "append", ()
    if read is not None:
        more["type"] = lambda text: read(text, flags[-1])
    if values:
        more["metavar"] = values if len(values) > 1 else values[0]
    elif flags and "action" not in more:
        more["action"], default = "store_true", False
    return field(default=default, metadata={"flags": flags, "more": {"help": help} | more})


def add_options(parser: argparse.ArgumentParser, kind: Any) -> None:
    """Add the options of the dataclass ``kind``: its own, then those of its bases in their order.

    ``GROUP`` of a base is the title of its options in the help.
    """
    known = {found.name: found for found in fields(kind) if found.metadata}
    # An option that a subclass changes keeps its place.
    home: dict[str, type] = {}
    for part in kind.__mro__:
        for name in filter(known.__contains__, inspect.get_annotations(part)):
            home.pop(name, None)
            home[name] = part
    groups: dict[str, argparse._ActionsContainer] = {"": parser}
    for name, part in home.items():
        flags, more = known[name].metadata["flags"], dict(known[name].metadata["more"])
        title = more.pop("group", vars(part).get("GROUP", ""))
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        into, default = groups[title], known[name].default
        if opposite := more.pop("opposite", None):
            into = into.add_mutually_exclusive_group()
            into.add_argument(opposite[0], dest=name, action="store_false", default=default, help=opposite[1])
        if default is not MISSING:
            # What argparse appends to must be a list.
            more["default"] = list(default) if isinstance(default, tuple) else default
        if flags:
            into.add_argument(*flags, dest=name, **more)
        else:
            into.add_argument(name, **more)
