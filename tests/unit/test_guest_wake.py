# SPDX-License-Identifier: GPL-2.0-or-later
"""The order that wakes a restored guest, and what the sleeper does with it."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.errors import DeadlineExpired, GuestError
from harness.guest.console import ASLEEP, Console
from harness.guest.identity import SEED_BYTES, Identity, wake, wake_order
from harness.guest.overlay import overlay

SCRIPTS = Path(__file__).parents[2] / "guest-scripts"
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


def test_the_order_has_time_seed_and_keys() -> None:
    identity = Identity.fresh()
    order = wake_order(identity, bytes(range(SEED_BYTES)), 1_700_000_000_000_000_042)
    magic, seconds, rest, seed, host, client = struct.unpack("<10sQQ32s64s32s", order)
    assert (magic, seconds, rest) == (b"memhp-wake", 1_700_000_000, 42)
    assert seed == bytes(range(SEED_BYTES))
    assert identity.host.dropbear.endswith(host)
    assert base64.b64decode(identity.client.public.split()[1]).endswith(client)


def test_a_short_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="a seed has 32 bytes, not 3"):
        wake_order(Identity.fresh(), b"abc", 0)


def test_every_guest_is_told_something_else() -> None:
    here, there = socket.socketpair()
    with here, there:
        orders = []
        for _ in range(2):
            wake(here, Identity.fresh(), Deadline(5))
            orders.append(struct.unpack("<10sQQ32s64s32s", there.recv(1 << 16)))
    first, second = orders
    assert not set(first[2:]) & set(second[2:])


def test_a_guest_that_falls_asleep_says_so() -> None:
    here, there = socket.socketpair()
    with here, there, Console(here, lambda line: None) as console:
        there.sendall(b"[    2.0] memhp: asleep\r\n")
        console.wait_line(ASLEEP, Deadline(5))
        there.sendall(b"[    2.1] memhp: failed: sleep: the guest does not become idle\r\n")
        with pytest.raises(GuestError, match="does not become idle"):
            console.wait_ready(Deadline(5))


def test_a_guest_that_does_not_fall_asleep_is_not_waited_for_for_ever() -> None:
    here, there = socket.socketpair()
    with here, there, Console(here, lambda line: None) as console:
        there.sendall(b"memhp: ready\r\n")
        with pytest.raises(DeadlineExpired, match="last seen: memhp: ready"):
            console.wait_line(ASLEEP, Deadline(0.05))


def test_what_is_put_to_rest_has_no_keys() -> None:
    identity = Identity.fresh()
    assert b"host_key" in overlay(identity, SCRIPTS)
    asleep = overlay(None, SCRIPTS)
    assert asleep == overlay(None, SCRIPTS)
    assert b"etc/dropbear/host_key\0" not in asleep and b"authorized_keys\0" not in asleep


def compiled(target: Path, *flags: str) -> Path:
    source = str(SCRIPTS / f"{target.stem}.c")
    warnings = ("-Wall", "-Wextra", "-Wshadow", "-Werror")
    subprocess.run(["cc", "-std=gnu11", "-O2", *warnings, *flags, "-o", str(target), source], check=True)
    return target


@needs_cc
def test_the_sleeper_compiles_without_a_warning_and_says_how_it_is_called(tmp_path: Path) -> None:
    done = subprocess.run([compiled(tmp_path / "sleeper")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == "failed: sleep: usage: sleeper HOST_KEY AUTHORIZED_KEYS PID_FILE\n"


WRITE_KEYS = """
#define main sleeper
#include "sleeper.c"
#undef main
int main(int argc, char **argv)
{
	if (read(0, &order, sizeof(order)) != sizeof(order) || argc != 3)
		return 1;
	write_host_key(argv[1]);
	write_client_key(argv[2]);
	printf("%lld %lld\\n", number(order.seconds), number(order.nanoseconds));
	return 0;
}
"""


@needs_cc
def test_the_guest_writes_the_keys_as_its_server_reads_them(tmp_path: Path) -> None:
    (tmp_path / "keys.c").write_text(WRITE_KEYS)
    program, host, client = tmp_path / "keys", tmp_path / "host", tmp_path / "client"
    subprocess.run(["cc", "-std=gnu11", f"-I{SCRIPTS}", "-o", str(program), str(tmp_path / "keys.c")], check=True)
    identity = Identity.fresh()
    order = wake_order(identity, bytes(SEED_BYTES), 1_700_000_000_000_000_042)
    told = subprocess.run([program, host, client], input=order, capture_output=True, check=True).stdout
    assert told == b"1700000000 42\n"
    assert host.read_bytes() == identity.host.dropbear
    assert client.read_text() == identity.client.public + "\n"


@needs_cc
def test_what_is_spared_is_proc_and_nothing_else(tmp_path: Path) -> None:
    library = compiled(tmp_path / "spare-seed.so", "-shared", "-fPIC", "-nostdlib")
    code = """
import ctypes, os
os.umask(0o022)
libc = ctypes.CDLL(None, use_errno=True)
for path in (b"/proc/loadavg", b"/dev/null", b"/processes", b"made"):
    got = libc.open(path, os.O_RDWR | os.O_CREAT if path == b"made" else os.O_RDONLY, 0o640)
    print(path.decode(), "opened" if got >= 0 else os.strerror(ctypes.get_errno()))
"""
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "/proc/loadavg No such file or directory",
        "/dev/null opened",
        "/processes No such file or directory",
        "made opened",
    ]
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o640


@needs_cc
def test_a_session_keeps_to_one_cpu_and_what_it_starts_does_not(tmp_path: Path) -> None:
    library = compiled(tmp_path / "one-cpu.so", "-shared", "-fPIC", "-nostdlib")
    code = """
import os
print("server", sorted(os.sched_getaffinity(0)), flush=True)
for name in ("session", "command"):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        break
    print(name, sorted(os.sched_getaffinity(0)), flush=True)
"""
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    cpus = sorted(os.sched_getaffinity(0))
    assert done.stdout.splitlines() == [f"server {cpus}", f"session {cpus[:1]}", f"command {cpus}"]
