# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest for corruptions: DIMMs online, offline and removed, partially plugged virtio-mem, pmem with its memmap."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from harness.check import Verdict
from harness.config.guest import GuestSpec
from harness.deadline import Deadline
from harness.errors import InfraError, UnsupportedError
from harness.progress import Progress, Task
from harness.scenarios.boot import BootedGuest, Parts, resolve
from harness.scenarios.outcome import Outcome
from harness.scenarios.record import Recorder
from harness.scenarios.requirements import device_kinds, require_config
from harness.scenarios.result import StepResult
from harness.scenarios.run_options import RunOptions, Start
from harness.scenarios.session import Session
from harness.scenarios.start import start_guest
from harness.scenarios.verbs.blocks import AutoOnlineVerb, OnlineVerb
from harness.scenarios.verbs.dimm import PlugDimmVerb
from harness.scenarios.verbs.memory import TouchVerb
from harness.scenarios.verbs.plugging import UnplugVerb
from harness.scenarios.verbs.pmem import NamespaceVerb, PlugPmemVerb
from harness.scenarios.verbs.verb import Verb
from harness.scenarios.verbs.virtio_mem import PlugVirtioMemVerb, ResizeVerb
from harness.scenarios.verdict import evidence_of
from harness.scratch import private_directory
from harness.selftest.scene import Scene
from harness.units import MIB

DIMM, MEM, PMEM, DAX = "acpi-dimm", "virtio-mem", "virtio-pmem", "dax-kmem"
_NEEDS = (DIMM, MEM, PMEM, DAX)


@dataclass(frozen=True, slots=True)
class Act:
    """One step: it is skipped if one of ``needs`` is missing."""

    args: Verb
    needs: tuple[str, ...]

    @property
    def title(self) -> str:
        return self.args.title()


def acts(block: int) -> tuple[Act, ...]:
    """The steps for memory blocks of ``block`` bytes.

    The removed DIMM had neighbours on both sides; virtio-mem shrinks, so that memory is removed even without DIMMs. The
    second pmem ends inside a section.
    """
    return (
        Act(AutoOnlineVerb("offline"), ()),
        Act(PlugDimmVerb("dimm0", 2 * block), (DIMM,)),
        Act(OnlineVerb("dimm0"), (DIMM,)),
        Act(TouchVerb(device="dimm0", size=16 * MIB), (DIMM,)),
        Act(PlugDimmVerb("gone", 2 * block), (DIMM,)),
        Act(PlugDimmVerb("dimm1", 2 * block), (DIMM,)),
        Act(AutoOnlineVerb("online_movable"), (MEM,)),
        Act(PlugVirtioMemVerb("vmem0", max=4 * block, requested=2 * block + 66 * MIB), (MEM,)),
        Act(ResizeVerb("vmem0", block + 66 * MIB), (MEM,)),
        Act(PlugPmemVerb("pmem0", 4 * block), (PMEM,)),
        Act(NamespaceVerb("pmem0", "devdax", map="dev", align=2 * MIB), (PMEM, DAX)),
        Act(PlugPmemVerb("pmem1", 3 * block + 66 * MIB), (PMEM,)),
        Act(NamespaceVerb("pmem1", "devdax", map="mem", align=2 * MIB), (PMEM, DAX)),
        Act(UnplugVerb("gone"), (DIMM,)),
    )


#: proves that the guest still works
FAREWELL = Act(TouchVerb(size=16 * MIB), ())


@dataclass
class Play:
    """A guest after all steps: ``scenes`` of boot and steps, the last of them sound; the reasons for skipped steps."""

    session: Session
    lacks: Mapping[str, str]
    scenes: list[Scene] = field(default_factory=list)

    def act(self, step: Act) -> StepResult:
        """Do one step and keep its scene. Raises InfraError if it fails, or is not done."""
        outcomes: list[Outcome] = []

        def work(session: Session, deadline: Deadline) -> Outcome:
            outcomes.append(step.args.run(session, deadline))
            return outcomes[-1]

        result = self.session.act(step.title, work)
        require_done(result)
        self._keep(step.title, outcomes[-1])
        return result

    def boot(self) -> None:
        """The scene of the freshly booted guest. Raises InfraError if it fails."""
        require_done(self.session.check_boot())
        self._keep("boot", Outcome())

    def _keep(self, title: str, outcome: Outcome) -> None:
        before = self.scenes[-1].evidence.observed if self.scenes else None
        evidence = evidence_of(self.session.model, outcome, self.session.state, before)
        self.scenes.append(Scene(title, evidence))


def require_done(result: StepResult) -> None:
    """Raise InfraError unless the step passed, or showed known bugs of this kernel and nothing else."""
    if result.goes_on:
        return
    findings = [
        f"{finding.invariant}: {finding.where}: expected {finding.expected}, observed {finding.observed}"
        for check in result.checks
        for finding in check.findings
    ]
    why = "; ".join(findings[:3]) or result.note or result.verdict.value
    raise InfraError(
        f"the guest fails before any corruption: step {result.number} ({result.title}): {why}",
        hint="see memhp run for details",
    )


def resolve_most(spec: GuestSpec, progress: Progress) -> tuple[Parts, dict[str, str]]:
    """The parts for all steps that kernel and QEMU support, and the reasons for the others."""
    lacks: dict[str, str] = {}
    while True:
        needs = tuple(name for name in _NEEDS if name not in lacks)
        try:
            return resolve(spec, needs, progress), lacks
        except UnsupportedError as lack:
            if lack.requirement in needs:
                lacks[lack.requirement] = lack.message
            elif lack.requirement == "qemu" and device_kinds(needs):
                lacks.update({name: lack.message for name in needs if device_kinds([name])})
            else:
                raise


@contextlib.contextmanager
def play(spec: GuestSpec, timeout: float, progress: Progress, start: Start = "auto") -> Iterator[Play]:
    """Start a guest, do the steps, and end the guest when the block is left.

    Raises the errors of booting, InfraError if a step does not pass, UnsupportedError if no device can be added.
    """
    parts, lacks = resolve_most(spec, progress)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(private_directory())
        recorder = Recorder(directory)
        with progress.task(f"{spec.name}: starting"):
            guest = stack.enter_context(start_guest(spec, parts, directory, timeout, start))
        lacks |= _lacks_of(guest, lacks)
        if {DIMM, MEM, PMEM} <= lacks.keys():
            raise UnsupportedError(DIMM, f"no memory device works on this guest: {'; '.join(lacks.values())}")
        with progress.task(f"{spec.name}: preparing the guest") as task:
            session = Session(guest, RunOptions(timeout=timeout), recorder)
            made = Play(session, lacks)
            made.boot()
            _do(made, task)
        yield made


def _do(made: Play, task: Task) -> None:
    todo = [step for step in acts(made.session.layout.block_size) if not made.lacks.keys() & set(step.needs)]
    task.update(total=len(todo))
    for step in todo:
        task.update(note=step.title)
        last = made.act(step)
        task.advance()
    if last.verdict is Verdict.KNOWN:
        # The next step is compared with what the known bug left behind: it is sound again.
        made.act(FAREWELL)


def _lacks_of(guest: BootedGuest, known: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for name in _NEEDS:
        try:
            require_config((name,), guest.facts.config, f"the kernel {guest.facts.release}")
        except UnsupportedError as lack:
            found[name] = known.get(name, lack.message)
    return found
