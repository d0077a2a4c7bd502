# SPDX-License-Identifier: GPL-2.0-or-later
"""Parses values of the command line. Raises UsageError that names the option. Imports nothing heavy."""

from __future__ import annotations

import re
import sys
from typing import cast

from harness.bench import DEFAULT_ROUNDS, MAX_ROUNDS
from harness.errors import UsageError
from harness.scenarios.run_options import LOOKS, Look
from harness.units import parse_size

#: maximum number of parallel guests: each has a QEMU with two vCPUs and several threads of the harness
MAX_JOBS = 64
#: how states of a bundle are numbered
STATE_NUMBER = re.compile(r"[0-9]{1,9}")


def read_size(text: str, option: str) -> int:
    """A size in bytes."""
    try:
        return parse_size(text[:80])
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def read_integer(text: str, option: str) -> int:
    """A whole number."""
    try:
        return int(text[:40], 10)
    except ValueError:
        raise UsageError(f"{option}: {text[:40]!r} is not a whole number") from None


def read_names(text: str, option: str) -> tuple[str, ...]:
    """Names separated by commas."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise UsageError(f"{option}: invalid list of names: {text[:80]!r}", hint="such as LIN-1,XCK-1")
    return names


def read_seconds(text: str, option: str) -> float:
    """A time in seconds, more than 0 and at most a day."""
    try:
        value = float(text[:40])
    except ValueError:
        value = 0.0
    if not 0 < value <= 86_400:
        raise UsageError(f"{option}: {text[:40]!r} is not a number of seconds", hint="such as 120, at most 86400")
    return value


def _read_count(text: str, option: str, what: str, most: int, hint: str) -> int:
    count = read_integer(text, option)
    if not 1 <= count <= most:
        raise UsageError(f"{option}: invalid {what}: {count}", hint=hint)
    return count


def read_look(text: str, option: str) -> Look:
    """How to look after a step."""
    if text not in LOOKS:
        raise UsageError(f"{option}: unknown look {text[:40]!r}", hint=" or ".join(LOOKS))
    return cast(Look, text)


def read_rounds(text: str, option: str) -> int:
    """The number of repetitions of a soak's steps."""
    return _read_count(text, option, "number of rounds", sys.maxsize, "at least 1")


def read_bench_rounds(text: str, option: str) -> int:
    """The number of counted rounds of a benchmark."""
    hint = f"1 to {MAX_ROUNDS}; the default is {DEFAULT_ROUNDS}"
    return _read_count(text, option, "number of rounds", MAX_ROUNDS, hint)


def read_jobs(text: str, option: str) -> int:
    """The number of parallel guests."""
    return _read_count(text, option, "job count", MAX_JOBS, f"from 1 to {MAX_JOBS}")


def read_state(text: str, option: str) -> int:
    """The number of a state of a bundle."""
    if STATE_NUMBER.fullmatch(text) is None:
        raise UsageError(f"{option}: invalid state number: {text[:80]!r}", hint="such as 0, the booted guest")
    return int(text)
