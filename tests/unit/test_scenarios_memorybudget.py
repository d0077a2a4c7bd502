# SPDX-License-Identifier: GPL-2.0-or-later
"""For how many guests the host has memory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import harness
from harness.config.arguments import Args
from harness.config.guest import GuestSpec
from harness.scenarios import start
from harness.scenarios.boot import BootedGuest
from harness.scenarios.file import load_scenario
from harness.scenarios.memorybudget import (
    OVERHEAD,
    MemoryBudget,
    available_memory,
    cost,
    parse_bytes,
    peak_memory,
)
from harness.scenarios.memorypromises import Promises, promises_dir
from harness.scenarios.steps import Repeat, Step
from harness.scenarios.verbs import VERBS
from harness.scenarios.verbs.dimm import PlugDimmVerb
from harness.scenarios.verbs.memory import FillVerb
from harness.scenarios.verbs.verb import Verb
from harness.scenarios.verbs.virtio_mem import PlugVirtioMemVerb
from harness.units import GIB, MIB


def test_parsers() -> None:
    assert parse_bytes("MemAvailable", "MemTotal:  100 kB\nMemAvailable:   2048 kB\n") == 2 * MIB
    assert parse_bytes("MemAvailable", "MemTotal:  100 kB\n") is None
    assert parse_bytes("VmHWM", "Name:\tx\nVmHWM:\t    1024 kB\n") == MIB
    assert parse_bytes("VmHWM", "Name:\tx\n") is None


def test_this_machine_tells() -> None:
    assert (available_memory() or 0) > 0
    assert (peak_memory("self") or 0) > MIB
    assert peak_memory(1 << 30) is None


def host(root: Path, cgroup: str, mount: str, groups: dict[str, dict[str, object]]) -> Path:
    """A host with 64 MiB available; ``groups`` are files of folders below sys/fs/cgroup."""
    files: dict[str, object] = {"proc/meminfo": "MemAvailable:  65536 kB", "proc/self/cgroup": cgroup}
    files["proc/self/mountinfo"] = f"24 30 0:22 / /proc rw - proc proc rw\n35 24 0:30 {mount}"
    for folder, content in groups.items():
        files |= {f"sys/fs/cgroup/{folder}/{name}": value for name, value in content.items()}
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


V2 = "/ /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "/ /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory"


def v2(limit: object, used: int, cache: int = 0) -> dict[str, object]:
    stat = f"anon 1\ninactive_file {cache * MIB}\nactive_file 7"
    return {"memory.max": limit, "memory.high": "max", "memory.current": used * MIB, "memory.stat": stat}


def v1(limit: int, used: int) -> dict[str, object]:
    stat = f"inactive_file 1\ntotal_inactive_file {MIB}"
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used * MIB, "memory.stat": stat}


@pytest.mark.parametrize(
    ("cgroup", "mount", "groups", "left"),
    [
        ("0::/", V2, {}, 64),
        ("0::/", V2, {"": v2(3 * MIB, 2)}, 1),
        ("0::/a/b", V2, {"a": v2("max", 9), "a/b": v2("max", 9)}, 64),
        ("0::/a/b", V2, {"a": v2("max", 9), "a/b": v2(20 * MIB, 9)}, 11),
        ("0::/a/b", V2, {"a": v2(20 * MIB, 12), "a/b": v2(40 * MIB, 9)}, 8),
        ("0::/a/b", V2, {"a": v2(20 * MIB, 12, cache=5), "a/b": {}}, 13),
        ("0::/a/b", V2, {"a/b": v2("max", 9) | {"memory.high": 10 * MIB}}, 1),
        ("0::/a", V2, {"a": v2(3 * MIB, 4)}, 0),
        # Without a namespace of cgroups, a container sees its path on the host, and its own folder as the top.
        ("0::/docker/x", V2.replace("/ ", "/docker/x ", 1), {"": v2(30 * MIB, 9)}, 21),
        ("0::/docker/x", V2.replace("/ ", "/elsewhere ", 1), {"": v2(30 * MIB, 9)}, 21),
        ("0::/../../b", V2, {"": v2(30 * MIB, 9)}, 21),
        ("5:cpu,memory:/a/b\n0::/z", V1, {"memory/a": v1(20 * MIB, 9), "memory/a/b": v1(1 << 62, 9)}, 12),
        ("5:memory:/a\n0::/z", V1, {"memory": v1(8 * MIB, 7), "memory/a": v1(20 * MIB, 7)}, 2),
        ("5:cpu:/a", V1, {"memory": v1(8 * MIB, 7)}, 64),
        ("garbage", V2, {"": v2(3 * MIB, 2)}, 64),
    ],
)
def test_every_cgroup_above_counts(
    cgroup: str, mount: str, groups: dict[str, dict[str, object]], left: int, tmp_path: Path
) -> None:
    assert available_memory(host(tmp_path, cgroup, mount, groups)) == left * MIB


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEMHP_CACHE", str(tmp_path / "cache"))
    return promises_dir()


#: another memhp that reserves 3 GiB, then waits
OTHER = """
import os, sys
from harness.scenarios.memorybudget import MemoryBudget
with MemoryBudget.of_host() as room:
    print(room.enter(int(sys.argv[1])), flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def other(size: int, *wrapper: str) -> Iterator[Callable[[], object]]:
    """Another memhp, a child of ``wrapper``; gives a function that kills it."""
    environment = {**os.environ, "PYTHONPATH": str(Path(harness.__file__).parents[1])}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    argv = [*wrapper, sys.executable, "-c", OTHER, str(size)]
    with subprocess.Popen(argv, env=environment, start_new_session=True, **pipes) as process:
        assert process.stdout is not None and process.stdout.readline() == "True\n"

        def kill() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # Its end, not only that of the shell above it.
            assert process.stdout is not None and process.stdout.read() == ""

        yield kill
        kill()


#: no child of this process
STRANGER = ("/bin/sh", "-c", '"$@"; exit 0', "stranger")


def test_two_memhp_do_not_both_take_all_the_memory(cache: Path) -> None:
    promises = Promises(cache)
    room = MemoryBudget(8 * GIB, promises)
    with other(5 * GIB, *STRANGER) as kill:
        said = room.lack([2 * GIB] * 8, 2)
        assert said is not None and said.endswith(
            "memory for 1 guest at a time, not for 2: "
            "3.0G available besides 5.0G that other memhp processes may use, a guest may take 2.0G"
        )
        assert room.enter(2 * GIB) and room.enter(GIB) and not room.enter(1)
        room.leave(GIB)
        kill()
        # What a killed process had promised is free again, and its file is gone.
        assert room.enter(6 * GIB) and not room.enter(1)
        assert len(list(cache.glob("promise-*"))) == 1
    promises.close()
    assert not list(cache.glob("promise-*")) and cache.stat().st_mode & 0o777 == 0o700


def test_the_first_guest_of_a_process_never_waits_for_another_process(cache: Path) -> None:
    promises = Promises(cache)
    with other(9 * GIB, *STRANGER):
        room = MemoryBudget(8 * GIB, promises)
        assert room.enter(GIB) and not room.enter(1)
    promises.close()


def test_what_a_matrix_promised_for_its_cells_is_not_promised_twice(cache: Path) -> None:
    with MemoryBudget.of_host() as room:
        assert room.enter(GIB)
        # The child's parent is this process.
        with other(GIB):
            assert sum(path.read_text().strip() == str(GIB) for path in cache.glob("promise-*")) == 1
        with other(GIB, *STRANGER):
            assert sum(path.read_text().strip() == str(GIB) for path in cache.glob("promise-*")) == 2


@pytest.mark.parametrize("counted", [False, True])
def test_every_guest_keeps_its_memory(
    counted: bool, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = BootedGuest(*[None] * 5, "dt", None)  # type: ignore[arg-type]
    monkeypatch.setattr(start, "boot_guest", lambda *words: contextlib.nullcontext(guest))
    spec, parts = GuestSpec.default("arm64"), cast(Any, SimpleNamespace())
    with start.start_guest(spec, parts, tmp_path, 1.0, "cold", counted=counted):
        promised = [int(path.read_text()) for path in cache.glob("promise-*")]
        assert promised == ([] if counted else [cost(spec)])
        # A run beside it, as a test of pytest may do, has its own.
        with MemoryBudget.of_host() as room:
            assert room.enter(GIB)
            assert len(list(cache.glob("promise-*"))) == 2 - counted
    assert not list(cache.glob("promise-*"))


def test_nobody_but_a_run_counts_its_guests_itself() -> None:
    sources = {path.name: path.read_text() for path in Path(harness.__file__).parent.rglob("*.py")}
    assert [name for name, text in sources.items() if "counted=True" in text] == ["runner.py"]


def test_another_hosts_promises_do_not_count(cache: Path) -> None:
    promises = Promises(cache)
    with (cache / "promise-another-1-2-3").open("w") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        theirs.write(f"{8 * GIB}\n")
        theirs.flush()
        with promises.others() as size:
            assert size == 0
    promises.close()


def test_a_cache_that_cannot_be_written_leaves_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEMHP_CACHE", str(tmp_path / "file"))
    with MemoryBudget.of_host() as room:
        assert (room.total or 0) > 0 and room.enter(1)


def test_a_guest_costs_its_memory_what_is_touched_and_qemu() -> None:
    spec = GuestSpec.default("arm64")
    assert cost(spec) == GIB + OVERHEAD
    # The scenario touches 64M and 32M.
    assert cost(spec, load_scenario("dimm-cycle").steps) == GIB + OVERHEAD + 96 * MIB


def test_a_guest_that_is_filled_up_costs_all_that_is_plugged() -> None:
    spec = GuestSpec.default("arm64")
    plugs = [Step(PlugDimmVerb("d", GIB)), Step(PlugVirtioMemVerb("v", 2 * GIB))]
    assert cost(spec, plugs) == GIB + OVERHEAD
    rounds = Repeat(2, (Step(FillVerb(MIB)),))
    assert cost(spec, [*plugs, rounds]) == 4 * GIB + OVERHEAD


def test_who_is_alone_gets_in_others_only_where_there_is_room() -> None:
    room = MemoryBudget(3)
    assert room.enter(5)
    assert not room.enter(1)
    room.leave(5)
    assert room.enter(2) and room.enter(1) and not room.enter(1)
    assert MemoryBudget(None).enter(1 << 60) and MemoryBudget(None).lack([1 << 60], 64) is None


@pytest.mark.parametrize(("total", "fit"), [(4 * GIB, "2 guests"), (GIB, "1 guest at")])
def test_too_little_memory_is_said(total: int, fit: str) -> None:
    said = MemoryBudget(total).lack([2 * GIB] * 8, 4)
    assert said is not None and f"memory for {fit}" in said and "not for 4" in said and "may take 2.0G" in said


def test_enough_memory_is_not_spoken_of() -> None:
    assert MemoryBudget(8 * GIB).lack([2 * GIB] * 8, 4) is None
    assert MemoryBudget(2 * GIB).lack([2 * GIB], 4) is None
    assert MemoryBudget(2 * GIB).lack([], 4) is None


@pytest.mark.parametrize("verb", [verb for verb in VERBS.values() if verb.room == "takes"], ids=lambda verb: verb.name)
def test_what_takes_room_for_devices_says_how_much_memory_it_can_add(verb: type[Verb]) -> None:
    assert verb.capacity is not Args.capacity


def test_a_cache_that_is_removed_or_full_during_a_run_leaves_the_budget(cache: Path) -> None:
    promises = Promises(cache)
    room = MemoryBudget(8 * GIB, promises)
    assert room.enter(1)
    shutil.rmtree(cache)
    assert room.enter(1)
    with Path("/dev/full").open("w") as full:
        os.dup2(full.fileno(), promises._file.fileno())
    room.leave(1)
    assert room.enter(1)
    promises.close()
