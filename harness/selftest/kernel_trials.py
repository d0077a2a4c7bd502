# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels with a real bug put back: each must turn red, by the right invariant; the clean one must stay green."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.arch import arch_named
from harness.artifacts.kept_tree import KeptTree, kept_tree
from harness.check import Verdict
from harness.config.guest import GuestSpec
from harness.progress import Progress
from harness.scenarios.file import Scenario
from harness.scenarios.record import DEFAULT_BUNDLES
from harness.scenarios.reporter import SilentReporter
from harness.scenarios.result import RunResult, StepResult
from harness.scenarios.run_options import RunOptions
from harness.scenarios.runner import run_pairs
from harness.selftest.putback import KernelBug

#: Debian's source package that the patches are for
SOURCE = "linux-source-7.3"

#: how a trial can end: the bug was named by the right invariants, only by others, or not at all; no verdict
NAMED, MISNAMED, MISSED, NO_VERDICT = "named", "misnamed", "missed", "no verdict"
#: and a trial of the clean kernel: it passed, or a finding was reported
GREEN, ALARM = "green", "alarm"

#: the clean kernel has known bugs, too (configs/known-bugs.yaml)
_GREEN = (Verdict.PASS, Verdict.KNOWN)


@dataclass(frozen=True, slots=True)
class KernelTrial:
    """One kernel on one architecture: with ``bug`` put back, or clean (None) with one of the scenarios.

    ``number`` and ``step`` are the first red step of ``scenario``, ``broken`` the invariants broken there; without a
    red step, ``scenario`` is the last one, and they are 0 and empty. ``built`` and ``ran`` are seconds.
    """

    arch: str
    kernel: str
    bug: KernelBug | None
    status: str
    scenario: str
    number: int
    step: str
    broken: tuple[str, ...]
    reason: str
    image: str
    built: float
    ran: float


def run_kernels(
    guest: GuestSpec, bugs: Sequence[KernelBug], options: RunOptions, progress: Progress
) -> Iterator[KernelTrial]:
    """Try the clean kernel, then each of ``bugs`` for the architecture of ``guest``; yield trials as they end.

    Raises ConfigError for a patch that does not apply, ArtefactError for a kernel that cannot be built.
    """
    own = [bug for bug in bugs if guest.arch in bug.arches]
    if not own:
        return
    with kept_tree(arch_named(guest.arch), SOURCE, progress) as tree:
        yield from _control(tree, guest, own, options, progress)
        for bug in own:
            yield _trial(tree, guest, bug, options, progress)


def _guest_of(guest: GuestSpec, bug: KernelBug, image: str) -> GuestSpec:
    wanted = {"kernel": image} if bug.cpu is None else {"kernel": image, "cpu": bug.cpu}
    return guest.with_fields(wanted)


def _control(
    tree: KeptTree, guest: GuestSpec, bugs: Sequence[KernelBug], options: RunOptions, progress: Progress
) -> Iterator[KernelTrial]:
    clock = time.monotonic()
    image = str(tree.image(None))
    built = time.monotonic() - clock
    pairs: dict[tuple[str, str | None], tuple[Scenario, GuestSpec]] = {}
    for bug in bugs:
        for scenario in bug.scenarios:
            pairs.setdefault((scenario.name, bug.cpu), (scenario, _guest_of(guest, bug, image)))
    for pair in pairs.values():
        result = _run(pair, options, progress)
        status = GREEN if result.verdict in _GREEN else ALARM if result.verdict is Verdict.FAIL else NO_VERDICT
        yield _told(tree, None, status, result, image, built)
        built = 0.0


def _trial(tree: KeptTree, guest: GuestSpec, bug: KernelBug, options: RunOptions, progress: Progress) -> KernelTrial:
    clock = time.monotonic()
    image = str(tree.image(bug))
    built, ran = time.monotonic() - clock, 0.0
    status = MISSED
    # Each kernel is booted once: a saved guest would be of no use.
    options = dataclasses.replace(options, start="cold" if options.start == "auto" else options.start)
    for scenario in bug.scenarios:
        result = _run((scenario, _guest_of(guest, bug, image)), options, progress)
        ran += result.seconds
        if result.verdict is Verdict.FAIL:
            status = NAMED if set(bug.named_by) <= set(_broken(result)) else MISNAMED
            break
        if result.verdict not in _GREEN:
            status = NO_VERDICT
    if status == NAMED and result.bundle is not None:
        _drop(result)
    return _told(tree, bug, status, result, image, built, ran)


def _run(pair: tuple[Scenario, GuestSpec], options: RunOptions, progress: Progress) -> RunResult:
    with progress.task(f"{pair[1].arch}: {pair[0].name}"):
        return run_pairs([pair], options, SilentReporter(), progress)[0]


def _drop(result: RunResult) -> None:
    """A kernel that is red as expected needs no bundle; unexpected results keep theirs."""
    assert result.bundle is not None
    shutil.rmtree(result.bundle, ignore_errors=True)
    with contextlib.suppress(OSError):
        DEFAULT_BUNDLES.rmdir()


def _red(result: RunResult) -> StepResult | None:
    """The step that decided the verdict of a run that did not pass."""
    return next((step for step in result.steps if step.verdict is result.verdict and step.verdict not in _GREEN), None)


def _broken(result: RunResult) -> tuple[str, ...]:
    red = _red(result)
    return () if red is None else tuple(check.invariant for check in red.checks if check.status == "fail")


def _told(
    tree: KeptTree, bug: KernelBug | None, status: str, result: RunResult, image: str, built: float, ran: float = 0.0
) -> KernelTrial:
    red = _red(result)
    return KernelTrial(
        arch=result.arch,
        kernel=tree.version,
        bug=bug,
        status=status,
        scenario=result.scenario,
        number=0 if red is None else red.number,
        step="" if red is None else red.title,
        broken=_broken(result),
        reason=result.reason,
        image=image,
        built=built,
        ran=ran or result.seconds,
    )
