# SPDX-License-Identifier: GPL-2.0-or-later
"""Restored guests: each is unique, and none comes from a damaged snapshot or another kernel."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.artifacts import cache as caching
from harness.check import Verdict
from harness.config.guest import GuestSpec
from harness.deadline import Deadline
from harness.errors import GuestError, LaunchError, QemuError
from harness.guest.identity import Identity
from harness.guest.ssh import GuestShell
from harness.progress import SilentProgress
from harness.scenarios.boot import BootedGuest, Parts, boot_guest
from harness.scenarios.file import read_scenario
from harness.scenarios.record import Recorder
from harness.scenarios.reporter import SilentReporter
from harness.scenarios.run_options import RunOptions
from harness.scenarios.runner import run_scenarios
from harness.scenarios.session import Session
from harness.scenarios.start import start_guest
from harness.scenarios.template import KIND, restore_guest, template

pytestmark = [pytest.mark.memhp_guest, pytest.mark.either_arch]

SECONDS = 600.0
CYCLE = """
name: cycle
guest: {maxmem: 12G}
steps:
  - auto-online: {policy: online_movable}
  - plug-virtio-mem: {id: vmem0, max: 512M}
  - resize: {id: vmem0, to: 256M}
  - resize: {id: vmem0, to: 0}
"""


@pytest.fixture(scope="module")
def saved(memhp_guest_spec: GuestSpec, memhp_artifacts: Parts) -> Path:
    return template(memhp_guest_spec, memhp_artifacts, SECONDS, SilentProgress())


@pytest.fixture
def own_cache(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache that contains only a copy of the saved guest, to be damaged."""
    copy = tmp_path / "cache" / KIND / saved.name
    shutil.copytree(saved, copy, copy_function=shutil.copy2)
    monkeypatch.setattr(caching, "cache_root", lambda: tmp_path / "cache")
    yield copy
    caching.remove_tree(tmp_path / "cache")


def ask(guest: BootedGuest, command: str) -> str:
    return guest.shell.must(command, deadline=Deadline(60)).decode().strip()


def test_two_at_once_share_nothing_but_their_beginning(
    memhp_guest_spec: GuestSpec, memhp_artifacts: Parts, saved: Path, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(restore_guest(memhp_guest_spec, memhp_artifacts, saved, tmp_path / name, SECONDS))
            for name in ("one", "two")
        )
        assert one.restored and two.restored
        # Entropy: the boot id is generated when it is first read.
        assert ask(one, "cat /proc/sys/kernel/random/boot_id") != ask(two, "cat /proc/sys/kernel/random/boot_id")
        random = "head -c 32 /dev/urandom | od -An -tx1"
        assert ask(one, random) != ask(two, random)
        # Keys: neither guest accepts the other's client key or has its host key.
        keys = "cat /root/.ssh/authorized_keys /etc/dropbear/dropbear_ed25519_host_key | od -An -tx1"
        assert ask(one, keys) != ask(two, keys)
        for guest in (one, two):
            with pytest.raises(GuestError, match="cannot log into the guest"):
                GuestShell.connect(guest.machine.ssh_port(Deadline(60)), Identity.fresh(), Deadline(60))
        # The clock is right, and a file that one guest writes does not exist in the other.
        assert abs(int(ask(one, "date +%s")) - int(subprocess.check_output(["date", "+%s"]))) < 60
        ask(one, "echo here >/tmp/mark")
        assert ask(two, "ls /tmp") == ""
        # Everything else is the same: the kernel's place in memory, and its log up to the sleep.
        log = "dmesg | sed '/memhp: asleep/q' | md5sum"
        assert one.facts == two.facts and ask(one, log) == ask(two, log)


def test_no_secret_is_saved(saved: Path) -> None:
    assert stat.S_IMODE(saved.parent.stat().st_mode) == 0o700
    pages = (saved / "ram0.pages").read_bytes()
    # Neither a wake order nor a public key.
    assert re.search(rb"memhp-wake \d", pages) is None
    assert b"ssh-ed25519 AAAA" not in pages


def test_the_console_log_tells_the_boot_and_no_keys(
    memhp_guest_spec: GuestSpec, memhp_artifacts: Parts, saved: Path, tmp_path: Path
) -> None:
    with restore_guest(memhp_guest_spec, memhp_artifacts, saved, tmp_path / "run", SECONDS) as guest:
        log = guest.machine.console_log.read_text(errors="replace")
    assert log.index("Linux version") < log.index("memhp: asleep") < log.index("memhp: ready")
    assert "memhp-wake" not in log and "ssh-ed25519" not in log


def test_a_restored_guest_is_as_sound_as_a_booted_one(
    memhp_guest_spec: GuestSpec, memhp_artifacts: Parts, tmp_path: Path
) -> None:
    layouts = []
    for how in ("restore", "cold"):
        (tmp_path / how).mkdir(mode=0o700)
        recorder = Recorder(tmp_path / how)
        recorder.start("by-hand", "", {"guest": memhp_guest_spec.name, "seed": 0})
        with start_guest(memhp_guest_spec, memhp_artifacts, tmp_path / how, SECONDS, how) as guest:
            assert guest.restored == (how == "restore")
            session = Session(guest, RunOptions(), recorder)
            assert session.check_boot().verdict is Verdict.PASS
            layouts.append((session.layout.block_size, session.layout.page_size, guest.facts.release))
    assert layouts[0] == layouts[1]


@pytest.mark.parametrize("name", ["ram0.pages", "state", "initrd"])
def test_what_is_damaged_is_made_again(
    name: str, memhp_guest_spec: GuestSpec, memhp_artifacts: Parts, own_cache: Path
) -> None:
    file = own_cache / name
    good = file.read_bytes()
    file.chmod(0o644)
    with file.open("r+b") as damaged:
        damaged.seek(len(good) // 2)
        damaged.write(bytes(byte ^ 0xFF for byte in good[len(good) // 2 :][:64]))
    assert caching.verify(own_cache) == f"{name}: changed since it was made"
    assert template(memhp_guest_spec, memhp_artifacts, SECONDS, SilentProgress()) == own_cache
    assert caching.verify(own_cache, full=True) is None


def test_a_state_that_qemu_does_not_take_is_an_error_and_the_guest_boots(
    memhp_guest_spec: GuestSpec,
    memhp_artifacts: Parts,
    own_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (own_cache / "state").chmod(0o644)
    (own_cache / "state").write_bytes(b"no state" * 1000)
    with (
        pytest.raises((QemuError, LaunchError)),
        restore_guest(memhp_guest_spec, memhp_artifacts, own_cache, tmp_path / "one", SECONDS),
    ):
        pass
    monkeypatch.setattr("harness.scenarios.start.template", lambda *args: own_cache)
    monkeypatch.setattr("harness.scenarios.start._hopeless", {})
    with start_guest(memhp_guest_spec, memhp_artifacts, tmp_path / "two", SECONDS) as guest:
        assert not guest.restored and guest.why_booted


def test_another_kernel_is_another_guest(
    memhp_guest_spec: GuestSpec, memhp_artifacts: Parts, saved: Path, own_cache: Path, tmp_path: Path
) -> None:
    import dataclasses

    image = tmp_path / "Image"
    image.write_bytes(memhp_artifacts.kernel.image.read_bytes() + bytes(4096))
    other = dataclasses.replace(memhp_artifacts, kernel=dataclasses.replace(memhp_artifacts.kernel, image=image))
    assert template(memhp_guest_spec, other, SECONDS, SilentProgress()).name != saved.name
    assert template(memhp_guest_spec, memhp_artifacts, SECONDS, SilentProgress()) == own_cache


def test_side_by_side(memhp_guest_spec: GuestSpec, tmp_path: Path) -> None:
    file = tmp_path / "cycle.yaml"
    file.write_text(CYCLE)
    options = RunOptions(bundle_dir=tmp_path / "bundles", jobs=2)
    results = run_scenarios([read_scenario(file)] * 3, memhp_guest_spec, options, SilentReporter(), SilentProgress())
    assert [result.verdict for result in results] == [Verdict.PASS] * 3
    assert all(result.facts["restored"] for result in results)
    boots = {(result.bundle / "states" / "000" / "boot_id.txt").read_text() for result in results if result.bundle}
    assert len(boots) == 3
    peaks = [result.facts["peak_memory"] for result in results]
    assert all(isinstance(peak, int) and peak < 1 << 30 for peak in peaks)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_nothing_is_left_of_runs_side_by_side(
    number: signal.Signals, memhp_guest_spec: GuestSpec, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kernel = request.config.getoption("memhp_kernel")
    (tmp_path / "tmp").mkdir()
    file = tmp_path / "cycle.yaml"
    file.write_text(CYCLE)
    program = "import sys; from harness.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", program, "run", *[str(file)] * 40, "-a", memhp_guest_spec.arch, "-j", "2"]
    words += ["--kernel", kernel] if kernel else []
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=tmp_path, env=environment) as harness:
        assert harness.stdout is not None
        for line in harness.stdout:
            if b"resize vmem0" in line:
                break
        children = Path(f"/proc/{harness.pid}/task").glob("*/children")
        qemus = [int(pid) for file in children for pid in file.read_text().split()]
        assert qemus
        harness.send_signal(number)
        harness.stdout.read()
    assert harness.returncode == 128 + number
    assert not any(Path(f"/proc/{pid}").exists() for pid in qemus)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not (tmp_path / "memhp-runs").exists()


def test_a_cold_boot_needs_no_snapshot(memhp_guest_spec: GuestSpec, memhp_artifacts: Parts, tmp_path: Path) -> None:
    with boot_guest(memhp_guest_spec, memhp_artifacts, tmp_path / "run", SECONDS) as guest:
        assert not guest.restored
        assert ask(guest, "ls /etc/dropbear") == "host_key"
