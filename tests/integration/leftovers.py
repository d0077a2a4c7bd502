# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run has left behind: processes, listening ports and temporary files, found by a mark of the test."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

#: memhp as users run it, from the checkout under test in any working directory (see ``World.environment``)
MEMHP = (sys.executable, "-c", "import sys; from harness.cli import main; sys.exit(main())")
#: runs until it is ended
LONG_SCENARIO = """
name: long
steps:
  - plug-virtio-mem: {id: vmem0, max: 1G}
  - repeat:
      times: 1000
      steps:
        - resize: {id: vmem0, to: 128M}
        - resize: {id: vmem0, to: 0}
"""

_ROOT = Path(__file__).parents[2]
_MARK = "MEMHP_TEST_MARK"


@dataclass
class World:
    """The surroundings of one run: an environment that marks its processes, and private directories for its files."""

    root: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        for path in (self.temp, self.state):
            path.mkdir(parents=True, exist_ok=True)

    @property
    def temp(self) -> Path:
        return self.root / "tmp"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def environment(self) -> dict[str, str]:
        own = {_MARK: self.mark, "TMPDIR": str(self.temp), "XDG_STATE_HOME": str(self.state), "PYTHONPATH": str(_ROOT)}
        return {**os.environ, **own}

    def processes(self) -> dict[int, str]:
        """Pid and command name of every live process of the run, whatever its parent is now."""
        wanted = f"{_MARK}={self.mark}".encode()
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if wanted in (path / "environ").read_bytes().split(b"\0") and "Z" not in _state(path):
                    found[int(path.name)] = (path / "comm").read_text().strip()
        return found

    def qemu(self) -> int:
        """Pid of the one QEMU of the run, which may be started through its own loader."""
        [pid] = [pid for pid, name in self.processes().items() if name.startswith(("qemu", "ld-linux"))]
        return pid

    def listeners(self) -> list[str]:
        """Addresses (hexadecimal, as in /proc/net/tcp) on which a process of the run listens."""
        sockets = set()
        for pid in self.processes():
            with contextlib.suppress(OSError):
                for fd in Path(f"/proc/{pid}/fd").iterdir():
                    with contextlib.suppress(OSError):
                        sockets.add(os.readlink(fd).removeprefix("socket:[").removesuffix("]"))
        return [row.split()[1] for row in _listening() if row.split()[9] in sockets]

    def assert_clean(self, seconds: float = 60.0) -> None:
        """Assert that nothing is left after at most ``seconds``: QEMU may still be exiting."""
        self.assert_ended(seconds)
        assert sorted(str(path.relative_to(self.temp)) for path in self.temp.rglob("*")) == []
        assert list(self.state.rglob("*.sock")) == []

    def assert_ended(self, seconds: float = 60.0) -> None:
        """Assert that no process is left after at most ``seconds``."""
        for pid in self.processes():
            _await_end(pid, seconds)
        assert self.processes() == {} and self.listeners() == []


def _state(process: Path) -> str:
    return (process / "stat").read_text().rpartition(")")[2].split()[0]


def _await_end(pid: int, seconds: float) -> None:
    with contextlib.suppress(ProcessLookupError), _pidfd(pid) as fd:
        select.select([fd], [], [], seconds)


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def _listening() -> Iterator[str]:
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            # 0A: TCP_LISTEN; an unconnected UDP socket is 07.
            if row.split()[3] in ("0A", "07"):
                yield row
