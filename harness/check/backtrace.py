# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a kernel was, as its backtraces on the console tell."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: A frame of arm64 (dump_backtrace_entry, arch/arm64/kernel/stacktrace.c) or riscv64 (print_trace_address,
#: arch/riscv/kernel/stacktrace.c), or where an exception or interrupt found the CPU (__show_regs); v6.12.
_FRAME = re.compile(r" *(?:\[<[0-9a-f]+>\] |e?pc : )?(?P<function>[A-Za-z_$][\w.$]*)\+0x[0-9a-f]+/.*")
#: where an exception or interrupt found the CPU; a jump through a pointer that was NULL leaves no name
_COUNTER = re.compile(r" *e?pc : (?P<function>[^+ ]+).*")
#: callers that are shown
_SHOWN = 12


def frame_function(line: str) -> str | None:
    """The function that a ``bare`` line of a backtrace names, None if it is no such line."""
    frame = _FRAME.fullmatch(line)
    return None if frame is None else frame["function"]


def first_backtrace(lines: Iterable[str]) -> tuple[str, ...]:
    """The functions of the first backtrace in ``bare`` lines, innermost first: where the CPU was, and its callers.

    () without the line that tells where the CPU was.
    """
    functions: list[str] = []
    callers = False
    for line in lines:
        if not functions:
            counter = _COUNTER.fullmatch(line)
            functions += [] if counter is None else [counter["function"]]
        elif not callers:
            callers = line.lower().startswith("call trace:")
        elif (function := frame_function(line)) is not None:
            functions.append(function)
        else:
            break
    # Both architectures name the innermost function as the first frame again.
    return tuple(functions[:1] + functions[1 + (functions[:1] == functions[1:2]) :])


def describe_backtrace(functions: tuple[str, ...]) -> str:
    """One line: ``in a, called by b, c, …``."""
    if not functions[1:]:
        return f"in {functions[0]}"
    more = ", …" if len(functions) > _SHOWN + 1 else ""
    return f"in {functions[0]}, called by {', '.join(functions[1 : _SHOWN + 1])}{more}"
