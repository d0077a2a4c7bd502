# SPDX-License-Identifier: GPL-2.0-or-later
"""The complete test of the oracle on one guest."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from harness.collect.hostside import current_regions
from harness.config.guest import GuestSpec
from harness.deadline import Deadline
from harness.kmem.edit import MemoryEditor
from harness.kmem.physical_memory import PhysicalMemory
from harness.progress import Progress, Task
from harness.scenarios.run_options import Start
from harness.selftest.corruption import Corruption, MemoryCorruption, TextCorruption
from harness.selftest.live import Live
from harness.selftest.scene import Inapplicable, Scene
from harness.selftest.score import SelftestResult
from harness.selftest.story import FAREWELL, Play, play
from harness.selftest.trial import INAPPLICABLE, Trial, require_sound, try_memory, try_text
from harness.state import NotObserved


def run_selftest(
    spec: GuestSpec, corruptions: Sequence[Corruption], timeout: float, progress: Progress, start: Start = "auto"
) -> SelftestResult:
    """Start a guest and try ``corruptions`` on it, those of its memory while it is paused; then it must still work.

    ``timeout`` is seconds per step. Raises the errors of booting, InfraError if the guest fails an invariant before any
    corruption, if it does not stay paused, or if it does not survive the undone corruptions.
    """
    clock = time.monotonic()
    with play(spec, timeout, progress, start) as made:
        with progress.task(f"{spec.name}: corrupting", total=len(corruptions)) as task:
            trials = [*_in_text(made, corruptions, task), *_in_memory(made, corruptions, timeout, task)]
        made.act(FAREWELL)
        release = made.session.guest.facts.release
    return SelftestResult(spec.arch, spec.name, release, tuple(trials), dict(made.lacks), time.monotonic() - clock)


def _in_text(made: Play, corruptions: Sequence[Corruption], task: Task) -> Iterator[Trial]:
    for item in corruptions:
        if isinstance(item, TextCorruption):
            task.update(note=item.name)
            yield try_text(item, made.scenes)
            task.advance()


def _in_memory(made: Play, corruptions: Sequence[Corruption], timeout: float, task: Task) -> Iterator[Trial]:
    wanted = [item for item in corruptions if isinstance(item, MemoryCorruption)]
    if not wanted:
        return
    guest, deadline = made.session.guest, Deadline(timeout)
    machine = guest.machine
    places = current_regions(machine, deadline)
    with machine.paused(deadline), PhysicalMemory(places) as memory, MemoryEditor(places) as editor:
        try:
            live = Live(_with_log(made), guest.kernel, memory, editor, _log_start(made))
        except Inapplicable as unseen:
            yield from (Trial(item, INAPPLICABLE, reason=str(unseen)) for item in wanted)
            return
        require_sound(live.untouched)
        for item in wanted:
            task.update(note=item.name)
            yield try_memory(item, live)
            task.advance()


def _with_log(made: Play) -> Scene:
    """The last scene with the guest's log since its boot: the last step may have logged nothing."""
    last = made.scenes[-1]
    log = b"".join(scene.evidence.observed.raw.get("dmesg", b"") for scene in made.scenes[1:])
    return Scene(last.title, last.with_sources({"dmesg": log}))


def _log_start(made: Play) -> int | NotObserved:
    """The number of the first message in it."""
    span = made.scenes[1].evidence.observed.records.log_span
    return span if isinstance(span, NotObserved) else span[0]
