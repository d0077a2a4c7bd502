# SPDX-License-Identifier: GPL-2.0-or-later
"""From a matrix file to its cells: one scenario on one guest each, with a name that is the same every night.

``prepare`` fetches and builds the parts of all their guests before the first one starts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.arch import arch_named
from harness.arch.config_queries import Build
from harness.arch.modes import PAGING_CHOICES, va_bits_of_build
from harness.check import Verdict
from harness.check.bugs import bugs_file
from harness.config.guest import GuestSpec, problems
from harness.config.guest_parts import KernelImage
from harness.config.yaml import read_text
from harness.errors import ConfigError, InfraError, MemhpError, UsageError
from harness.matrix.kernel_axis import expand, with_flavour
from harness.matrix.matrix_file import MAX_CELLS, Grid, MatrixFile, Setting
from harness.progress import Progress
from harness.scenarios.boot import Parts, Resolver
from harness.scenarios.file import Scenario, load_scenario
from harness.scenarios.memorybudget import cost
from harness.scenarios.steps import count_steps

#: seconds that a cell takes besides its steps, and per step: two guests at a time on two cores, TCG
BOOT_SECONDS = 9.0
STEP_SECONDS = 1.6


@dataclass(frozen=True, slots=True)
class Cell:
    """One scenario on one guest.

    ``id`` is ``GUEST/SCENARIO``; ``axes`` are its values in the matrix file, in the file's order of axes; ``scenario``
    is a name or a path; ``steps`` is the number of steps; ``digest`` changes with anything that would make it another
    cell; ``memory`` is the host memory that its guest may take, in bytes.
    """

    id: str
    axes: Mapping[str, str]
    scenario: str
    guest: GuestSpec
    steps: int
    timeout: float
    rounds: int | None
    digest: str
    va_bits: int | None = None
    page_size: int | None = None
    memory: int = 0

    @property
    def source(self) -> Path | str:
        """Its scenario as an argument of ``load_scenario``."""
        return _named(self.scenario)

    @property
    def weight(self) -> float:
        """Estimated seconds, from its steps alone: the same on every machine."""
        return BOOT_SECONDS + STEP_SECONDS * self.steps

    def guest_fields(self) -> dict[str, object]:
        """The fields of its guest file: only those that the cell sets, so that the scenario's wishes apply."""
        spec = self.guest
        fields: dict[str, object] = {"arch": spec.arch, "name": spec.name}
        return fields | {name: getattr(spec, name) for name in sorted(spec.explicit - {"name", "arch"})}

    def guest_text(self) -> str:
        """The guest file: YAML, one JSON value per line."""
        return "".join(f"{name}: {json.dumps(value)}\n" for name, value in self.guest_fields().items())


@dataclass(frozen=True, slots=True)
class MatrixPlan:
    """All cells of a matrix. Plans with equal ``digest`` have the same cells."""

    name: str
    cells: tuple[Cell, ...]
    digest: str


def make_plan(matrix: MatrixFile) -> MatrixPlan:
    """Every cell of the matrix, in the order of its file.

    Cells that two grids share appear once. Raises ConfigError, naming file and line, for an invalid matrix: a paging
    mode of another architecture, a guest that cannot be built, one name for two different cells, no cell.
    """
    cells: dict[str, Cell] = {}
    # A verdict depends on the known bugs, too.
    known = read_text(bugs_file())
    for grid in matrix.grids:
        for cell in _cells(grid, matrix.source, known):
            other = cells.setdefault(cell.id, cell)
            if other.digest != cell.digest:
                raise ConfigError(
                    f"another grid has {cell.id} with other settings",
                    file=matrix.source,
                    line=grid.line,
                    hint="give them the same timeout and rounds, or distinguish them by the value of an axis",
                )
            if len(cells) > MAX_CELLS:
                raise ConfigError(
                    f"more than {MAX_CELLS} cells",
                    file=matrix.source,
                    line=grid.line,
                    hint="remove values or add exclusions",
                )
    if not cells:
        raise ConfigError("the matrix is empty: everything is excluded", file=matrix.source, hint="see exclude")
    found = tuple(cells.values())
    return MatrixPlan(matrix.name, found, _hash(cell.digest for cell in found))


def _hash(parts: Iterable[str]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(f"{len(part)}:{part}".encode())
    return whole.hexdigest()[:32]


def _cells(grid: Grid, source: Path, known: str) -> Iterator[Cell]:
    scenarios = {setting.value: load_scenario(_named(setting.value)) for setting in grid.axes["scenario"]}
    axes = [axis for axis in grid.axes if axis != "kernel"]
    for values in itertools.product(*(grid.axes[axis] for axis in axes)):
        chosen = dict(zip(axes, values, strict=True))
        for kernel in _kernels(grid, chosen["arch"].value, source):
            point = chosen if kernel is None else _ordered(grid, chosen | {"kernel": kernel})
            if not _excluded(grid, point):
                scenario = scenarios[point["scenario"].value]
                yield _with_digest(_cell(grid, point, scenario, source), scenario.text, known)


def _named(value: str) -> Path | str:
    return Path(value) if "/" in value else value


def _ordered(grid: Grid, point: Mapping[str, Setting]) -> dict[str, Setting]:
    return {axis: point[axis] for axis in grid.axes}


def _kernels(grid: Grid, arch: str, source: Path) -> tuple[Setting | None, ...]:
    if "kernel" not in grid.axes:
        return (None,)
    return tuple(kernel for setting in grid.axes["kernel"] for kernel in expand(setting, arch, source))


def _excluded(grid: Grid, point: Mapping[str, Setting]) -> bool:
    return any(all(point[axis].text in texts for axis, texts in rule.items()) for rule in grid.exclude)


def _cell(grid: Grid, point: Mapping[str, Setting], scenario: Scenario, source: Path) -> Cell:
    arch = point["arch"].value
    label = ".".join(setting.label for axis, setting in point.items() if axis != "scenario")
    fields = _fields(point, arch, source)
    spec = GuestSpec.default(arch).with_fields({"name": label, **fields})
    for problem in problems(spec):
        raise ConfigError(f"{label}: {problem.message}", file=source, line=grid.line, hint=problem.hint)
    try:
        scenario.apply_to(spec)
    except UsageError as error:
        hint = f"exclude {{scenario: {scenario.name}}}, or {error.hint}"
        raise ConfigError(f"{label}: {error.message}", file=source, line=grid.line, hint=hint) from None
    steps = count_steps(scenario.steps_on(arch), grid.rounds)
    choice = PAGING_CHOICES[arch][point["paging"].value] if "paging" in point else None
    name = point["scenario"].value
    return Cell(
        id=f"{label}/{scenario.name}",
        axes={axis: setting.text for axis, setting in point.items()},
        scenario=name,
        guest=spec,
        steps=steps,
        timeout=grid.timeout,
        rounds=grid.rounds,
        digest="",
        va_bits=None if choice is None else choice.va_bits,
        page_size=None if choice is None else choice.page_size,
        memory=cost(scenario.apply_to(spec), scenario.steps_on(arch)),
    )


def _with_digest(cell: Cell, scenario_text: str, known: str) -> Cell:
    fields = cell.guest_fields()
    for name in ("kernel", "qemu"):
        part = str(fields.get(name, ""))
        if "/" in part:
            # Its path differs from machine to machine, its content does not.
            fields[name] = hashlib.sha256(Path(part).read_bytes()).hexdigest()
    parts = (cell.id, json.dumps(fields), scenario_text, str(cell.timeout), str(cell.rounds), known)
    return dataclasses.replace(cell, digest=_hash(parts))


def _fields(point: Mapping[str, Setting], arch: str, source: Path) -> dict[str, object]:
    """The fields of GuestSpec that the point sets."""
    fields: dict[str, object] = {axis: point[axis].value for axis in ("kernel", "qemu", "boot") if axis in point}
    words = [point[axis].value for axis in ("memmap_on_memory", "online") if axis in point]
    if "paging" in point:
        _set_paging(fields, point["paging"], arch, source)
    if "cpus" in point:
        fields["cpus"] = int(point["cpus"].value)
    if "kaslr" in point:
        if point["kaslr"].value:
            fields["random_seed"] = int(point["kaslr"].value)
        else:
            words.append("nokaslr")
    if "cmdline" in point:
        words.append(point["cmdline"].value)
    text = " ".join(word for word in words if word)
    return fields | {"cmdline": text} if text else fields


def _set_paging(fields: dict[str, object], setting: Setting, arch: str, source: Path) -> None:
    known = PAGING_CHOICES[arch]
    choice = known.get(setting.value)
    if choice is None:
        raise ConfigError(
            f"{arch} has no paging mode {setting.text}",
            file=source,
            line=setting.line,
            hint=f"it has {', '.join(known)}; one grid per architecture needs no exclusions",
        )
    if choice.cpu is not None:
        fields["cpu"] = choice.cpu
    if choice.flavour is not None:
        kernel = fields.get("kernel")
        changed = with_flavour(None if kernel is None else str(kernel), choice.flavour)
        if changed is not None:
            fields["kernel"] = changed
    assert choice.page_size in arch_named(arch).paging


def shard_of(plan: MatrixPlan, number: int, count: int) -> tuple[Cell, ...]:
    """Part ``number`` (from 1) of ``count``: parts of about equal duration, the same on every machine.

    Raises UsageError for a part that does not exist.
    """
    if not count >= 1 or not 1 <= number <= count:
        last = max(count, 1)
        hint = f"1/{last} is the first, {last}/{last} the last"
        raise UsageError(f"--shard {number}/{count}: no such part", hint=hint)
    loads = [(0.0, part) for part in range(1, count + 1)]
    mine = set()
    for cell in sorted(plan.cells, key=lambda cell: (-cell.weight, cell.id)):
        load, part = heapq.heappop(loads)
        if part == number:
            mine.add(cell.id)
        heapq.heappush(loads, (load + cell.weight, part))
    return tuple(cell for cell in plan.cells if cell.id in mine)


def expected_seconds(times: Sequence[float], jobs: int) -> float:
    """Seconds until the last of ``jobs`` workers is done, with the longest cell first."""
    free = [0.0] * max(1, min(jobs, len(times)))
    for seconds in sorted(times, reverse=True):
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


@dataclass(frozen=True, slots=True)
class Unstarted:
    """Why a cell is not started: SKIPPED if its kernel lacks what it needs, INFRA if there is no kernel."""

    verdict: Verdict
    reason: str


def _other_va_bits(cell: Cell, kernel: KernelImage) -> str:
    """Why the kernel cannot have the address space of ``cell``; "" if it can, or if nobody knows."""
    choice = va_bits_of_build(Build(kernel.usable))
    if cell.va_bits is None or not choice or cell.va_bits in choice:
        return ""
    built = " or ".join(map(str, sorted(choice)))
    return f"the kernel {kernel.origin} is built for {built} bits of virtual addresses, not for {cell.va_bits}"


def prepare(cells: Sequence[Cell], progress: Progress) -> dict[str, Unstarted]:
    """Fetch or build every part that ``cells`` need.

    Returns, by id, the cells that cannot be started: those whose parts are unavailable (a kernel that does not build
    only fails the cells that boot it), and those whose kernel is built for another address space. Other unmet
    requirements are named by the cell's run.
    """
    broken: dict[str, Unstarted] = {}
    resolver = Resolver(progress)
    for cell in cells:
        try:
            found = resolver.resolve(cell.guest, load_scenario(cell.source).needs)
        except MemhpError as error:
            broken[cell.id] = Unstarted(Verdict.INFRA, str(error))
        else:
            if isinstance(found, InfraError):
                broken[cell.id] = Unstarted(Verdict.INFRA, str(found))
            elif isinstance(found, Parts) and (lack := _other_va_bits(cell, found.kernel)):
                broken[cell.id] = Unstarted(Verdict.SKIPPED, lack)
    return broken
