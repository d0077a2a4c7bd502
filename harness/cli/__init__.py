# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line, ``memhp COMMAND``: harness.cli.parser defines the commands, and each has its own file here.

Results go to standard output, everything else to standard error. Imports are lazy, so that ``--help`` is fast.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType

from harness.cli.command_arguments import Arguments
from harness.cli.parser import parse_arguments
from harness.errors import MemhpError


class Terminated(BaseException):
    """SIGTERM or SIGHUP was received: clean up and exit with 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _terminate(number: int, frame: FrameType | None) -> None:
    # A second signal must not interrupt the clean-up; SIGKILL still can.
    for again in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(again, signal.SIG_IGN)
    raise Terminated(number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status (0 to 3 as documented; 130, 143, 129 when interrupted)."""
    # Not list(): in this package it names a command's module.
    words = [*(sys.argv[1:] if argv is None else argv)]
    debug = "--debug" in words
    _make_up_for_the_caller()
    # nohup ignores SIGHUP: the run goes on.
    caught = [signal.SIGTERM, *([] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP])]
    before = {number: signal.signal(number, _terminate) for number in caught}
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _command(*parse_arguments(words))
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
        # The reader of our output is gone; the interpreter's last flush must not fail.
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


def _make_up_for_the_caller() -> None:
    """Open closed standard streams, keep the exit statuses of children, and make nothing that others can write.

    Whoever can write to the cache chooses what is run.
    """
    os.umask(os.umask(0o022) | 0o022)
    for name, mode in (("stdin", os.O_RDONLY), ("stdout", os.O_WRONLY), ("stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            # In this order it gets the number that is free; programs that we start may use it, too.
            fd = os.open(os.devnull, mode)
            os.set_inheritable(fd, True)
            setattr(sys, name, os.fdopen(fd, "r" if mode == os.O_RDONLY else "w"))
    # A process that ignores SIGCHLD loses its children's exit statuses, and passes that on to what it starts.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _complain(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    from harness.report.text import tell

    tell(message)


def _command(name: str, arguments: Arguments) -> int:
    """Call ``run`` of the command's module."""
    run: Callable[[Arguments], int] = importlib.import_module(f"harness.cli.{name}").run
    return run(arguments)


__all__ = ["main"]
