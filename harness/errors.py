# SPDX-License-Identifier: GPL-2.0-or-later
"""All errors that the harness raises deliberately.

::

    MemhpError                   base; carries an optional hint
     ├─ UsageError               the user made an invalid request     exit 2
     │   ├─ ConfigError          a YAML file is wrong: file, line, key                 exit 2
     │   └─ UnsupportedError     this kernel or QEMU lacks a requirement               exit 2, or a skip
     └─ InfraError               the harness or its environment failed: no verdict     exit 3
         ├─ DeadlineExpired      an event did not come in time
         ├─ ArtefactError        fetching, verifying or building a part failed
         ├─ QemuError            QEMU failed
         │   ├─ LaunchError      QEMU did not come up: argv, status, log tails
         │   └─ QmpRefused       QEMU answered a command with an error
         ├─ GuestError           the guest could not be reached or driven
         └─ ParseError           a parser cannot read guest output: source, line, text

A bug of the *kernel under test* is never an exception: it is a finding (``harness.check``).
A *refusal by the guest* is never an exception either: it is an outcome.
"""

from __future__ import annotations

from pathlib import Path


class MemhpError(Exception):
    """Base of all deliberate errors; ``hint`` says what to do next."""

    exit_status = 3

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class UsageError(MemhpError):
    """The request is invalid; nothing was started."""

    exit_status = 2


class ConfigError(UsageError):
    """A file is wrong at ``line`` (1-based) and ``key``, a dotted path such as ``steps[2].plug-dimm.size``."""

    def __init__(
        self,
        message: str,
        *,
        file: Path | str,
        line: int | None = None,
        key: str | None = None,
        hint: str | None = None,
    ) -> None:
        where = str(file) if line is None else f"{file}:{line}"
        at = "" if not key else f" {key}:"
        super().__init__(f"{where}:{at} {message}", hint=hint)
        self.file = str(file)
        self.line = line
        self.key = key


class UnsupportedError(UsageError):
    """The kernel or QEMU lacks ``requirement``; the message names it and the hint says how to get it."""

    def __init__(self, requirement: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.requirement = requirement


class InfraError(MemhpError):
    """The harness or its environment failed; the kernel under test gets no verdict."""


class DeadlineExpired(InfraError):
    """``awaited`` did not come within ``seconds``; ``last_seen`` is the last event that did."""

    def __init__(self, awaited: str, seconds: float, *, last_seen: str | None = None, hint: str | None = None) -> None:
        tail = "" if last_seen is None else f"; last seen: {last_seen}"
        super().__init__(f"gave up after {seconds:.1f} s waiting for {awaited}{tail}", hint=hint)
        self.awaited = awaited
        self.seconds = seconds
        self.last_seen = last_seen


class ArtefactError(InfraError):
    """A part (QEMU, firmware, kernel, guest root) could not be fetched, verified or built."""


class QemuError(InfraError):
    """QEMU misbehaved or died."""


class LaunchError(QemuError):
    """QEMU did not come up; the message carries argv, exit status and the tails of its logs."""


class QmpRefused(QemuError):
    """QEMU answered ``command`` with an error (``error_class``, ``desc``)."""

    def __init__(self, command: str, error_class: str, desc: str) -> None:
        super().__init__(f"QEMU refused {command}: {desc} ({error_class})")
        self.command = command
        self.error_class = error_class
        self.desc = desc


class GuestError(InfraError):
    """The guest could not be reached, or a command that must work in it failed."""


class ParseError(InfraError):
    """``text`` (line ``line``, 1-based) of ``source`` cannot be parsed; guessing would hide bugs."""

    def __init__(self, source: str, line: int, text: str, why: str) -> None:
        shown = text if len(text) <= 200 else text[:200] + "…"
        super().__init__(
            f"{source}:{line}: {why}: {shown!r}",
            hint="the parser does not know this output; please report it with this line",
        )
        self.source = source
        self.line = line
        self.text = text
