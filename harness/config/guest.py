# SPDX-License-Identifier: GPL-2.0-or-later
"""The user's description of a guest: a frozen GuestSpec, from defaults, a YAML file and command line options."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.config.cold import ColdDevice, read_devices
from harness.config.own_build import OwnBuild, parse_kernel_option
from harness.config.places import configs_dir
from harness.config.selector import is_debian_name, parse_kernel_name, parse_qemu_name
from harness.config.yaml import Value, load, show, size_problem, suggest
from harness.errors import UsageError
from harness.units import GIB, MIB, TIB, align_up, format_size

#: the least boot memory, and the unit of what is plugged: a memory section (SECTION_SIZE_BITS 27 on arm64 with 4K pages
#: and on riscv64)
SECTION = 128 * MIB
#: boot memory may end inside a section, where a sub-section ends (SUBSECTION_SHIFT, include/linux/mmzone.h, v6.12)
SUBSECTION = 2 * MIB
#: maxmem beyond this leaves no room in a 48-bit linear map (half of the address space) for slots and PCI windows
MAX_MAXMEM = 64 * TIB
#: ACPI_MAX_RAM_SLOTS (QEMU include/hw/acpi/acpi_dev_interface.h)
MAX_SLOTS = 256
#: hot-plug ports that fit on QEMU's virt board beside its own devices
MAX_PORTS = 24
#: maximum number of interrupt redistributors on QEMU's virt board
MAX_CPUS = 512
#: QEMU's -seed is 64 bits wide (qemu_guest_random_seed_main, util/guest-random.c)
MAX_RANDOM_SEED = (1 << 64) - 1
BOOTS = ("acpi", "dt")

#: the default boot method of each architecture: pc-dimm needs ACPI
DEFAULT_BOOT: Mapping[str, str] = {"arm64": "acpi", "riscv64": "acpi"}

_OPTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*=[^,\s=]+")
_CPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(,[A-Za-z0-9._-]+=[^,\s=]+)*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One NUMA node: ``memory`` is bytes of boot memory, 0 for a node that starts empty."""

    memory: int


@dataclass(frozen=True, slots=True)
class Problem:
    """An error in a GuestSpec; ``field`` is the most likely cause, ``also`` are involved."""

    field: str
    message: str
    hint: str | None = None
    also: tuple[str, ...] = ()

    def blame(self, given: Container[str]) -> str | None:
        """The first of the fields that the user set."""
        return next((name for name in (self.field, *self.also) if name in given), None)


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """One guest as described by the user, nothing resolved yet. All sizes are bytes.

    ``kernel`` is a path or a name of ``harness.config.selector`` (None: the purpose-built kernel); ``kernel_options``,
    ``build_dir``, ``llvm`` and ``own_config`` say how a source tree is built (``OwnBuild``), ``modules`` where the
    modules of an Image or a tree are. ``qemu`` is a path or a name, too; ``initrd`` and ``qemu`` None: the cached
    ones. ``maxmem`` counts boot memory and all memory devices; ``slots``
    are for DIMMs, ``ports`` for virtio devices that are plugged at the same time. ``nodes`` empty: no NUMA.
    ``devices`` are there at boot. ``cmdline`` is added to the kernel's command line, ``machine_options`` to
    ``-machine``. ``random_seed`` fixes QEMU's random choices for the guest, including the kernel's address (KASLR);
    None: different on each boot. ``explicit`` names the fields that the user set: they take precedence over a
    scenario's wishes.
    """

    arch: str
    name: str = ""
    kernel: str | None = None
    kernel_options: tuple[str, ...] = ()
    build_dir: Path | None = None
    llvm: bool = False
    own_config: bool = False
    modules: Path | None = None
    initrd: Path | None = None
    qemu: str | None = None
    memory: int = GIB
    maxmem: int = 16 * GIB
    slots: int = 8
    ports: int = 4
    cpus: int = 2
    nodes: tuple[NodeConfig, ...] = ()
    boot: str = "acpi"
    cmdline: str = ""
    cpu: str | None = None
    machine_options: tuple[str, ...] = ()
    random_seed: int | None = None
    devices: tuple[ColdDevice, ...] = ()
    explicit: frozenset[str] = field(default=frozenset(), compare=False)

    @classmethod
    def default(cls, arch: str) -> GuestSpec:
        """The default guest for ``arch``; raises UsageError for an unknown architecture."""
        if arch not in DEFAULT_BOOT:
            raise UsageError(f"unknown architecture {arch!r}", hint=suggest(arch, DEFAULT_BOOT))
        return cls(arch=arch, name=arch, boot=DEFAULT_BOOT[arch])

    def with_fields(self, values: Mapping[str, object], *, explicit: bool = True) -> GuestSpec:
        """A copy with ``values`` set, and marked as the user's if ``explicit``; unchecked: see ``problems``."""
        marked = self.explicit | set(values) if explicit else self.explicit
        return dataclasses.replace(self, **values, explicit=marked)  # type: ignore[arg-type]

    @property
    def build(self) -> OwnBuild:
        """How the kernel is built if it is a source tree; raises UsageError for an invalid option."""
        options = tuple(parse_kernel_option(text) for text in self.kernel_options)
        return OwnBuild(options, self.build_dir, self.llvm, self.own_config)

    @property
    def room(self) -> int:
        """Bytes that memory devices may take together (hw/mem/memory-device.c, memory_device_check_addable)."""
        return self.maxmem - self.memory


def problems(spec: GuestSpec) -> Iterator[Problem]:
    """All errors in ``spec``, worst first; none if it can be built."""
    yield from _size_problems(spec)
    yield from _node_problems(spec)
    for name, low, high in (("cpus", 1, MAX_CPUS), ("slots", 0, MAX_SLOTS), ("ports", 0, MAX_PORTS)):
        value = getattr(spec, name)
        if not low <= value <= high:
            yield Problem(name, f"invalid {name}: {value}", f"from {low} to {high}")
    if spec.boot not in BOOTS:
        yield Problem("boot", f"unknown boot method {spec.boot!r}", suggest(spec.boot, BOOTS))
    if not spec.cmdline.isprintable():
        yield Problem("cmdline", "control characters in the kernel command line", "write it on one line")
    if spec.cpu is not None and not _CPU.fullmatch(spec.cpu):
        yield Problem("cpu", f"{spec.cpu!r} is not a QEMU CPU model", "for example max or max,sve=off")
    if spec.random_seed is not None and not 0 <= spec.random_seed <= MAX_RANDOM_SEED:
        yield Problem("random_seed", f"invalid seed {spec.random_seed}", f"from 0 to {MAX_RANDOM_SEED:#x}")
    yield from _name_problems(spec)
    for option in spec.machine_options:
        if not _OPTION.fullmatch(option):
            yield Problem("machine_options", f"{option!r} is not a machine option", "for example gic-version=3")
    if spec.name and not _NAME.fullmatch(spec.name):
        yield Problem("name", f"invalid name {spec.name!r}", "use letters, digits, '-', '_' and '.'")


def _name_problems(spec: GuestSpec) -> Iterator[Problem]:
    """Errors in Debian names and in kernel options: found before anything is fetched or built."""
    readers: tuple[tuple[str, Callable[[str], object], Sequence[str]], ...] = (
        ("kernel", parse_kernel_name, [spec.kernel] if spec.kernel and is_debian_name(spec.kernel) else []),
        ("qemu", parse_qemu_name, [spec.qemu] if spec.qemu and is_debian_name(spec.qemu) else []),
        ("kernel_options", parse_kernel_option, spec.kernel_options),
    )
    for name, read, texts in readers:
        for text in texts:
            try:
                read(text)
            except UsageError as error:
                yield Problem(name, error.message, error.hint)


def _size_problems(spec: GuestSpec) -> Iterator[Problem]:
    wrong = size_problem(spec.memory, multiple=SUBSECTION, minimum=SECTION)
    if wrong is not None:
        yield Problem("memory", f"boot memory of {wrong[0]}", wrong[1])
    wrong = size_problem(spec.maxmem, multiple=SECTION)
    if wrong is not None:
        yield Problem("maxmem", f"maxmem of {wrong[0]}", wrong[1])
    if spec.maxmem < spec.memory:
        yield Problem(
            "maxmem",
            f"maxmem {format_size(spec.maxmem)} is below the boot memory {format_size(spec.memory)}",
            f"maxmem counts boot memory and all devices: {format_size(align_up(spec.memory, GIB) + 15 * GIB)}, say",
            ("memory",),
        )
    if spec.maxmem > MAX_MAXMEM:
        yield Problem(
            "maxmem",
            f"maxmem {format_size(spec.maxmem)} does not fit the guest's address space",
            f"at most {format_size(MAX_MAXMEM)}",
        )
    if (spec.maxmem > spec.memory) != (spec.slots > 0):
        yield Problem(
            "slots",
            f"{spec.slots} slots with maxmem {format_size(spec.maxmem)} and boot memory {format_size(spec.memory)}",
            "memory devices need both: maxmem above the boot memory and at least one slot",
            ("maxmem", "memory"),
        )


def _node_problems(spec: GuestSpec) -> Iterator[Problem]:
    last = max((number for number, node in enumerate(spec.nodes) if node.memory), default=0)
    for number, node in enumerate(spec.nodes):
        wrong = size_problem(node.memory, multiple=SUBSECTION)
        # a section of two nodes would be one memory block of both
        inside = None if wrong or number == last else size_problem(node.memory, multiple=SECTION)
        if wrong is not None:
            yield Problem("nodes", f"memory of node {number}: {wrong[0]}", wrong[1])
        if inside is not None:
            hint = f"{inside[1]}; only the last memory may end inside a section"
            yield Problem("nodes", f"memory of node {number}: {inside[0]}", hint)
    total = sum(node.memory for node in spec.nodes)
    if spec.nodes and total != spec.memory:
        yield Problem(
            "nodes",
            f"the nodes hold {format_size(total)}, the guest has {format_size(spec.memory)}",
            "the memory of all nodes adds up to the boot memory",
            ("memory",),
        )


def _read_nodes(value: Value) -> tuple[NodeConfig, ...]:
    nodes = tuple(
        NodeConfig(item.mapping("memory").take("memory", lambda size: size.size(multiple=SUBSECTION)))
        for item in value.items()
    )
    if not nodes:
        value.fail("an empty list of nodes", hint="remove the key for a guest without NUMA")
    return nodes


def _read_part(value: Value) -> str:
    """A path relative to the file if it exists, otherwise a name of harness.config.selector."""
    text, path = value.line_of_text(), value.place()
    if path.is_file() or (path.is_dir() and not is_debian_name(text)):
        return str(path)
    if not is_debian_name(text):
        value.fail(f"no such file: {path}", hint="relative paths start at the directory of the YAML file")
    return text


def _read_words(value: Value) -> tuple[str, ...]:
    return tuple(item.line_of_text() for item in value.items())


def _read_cmdline(value: Value) -> str:
    text = value.text()
    if not text.isprintable():
        value.fail("control characters in the kernel command line", hint="write it on one line")
    return text


def _read_seed(value: Value) -> int:
    return value.integer(minimum=0, maximum=MAX_RANDOM_SEED)


def _read_memory(value: Value) -> int:
    return value.size(multiple=SUBSECTION, minimum=SECTION)


def _read_maxmem(value: Value) -> int:
    return value.size(multiple=SECTION, minimum=SECTION)


#: fields that a scenario may set; only the user may set the others
SHAPE_FIELDS = {
    "memory": _read_memory,
    "maxmem": _read_maxmem,
    "slots": lambda value: value.integer(minimum=0, maximum=MAX_SLOTS),
    "ports": lambda value: value.integer(minimum=0, maximum=MAX_PORTS),
    "cpus": lambda value: value.integer(minimum=1, maximum=MAX_CPUS),
    "nodes": _read_nodes,
    "boot": lambda value: value.choice(BOOTS),
    "cmdline": _read_cmdline,
    "devices": read_devices,
}
_FILE_FIELDS = {
    "arch": lambda value: value.choice(tuple(DEFAULT_BOOT)),
    "name": Value.line_of_text,
    "kernel": _read_part,
    "kernel_options": _read_words,
    "build_dir": Value.place,
    "llvm": Value.boolean,
    "own_config": Value.boolean,
    "modules": Value.path,
    "initrd": Value.path,
    "qemu": _read_part,
    **SHAPE_FIELDS,
    "cpu": Value.line_of_text,
    "machine_options": _read_words,
    "random_seed": _read_seed,
}


def read_shape(value: Value) -> dict[str, Any]:
    """The ``guest:`` section of a scenario: some of SHAPE_FIELDS."""
    reader = value.mapping(*SHAPE_FIELDS)
    return {name: SHAPE_FIELDS[name](found) for name, found in reader.values.items()}


def check_values(spec: GuestSpec, value: Value) -> None:
    """Raise ConfigError for the first problem of ``spec``, at the key of the mapping ``value`` that caused it."""
    for problem in problems(spec):
        given = value.mapping().values
        (given.get(problem.blame(given) or "") or value).fail(problem.message, hint=problem.hint)


def load_guest(path: Path) -> GuestSpec:
    """Read a guest file; raises ConfigError. Keys are GuestSpec's fields, of which only ``arch`` is required."""
    value = load(path)
    reader = value.mapping(*_FILE_FIELDS)
    spec = GuestSpec.default(reader.take("arch", _FILE_FIELDS["arch"]))
    fields = {name: _FILE_FIELDS[name](found) for name, found in reader.values.items()}
    spec = spec.with_fields({"name": path.stem, **fields})
    check_values(spec, value)
    return spec


def override(spec: GuestSpec, values: Mapping[str, object], options: Mapping[str, str]) -> GuestSpec:
    """``spec`` with ``values`` from the command line; ``options`` maps fields to option names for messages.

    ``cmdline`` is appended, everything else replaces. Raises UsageError.
    """
    changes = dict(values)
    if "cmdline" in changes:
        changes["cmdline"] = " ".join(part for part in (spec.cmdline, str(changes["cmdline"])) if part)
    changed = spec.with_fields(changes)
    for problem in problems(changed):
        blamed = problem.blame(changes)
        raise UsageError(f"{options[blamed]}: {problem.message}" if blamed else problem.message, hint=problem.hint)
    return changed


def known_guests() -> dict[str, Path]:
    """The names of all guest files in ``configs``, sorted."""
    return {path.stem: path for path in sorted((configs_dir() / "guests").glob("*.yaml"))}


def find_guest(what: str) -> GuestSpec:
    """Load a guest by its name, or from a file: anything with a slash or a .yaml or .yml suffix.

    Raises UsageError for an unknown name, ConfigError for an invalid file.
    """
    if "/" in what or what.endswith((".yaml", ".yml")):
        return load_guest(Path(what))
    known = known_guests()
    if what not in known:
        raise UsageError(f"unknown guest {show(what)}", hint=f"{suggest(what, known)} (memhp list guests)")
    return load_guest(known[what])
