# SPDX-License-Identifier: GPL-2.0-or-later
"""A run that fails for another reason than the guest: it gets its own verdict, other runs are not affected."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from qemu_peer import spec

from harness.check import Verdict
from harness.config.guest import GuestSpec
from harness.config.guest_parts import GuestRoot, KernelImage, QemuBinary
from harness.errors import InfraError, MemhpError, UnsupportedError, UsageError
from harness.progress import SilentProgress
from harness.scenarios import runner
from harness.scenarios.boot import UNCONFINED, BootedGuest, Parts, Resolver
from harness.scenarios.file import SNAPSHOT
from harness.scenarios.record import DEFAULT_BUNDLES, open_bundle
from harness.scenarios.reporter import SilentReporter
from harness.scenarios.result import StepResult
from harness.scenarios.run_options import RunOptions


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "Image"
    image.write_bytes(b"kernel")
    root = tmp_path / "root"
    root.write_bytes(b"userland")
    made = Parts(
        QemuBinary((str(image),), None, "", ""),
        None,
        KernelImage(image, "made up", None, None, None),
        GuestRoot(root),
    )
    monkeypatch.setattr(Resolver, "resolve", lambda resolver, spec, needs: made)


def start_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def start_guest(*words: object, counted: bool) -> Iterator[None]:
        raise error
        yield

    monkeypatch.setattr(runner, "start_guest", start_guest)


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(
    ("error", "reason", "hint"),
    [
        (OSError(28, "No space left on device"), "the host failed: [Errno 28] No space left on device", "notes.txt"),
        (KeyError("rp0"), "internal error of memhp: KeyError: 'rp0'", "please report it"),
        (EOFError(), "internal error of memhp: EOFError: ", "please report it"),
    ],
    ids=["host", "harness", "mute"],
)
def test_what_fails_beside_the_guest_is_a_verdict(
    error: Exception,
    reason: str,
    hint: str,
    jobs: int,
    parts: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start_with(error, monkeypatch)
    options = RunOptions(bundle_dir=tmp_path / "bundles", jobs=jobs)
    guest = GuestSpec.default("arm64")
    results = runner.run_scenarios([SNAPSHOT] * 3, guest, options, SilentReporter(), SilentProgress())
    assert [result.verdict for result in results] == [Verdict.INFRA] * 3
    for result in results:
        assert result.reason == reason and result.hint is not None and hint in result.hint
        assert result.bundle is not None
        assert "Traceback" in (result.bundle / "notes.txt").read_text()


@pytest.mark.parametrize(
    ("error", "clean"),
    [
        (UsageError("the guest has 1M free, less than fill must leave"), Verdict.INFRA),
        (UnsupportedError("dax-state", "this kernel has no dax0.0/state"), Verdict.SKIPPED),
        (InfraError("QEMU is gone"), Verdict.INFRA),
    ],
    ids=["usage", "ability", "infra"],
)
@pytest.mark.parametrize("found", [Verdict.PASS, Verdict.FAIL])
def test_what_ends_a_run_in_its_middle_ends_that_run_alone_and_hides_no_finding(
    error: MemhpError, clean: Verdict, found: Verdict, parts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(run: runner._Run) -> None:
        run.steps.append(StepResult(1, "touch", found, 0.0, 0.0, (), "why"))
        raise error

    monkeypatch.setattr(runner._Run, "_start_guest", lambda run: None)
    monkeypatch.setattr(runner._Run, "_work", work)
    guest, options = GuestSpec.default("arm64"), RunOptions(bundle_dir=tmp_path / "bundles")
    results = runner.run_scenarios([SNAPSHOT] * 2, guest, options, SilentReporter(), SilentProgress())
    wanted = found if found is Verdict.FAIL else clean
    reason = "step 1 (touch): why" if found is Verdict.FAIL else error.message
    assert [(result.verdict, result.reason) for result in results] == [(wanted, reason)] * 2


@pytest.mark.parametrize("sandbox", [True, False])
def test_a_qemu_without_a_seccomp_filter_is_told_of_at_step_0(
    sandbox: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "lacks_of", lambda layout: {})
    machine = SimpleNamespace(spec=dataclasses.replace(spec(), sandbox=sandbox))
    boot = StepResult(0, "boot", Verdict.PASS, 0.0, 0.0, (), "")
    guest = BootedGuest(machine, *[None] * 4, "acpi", None, restored=True)  # type: ignore[arg-type]
    session: Any = SimpleNamespace(guest=guest, layout=None, check_boot=lambda: boot)
    options = RunOptions(bundle_dir=tmp_path)
    run = runner._Run(SNAPSHOT, GuestSpec.default("arm64"), options, SilentReporter(), Resolver(SilentProgress()), None)
    run._do_steps(session)
    told = "" if sandbox else f"; {UNCONFINED}"
    assert [step.note for step in run.steps] == [f"restored in 0.0 s{told}"]


def test_an_interrupted_run_leaves_nothing(parts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    class Ended(BaseException):
        pass

    @contextlib.contextmanager
    def start_guest(*words: object, counted: bool) -> Iterator[None]:
        try:
            raise Ended
            yield
        finally:
            # The cleanup after a killed guest may raise errors of its own.
            raise EOFError

    monkeypatch.setattr(runner, "start_guest", start_guest)
    monkeypatch.setattr(runner._Run, "_described_failures", lambda run: contextlib.nullcontext())
    with pytest.raises(EOFError):
        runner.run_scenarios(
            [SNAPSHOT] * 3, GuestSpec.default("arm64"), RunOptions(jobs=2), SilentReporter(), SilentProgress()
        )
    assert not (tmp_path / DEFAULT_BUNDLES).exists()


def test_the_folder_of_bundles_may_vanish_under_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    mkdir = os.mkdir

    def vanish(path: Path, mode: int = 0o777) -> None:
        made.append(path)
        if len(made) == 2:
            os.rmdir(path.parent)
        mkdir(path, mode)

    monkeypatch.setattr(os, "mkdir", vanish)
    bundle = open_bundle(tmp_path / "bundles", "x", datetime.datetime.now(datetime.UTC))
    assert bundle.is_dir() and len(made) == 4
    assert bundle.stat().st_mode & 0o777 == 0o700
