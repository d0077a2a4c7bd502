# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line's parser, derived from harness.cli.command_arguments. Imports nothing heavy."""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NoReturn

from harness import __version__
from harness.cli.command_arguments import COMMANDS, Arguments
from harness.cli.options import add_options
from harness.errors import UsageError

EPILOG = """\
exit status of run, merge, check, collect, replay, shell, attach and demo:
  0  all passed, or only reproduced known bugs (memhp list bugs)
  1  the kernel under test broke an invariant
  2  usage or configuration error; or every scenario, or one that was named, was skipped for an unmet requirement
  3  no verdict: infrastructure failed, or the guest refused a step that the scenario needs
run --bisect ends with 0 or 1 for a verdict, 125 for a kernel that cannot be built or booted (or gave no verdict), and
128 for a usage error, which ends a bisection.
doctor ends with 3 if anything is missing, bench with 1 if a timed operation gave wrong results, selftest with 1 if the
right invariant did not name a corruption (--kernels: a kernel bug).

first line to try: memhp run -a arm64 --kernel path/to/Image
"""

#: argparse's message; quotes around the choices depend on Python's version
_CHOICE = re.compile(r"argument (?P<where>.*?): invalid choice: '(?P<word>.*)' \(choose from (?P<known>.*)\)", re.S)


class _Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        choice = _CHOICE.fullmatch(message)
        if choice is None:
            raise UsageError(message, hint=f"{self.prog} --help")
        known = re.findall(r"[\w-]+", choice["known"])
        near = difflib.get_close_matches(choice["word"], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise UsageError(f"{choice['where']}: {choice['word']!r} is not known", hint=hint)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            near = difflib.get_close_matches(rest[0].split("=")[0], list(self._option_string_actions), n=1)
            hint = f"did you mean {near[0]}?" if near else f"{self.prog} --help"
            raise UsageError(f"{self.prog} does not know {rest[0]!r}", hint=hint)
        return found, rest


class WrongBisection(UsageError):
    """The request is invalid for every commit: the exit status ends ``git bisect run``."""

    exit_status = 128


def parse_arguments(words: Sequence[str]) -> tuple[str, Arguments]:
    """The command's name and its arguments; raises UsageError.

    ``--help`` and ``--version`` print and raise SystemExit.
    """
    try:
        found = vars(build_parser().parse_args(list(words)))
    except UsageError as error:
        if "--bisect" not in words:
            raise
        raise WrongBisection(error.message, hint=error.hint) from None
    kind: type[Arguments] = found["kind"]
    values = {known.name: found[known.name] for known in fields(kind)}
    frozen: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return found["command"], kind(**frozen)


def build_parser() -> argparse.ArgumentParser:
    """The whole parser."""
    parser = _Parser(
        prog="memhp",
        description="Drive Linux memory hotplug in QEMU guests and prove the kernel's state after every step.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"memhp {__version__}")
    _common(parser, top=True)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for name, kind in COMMANDS.items():
        about = inspect.getdoc(kind) or ""
        summary = about[:1].lower() + about[1:].removesuffix(".")
        made = commands.add_parser(name, help=summary, description=about, allow_abbrev=False)
        made.set_defaults(kind=kind)
        _common(made, top=False)
        add_options(made, kind)
    return parser


def _common(parser: argparse.ArgumentParser, *, top: bool) -> None:
    # Allowed before and after the command: the second parser must not reset the first one's values.
    parser.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto" if top else argparse.SUPPRESS,
        help="colour; auto: on a terminal, unless NO_COLOR is set",
    )
    parser.add_argument(
        "--debug",
        action="store_true",
        default=False if top else argparse.SUPPRESS,
        help="show a traceback with every error",
    )
