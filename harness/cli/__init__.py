# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line, ``memhp COMMAND``: harness.cli.parser has them all.

Results go to standard output, everything else to standard error. Nothing is imported before it is needed: ``--help``
answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from harness.cli.parser import Arguments, parse_arguments
from harness.errors import MemhpError


class Terminated(BaseException):
    """SIGTERM or SIGHUP came: unwind, clean up, end with 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _terminate(number: int, frame: FrameType | None) -> None:
    # A second signal must not cut the clean-up short; SIGKILL is there for who cannot wait.
    for again in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(again, signal.SIG_IGN)
    raise Terminated(number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status (0 to 3 as documented; 130, 143, 129 when interrupted)."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    before = {number: signal.signal(number, _terminate) for number in (signal.SIGTERM, signal.SIGHUP)}
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _command(parse_arguments(words))
        sys.stdout.flush()
        return status
    except MemhpError as error:
        _complain(str(error), debug)
        return error.exit_status
    except KeyboardInterrupt:
        _complain("interrupted", debug)
        return 128 + signal.SIGINT
    except Terminated as end:
        _complain(f"ended by {signal.Signals(end.number).name}", debug)
        return 128 + end.number
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter's last flush must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except Exception as error:
        _complain(
            f"internal error: {type(error).__name__}: {error}\n  hint: --debug shows where; please report it", debug
        )
        return 3
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _complain(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    from harness.report.text import tell

    tell(message)


def _command(arguments: Arguments) -> int:
    """Find the command's function; each imports what it needs."""
    commands: Mapping[str, Callable[[Arguments], int]]
    if arguments.command == "demo":
        from harness.cli.demo import COMMANDS as commands
    elif arguments.command == "merge":
        from harness.cli.matrix import COMMANDS as commands
    elif arguments.command in ("run", "check", "collect"):
        from harness.cli.running import COMMANDS as commands
    elif arguments.command in ("ptdump", "sections"):
        from harness.cli.tables import COMMANDS as commands
    elif arguments.command in ("shell", "attach", "replay"):
        from harness.cli.exploring import COMMANDS as commands
    elif arguments.command == "bench":
        from harness.cli.bench import COMMANDS as commands
    elif arguments.command == "selftest":
        from harness.cli.selftest import COMMANDS as commands
    else:
        from harness.cli.showing import COMMANDS as commands
    return commands[arguments.command](arguments)


__all__ = ["main"]
