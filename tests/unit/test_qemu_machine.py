# SPDX-License-Identifier: GPL-2.0-or-later
"""Start and end of a machine, with programs in place of QEMU; and parsers of QEMU's monitor output."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from qemu_peer import spec

import harness
from harness.config.guest_parts import QemuBinary
from harness.deadline import Deadline
from harness.errors import LaunchError, QemuError, UsageError
from harness.qemu.machine import Machine, find_inodes, parse_forward, parse_host_address, parse_ramblocks
from harness.qemu.saved_machine import copy_sparse
from harness.units import KIB

USERNET = """Hub -1 (net0):\r
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r
  TCP[HOST_FORWARD]  13       127.0.0.1 46767       10.0.2.15    22     0     0\r
"""

RAMBLOCKS = """
              Block Name    PSize              Offset               Used              Total                HVA  RO
                    ram0    4 KiB  0x0000000000000000 0x0000000008000000 0x0000000008000000 0x00007fe8613ff000  rw
                            4 KiB  0x0000000048280000 0x0000000020000000 0x0000000020000000 0x00007f2cd3fff000  rw
    /rom@etc/acpi/tables    4 KiB  0x0000000010000000 0x0000000000020000 0x0000000000200000 0x00007fe8abc00000  ro
""".replace("\n", "\r\n")

MAPS = """\
7fe8613ff000-7fe8693ff000 rw-s 00000000 00:01 2057                       /memfd:memory-backend-memfd (deleted)
7fe8abc00000-7fe8abe00000 rw-p 00000000 00:00 0
7fe8b0000000-7fe8b0021000 r--p 00000000 fe:01 99                         /usr/lib/a file
"""

# Speaks just enough QMP to start, then ends as its first argument says.
FAKE = """
import json, os, re, signal, socket, sys
end, *argv = sys.argv[1:]
fd = next(int(re.search(r"fd=(\\d+)", word)[1]) for word in argv if "id=qmp" in word)
sock = socket.socket(fileno=fd)
print("fake speaks", file=sys.stderr, flush=True)
sock.sendall(b'{"QMP": {"version": {}, "capabilities": []}}\\n')
if end == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
while data := sock.recv(65536):
    message = json.loads(data)
    answer = [{"thread-id": os.getpid()}] if message["execute"] == "query-cpus-fast" else {}
    tag = {"id": message["id"]} if "id" in message else {}
    sock.sendall(json.dumps({"return": answer, **tag}).encode() + b"\\n")
    if message["execute"] == "quit" and end == "polite":
        sys.exit(0)
    if message["execute"] == "die":
        os.kill(os.getpid(), signal.SIGABRT)
signal.pause()
"""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    for name in ("Image", "fake.py"):
        (tmp_path / name).write_text(textwrap.dedent(FAKE))
    return {"kernel": tmp_path / "Image", "boot": "dt", "firmware": None}


def fake(files: dict[str, Any], end: str) -> dict[str, Any]:
    argv = (sys.executable, str(files["kernel"].parent / "fake.py"), end)
    return files | {"qemu": QemuBinary(argv=argv, data_dir=None, origin="test", version="0")}


def shell(files: dict[str, Any], script: str) -> dict[str, Any]:
    return files | {"qemu": QemuBinary(argv=("sh", "-c", script), data_dir=None, origin="test", version="0")}


def wrapped(files: dict[str, Any], line: str) -> dict[str, Any]:
    """The fake QEMU behind a script; ``line`` starts it."""
    wrapper = files["kernel"].parent / "wrapper"
    made = fake(files, "stubborn")
    wrapper.write_text(f"#!/bin/sh\n{line.format(qemu=shlex.join(made['qemu'].argv))}\n")
    wrapper.chmod(0o755)
    return made | {"qemu": QemuBinary(argv=(str(wrapper),), data_dir=None, origin="test", version="0")}


def fakes(files: dict[str, Any]) -> list[int]:
    """The processes of the fake QEMU that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(files["kernel"].parent / "fake.py").encode() in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


def test_a_wrapper_that_does_not_exec_is_refused(files: dict[str, Any], tmp_path: Path) -> None:
    made = wrapped(files, '{qemu} "$@"\nexit $?')
    with pytest.raises(QemuError, match=r"wrapper runs QEMU as another process, which would outlive") as caught:
        Machine.launch(spec(**made), tmp_path / "run", Deadline(20))
    assert "start QEMU with exec" in str(caught.value.hint)
    # It was killed with its process group, but is nobody's child here: its end takes a moment on a busy machine.
    for pid in fakes(files):
        with contextlib.suppress(ProcessLookupError):
            assert select.select([os.pidfd_open(pid)], [], [], 20.0)[0], "it survived"
    assert fakes(files) == []


#: a memhp that launches a machine, says so, and waits
HARNESS = """
import sys
sys.path.insert(0, sys.argv[1])
from test_qemu_machine import *
from pathlib import Path
folder = Path(sys.argv[2])
files = {"kernel": folder / "Image", "boot": "dt", "firmware": None}
with Machine.launch(spec(**wrapped(files, sys.argv[3])), folder / "run", Deadline(20)) as machine:
    print(machine.pid, flush=True)
    sys.stdin.read()
"""


def test_a_wrapper_that_execs_dies_with_a_memhp_that_is_killed(files: dict[str, Any], tmp_path: Path) -> None:
    argv = [sys.executable, "-c", HARNESS, str(Path(__file__).parent), str(tmp_path), 'exec {qemu} "$@"']
    environment = {**os.environ, "PYTHONPATH": str(Path(harness.__file__).parents[1])}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(argv, env=environment, **pipes) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert fakes(files) == [pid]
        watch = os.pidfd_open(pid)
        process.kill()
    assert select.select([watch], [], [], 20.0)[0]
    os.close(watch)


def test_polite_end(files: dict[str, Any], tmp_path: Path) -> None:
    with Machine.launch(spec(**fake(files, "polite")), tmp_path / "run", Deadline(60)) as machine:
        assert machine.alive
        assert machine.argv[-1] == "vmcoreinfo"
    assert not machine.alive
    assert machine.quit(Deadline(1)) == 0
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700


def test_stubborn_end(files: dict[str, Any], tmp_path: Path) -> None:
    with Machine.launch(spec(**fake(files, "stubborn")), tmp_path / "run", Deadline(60)) as machine:
        assert machine.quit(Deadline(0.2)) == -9


def test_an_exception_kills_it(files: dict[str, Any], tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        Machine.launch(spec(**fake(files, "stubborn")), tmp_path / "run", Deadline(60)) as machine,
    ):
        raise KeyboardInterrupt
    assert machine.kill() == -9


def test_death_is_told_with_status_and_stderr(files: dict[str, Any], tmp_path: Path) -> None:
    with Machine.launch(spec(**fake(files, "polite")), tmp_path / "run", Deadline(60)) as machine:
        with pytest.raises(QemuError) as caught:
            machine.qmp.execute("die", deadline=Deadline(60))
            machine.qmp.execute("more", deadline=Deadline(60))
        assert "QEMU was killed by SIGABRT\nfake speaks" in str(caught.value)


def test_launch_failure_carries_argv_status_and_tails(files: dict[str, Any], tmp_path: Path) -> None:
    script = f"echo bad option >&2; echo hello >{tmp_path}/run/console.log; exit 1"
    with pytest.raises(LaunchError) as caught:
        Machine.launch(spec(**shell(files, script)), tmp_path / "run", Deadline(60))
    text = str(caught.value)
    assert "-machine virt" in text
    assert "did not come up: QEMU exited with status 1\nbad option\nlast of the console:\nhello" in text


def test_launch_that_never_answers(files: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"no answer on QMP within 0\.3 s"):
        Machine.launch(spec(**shell(files, "exec sleep 1000")), tmp_path / "run", Deadline(0.3))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the kernel /k/Image is not a file"):
        Machine.launch(spec(), tmp_path, Deadline(1))


def test_workdir_open_to_others(files: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)
    with pytest.raises(UsageError, match="is accessible to other users"):
        Machine.launch(spec(**files), tmp_path / "run", Deadline(1))


def test_parse_forward() -> None:
    assert parse_forward(USERNET) == 46767
    with pytest.raises(QemuError, match="QEMU forwards 0 ports to the guest's port 22"):
        parse_forward("nothing here")


def test_parse_ramblocks() -> None:
    assert parse_ramblocks(RAMBLOCKS) == [
        ("ram0", 0x7FE8613FF000),
        ("", 0x7F2CD3FFF000),
        ("/rom@etc/acpi/tables", 0x7FE8ABC00000),
    ]
    assert parse_ramblocks("Block Name    PSize\n ram0 4 KiB\n") == []
    with pytest.raises(QemuError, match="list of RAM blocks has an unknown format"):
        parse_ramblocks(RAMBLOCKS + "  what is this\n")


def test_parse_host_address() -> None:
    text = "Host virtual address for 0x80000000 (mem-pm0) is 0x7f2cd3fff000\r\n"
    assert parse_host_address(text) == 0x7F2CD3FFF000
    with pytest.raises(QemuError, match="does not report where it maps a memory device: No memory is mapped"):
        parse_host_address("No memory is mapped at address 0x80000000\r\n")


def test_find_inodes() -> None:
    addresses = {**dict(parse_ramblocks(RAMBLOCKS)), "nowhere": 4096}
    assert find_inodes(MAPS, addresses) == {"ram0": 2057}


def test_copy_sparse(tmp_path: Path) -> None:
    data = b"x" * 10 + bytes(1024 * KIB) + b"y" + bytes(200 * KIB)
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "b").write_bytes(b"old and longer" * 100_000)
    copy_sparse(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == data
    assert (tmp_path / "b").stat().st_blocks * 512 < 512 * KIB
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600
