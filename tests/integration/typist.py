# SPDX-License-Identifier: GPL-2.0-or-later
"""A person at a terminal: types keys at a real pseudo-terminal and waits for output on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

_ESCAPES = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[=>()][0-9A-B]?|[\x00\x07\r]")


class Typist:
    """Runs ``argv`` on a terminal of 120 columns; a context manager that ends the process."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], cwd: str) -> None:
        self.master, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        # pytest-xdist sets these two in all its processes.
        plain = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            argv,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={**plain, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"},
            cwd=cwd,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(terminal)
        self.raw = b""
        self._seen = 0

    def __enter__(self) -> Typist:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(120)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        os.close(self.master)

    @property
    def screen(self) -> str:
        """All output so far, without escape sequences."""
        return _ESCAPES.sub(b"", self.raw).decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, pattern: str, seconds: float = 600.0) -> str:
        """Wait for a match of ``pattern`` after the previous match; return the text up to its end."""
        end = time.monotonic() + seconds
        while True:
            found = re.search(pattern, self.screen[self._seen :])
            if found is not None:
                text = self.screen[self._seen : self._seen + found.end()]
                self._seen += found.end()
                return text
            left = end - time.monotonic()
            assert left > 0, f"no {pattern!r} in:\n{self.screen[self._seen :][-3000:]}"
            if not self._read(left):
                raise AssertionError(f"it exited without {pattern!r}:\n{self.screen[self._seen :][-3000:]}")

    def line(self, text: str, pattern: str, seconds: float = 600.0) -> str:
        """Type a line at the prompt and wait for ``pattern``."""
        self.type(text + "\r")
        return self.expect(pattern, seconds)

    def end(self, seconds: float = 600.0) -> int:
        """Read all remaining output and return the exit status."""
        limit = time.monotonic() + seconds
        while self._read(max(0.0, limit - time.monotonic())):
            pass
        return self.process.wait(max(0.1, limit - time.monotonic()))

    def _read(self, seconds: float) -> bool:
        if not select.select([self.master], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.master, 1 << 16)
        except OSError:
            return False
        self.raw += data
        return bool(data)
