# SPDX-License-Identifier: GPL-2.0-or-later
"""Failures of the host: full or read-only disks, damaged parts in the cache, and memhp killed at any moment."""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from leftovers import LONG_SCENARIO, MEMHP, World

from harness.artifacts.cache import cache_root, hash_file, remove_tree, verify
from harness.scenarios.boot import Parts

pytestmark = [pytest.mark.memhp_guest, pytest.mark.either_arch]

SCENARIO = """
name: host
steps:
  - plug-virtio-mem: {id: vmem0, max: 1G, requested: 128M}
  - resize: {id: vmem0, to: 0}
  - unplug: {id: vmem0}
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "host.yaml").write_text(SCENARIO)
    return World(tmp_path)


@pytest.fixture
def cache(world: World, memhp_artifacts: Parts) -> Path:
    """A cache with a private copy of the guest root; everything else links to the real cache."""
    own, real = world.root / "cache", cache_root()
    own.mkdir()
    for path in real.iterdir():
        if path.is_dir() and path.name not in ("guest-root", "locks"):
            (own / path.name).symlink_to(path)
    entry = memhp_artifacts.root.initrd.parent
    shutil.copytree(entry, own / "guest-root" / entry.name, symlinks=True)
    return own


@pytest.fixture
def entry(cache: Path, memhp_artifacts: Parts) -> Iterator[Path]:
    path = cache / "guest-root" / memhp_artifacts.root.initrd.parent.name
    assert verify(path, full=True) is None
    yield path
    for folder in (cache / "guest-root").rglob("*"):
        if folder.is_dir():
            folder.chmod(0o755)


def start(world: World, *words: str, cache: Path | None = None, before: str = "") -> subprocess.Popen[str]:
    """Start memhp; with ``before``, a shell command, run it in a private mount namespace after that command."""
    environment = world.environment
    if cache is not None:
        environment["MEMHP_CACHE"] = str(cache)
    argv = [*MEMHP, *words]
    if before:
        namespace = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-r", "-m"]
        argv = [*namespace, "sh", "-ec", f'{before}; exec "$@"', "sh", *argv]
    return subprocess.Popen(
        argv, env=environment, cwd=world.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    with process:
        out, _ = process.communicate(timeout=1200)
    assert "Traceback" not in out and "internal error" not in out, out
    return process.returncode, out


def require_mounts() -> None:
    namespace = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-r", "-m"]
    if subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not allow private mount namespaces")


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_a_damaged_part_is_made_again_and_never_used(
    damage: str, world: World, guest: list[str], cache: Path, entry: Path, memhp_artifacts: Parts
) -> None:
    initrd = entry / memhp_artifacts.root.initrd.name
    whole, size = hash_file(initrd), initrd.stat().st_size
    initrd.chmod(0o644)
    with initrd.open("r+b") as file:
        if damage == "truncated":
            file.truncate(size // 2)
        else:
            file.seek(size // 2)
            file.write(b"damage")
    status, out = finish(start(world, "fetch", "guest-root", *guest[:2], cache=cache))
    assert status == 0, out
    assert "the cached copy is damaged" in out
    assert verify(entry, full=True) is None and hash_file(initrd) == whole
    world.assert_clean()


def test_two_runs_that_want_the_same_part_make_it_once(
    world: World, guest: list[str], cache: Path, entry: Path
) -> None:
    remove_tree(entry)
    both = [start(world, "fetch", "guest-root", *guest[:2], cache=cache) for _ in range(2)]
    ended = [finish(process) for process in both]
    assert [status for status, _ in ended] == [0, 0], ended
    assert sum("Packing" in out and "done in" in out for _, out in ended) == 1
    assert verify(entry, full=True) is None
    assert [path.name for path in entry.parent.iterdir()] == [entry.name]
    world.assert_clean()


def test_a_cache_that_cannot_be_written_serves_what_it_has(world: World, guest: list[str], cache: Path) -> None:
    require_mounts()
    readonly = f"mount --bind {cache} {cache}; mount -o remount,bind,ro {cache}"
    status, out = finish(start(world, "run", "host.yaml", *guest, cache=cache, before=readonly))
    assert status == 0, out
    world.assert_clean()


@pytest.mark.parametrize(
    ("mount", "why"),
    [
        ("mount --bind {0} {0}; mount -o remount,bind,ro {0}", "Read-only file system"),
        ("mount -t tmpfs -o size=256k none {0}/guest-root", "No space left on device"),
    ],
    ids=["read-only", "full"],
)
def test_a_part_that_cannot_be_kept_is_no_verdict(
    mount: str, why: str, world: World, guest: list[str], cache: Path, entry: Path
) -> None:
    require_mounts()
    remove_tree(entry)
    status, out = finish(start(world, "run", "host.yaml", *guest, cache=cache, before=mount.format(cache)))
    assert status == 3, out
    assert why in out and "hint:" in out
    assert list((cache / "guest-root").iterdir()) == []
    world.assert_clean()


@pytest.mark.parametrize(
    "share", [pytest.param(0.1, marks=pytest.mark.long), 0.5, pytest.param(0.9, marks=pytest.mark.long)]
)
def test_a_full_disk_is_no_verdict(share: float, world: World, guest: list[str]) -> None:
    require_mounts()
    bundles = world.root / "bundles"
    words = ["run", "host.yaml", *guest, "--bundle-dir", "bundles", "--json", "out.json", "--timeout", "60"]
    assert finish(start(world, *words))[0] == 0
    whole = sum(-(-path.stat().st_size // 4096) for path in bundles.rglob("*") if path.is_file())
    shutil.rmtree(bundles)
    bundles.mkdir()
    full = f"mount -t tmpfs -o nr_blocks={int(share * whole)} none bundles"
    status, out = finish(start(world, *words, before=full))
    assert status == 3, out
    assert "no verdict" in out and re.search(r"No space left|[Dd]isk|write", out)
    world.assert_clean()


def test_a_full_temporary_folder_is_no_verdict(world: World, guest: list[str]) -> None:
    require_mounts()
    full = f"mount -t tmpfs -o size=1m none {world.temp}"
    # A restored guest needs no space there.
    words = ["run", "host.yaml", *guest, "--bundle-dir", "bundles", "--boot=cold"]
    status, out = finish(start(world, *words, before=full))
    assert status == 3, out
    assert "No space left on device" in out
    world.assert_clean()


def test_memhp_can_be_ended_at_any_moment(
    world: World, guest: list[str], request: pytest.FixtureRequest, record_fault: Callable[..., None]
) -> None:
    rounds = request.config.getoption("memhp_interrupts")
    dice = random.Random(request.config.getoption("memhp_interrupt_seed"))
    words = ["run", "host.yaml", *guest, "--bundle-dir", "bundles"]
    # The first run may have to save the boot snapshot.
    assert finish(start(world, *words))[0] == 0
    started = time.monotonic()
    assert finish(start(world, *words))[0] == 0
    whole = time.monotonic() - started
    statuses = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
    log = []
    for number in range(rounds):
        wanted = list(statuses)[number % len(statuses)]
        moment = dice.uniform(0.0, whole)
        process = start(world, *words)
        try:
            out, _ = process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.send_signal(wanted)
            out, _ = process.communicate(timeout=300)
        log.append(f"{wanted.name} after {moment:.1f} s: {process.returncode}")
        record_fault(wanted.name, guest[1], process.returncode, "-", f"{moment:.1f}")
        # Before Python runs memhp's code, a signal has its default effect.
        assert process.returncode in (statuses[wanted], 0, -wanted), (log[-1], out)
        assert "internal error" not in out, (log[-1], out)
        if wanted is not signal.SIGKILL:
            world.assert_clean()
        else:
            world.assert_ended()
    # The next run removes what SIGKILL left in the temporary folder.
    assert finish(start(world, *words))[0] == 0
    world.assert_clean()


def _wrapper(world: World, parts: Parts, last: str) -> str:
    """A script that runs the real QEMU; ``last`` is its end."""
    qemu = parts.qemu
    words = [*qemu.argv, *([] if qemu.data_dir is None else ["-L", str(qemu.data_dir)])]
    path = world.root / "my-qemu"
    path.write_text(f"#!/bin/sh\n{last.format(qemu=shlex.join(words))}\n")
    path.chmod(0o755)
    return str(path)


def test_a_qemu_that_would_outlive_memhp_is_refused(world: World, guest: list[str], memhp_artifacts: Parts) -> None:
    wrapper = _wrapper(world, memhp_artifacts, '{qemu} "$@"\nexit $?')
    status, out = finish(start(world, "run", "host.yaml", *guest, "--bundle-dir", "bundles", "--qemu", wrapper))
    assert status == 2 and "my-qemu runs QEMU as another process, which would outlive a memhp that is killed" in out
    world.assert_clean()


def test_a_qemu_behind_a_wrapper_dies_with_memhp(world: World, guest: list[str], memhp_artifacts: Parts) -> None:
    (world.root / "long.yaml").write_text(LONG_SCENARIO)
    wrapper = _wrapper(world, memhp_artifacts, 'exec {qemu} "$@"')
    process = start(world, "run", "long.yaml", *guest, "--bundle-dir", "bundles", "--qemu", wrapper, "--boot=cold")
    assert process.stdout is not None
    for line in process.stdout:
        if "resize vmem0" in line:
            break
    else:
        pytest.fail("the run ended before its first step")
    assert world.qemu()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    world.assert_ended()


@pytest.mark.parametrize("how", ["cold", "restore"])
def test_what_a_run_opens_is_for_its_user_alone(how: str, world: World, guest: list[str]) -> None:
    (world.root / "long.yaml").write_text(LONG_SCENARIO)
    process = start(world, "run", "long.yaml", *guest, "--bundle-dir", "bundles", "--boot", how)
    assert process.stdout is not None
    for line in process.stdout:
        if "resize vmem0" in line:
            break
    # Its files stay as they are while we look.
    process.send_signal(signal.SIGSTOP)
    listeners = world.listeners()
    private = [path for path in world.temp.rglob("*") if path.is_dir()]
    [bundle] = (world.root / "bundles").iterdir()
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (*private, bundle)}
    secrets = [path for path in (*world.temp.rglob("*"), *bundle.rglob("*")) if path.is_file() and _holds_key(path)]
    # /proc/net/tcp: 127.0.0.1 in the byte order of a little-endian machine.
    assert [address.partition(":")[0] for address in listeners] == ["0100007F"]
    assert set(modes.values()) == {0o700}
    # A restored guest gets its keys over its console: no file contains them.
    assert bool(private) == bool(secrets) == (how == "cold")
    assert all(path.parent in private for path in secrets)
    process.send_signal(signal.SIGCONT)
    process.terminate()
    assert finish(process)[0] == 143
    world.assert_clean()


def _holds_key(path: Path) -> bool:
    return b"PRIVATE KEY" in path.read_bytes() or b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x40" in path.read_bytes()
