# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp list``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from harness.cli.command_arguments import ListArguments
from harness.cli.output import print_columns, print_json
from harness.units import format_size


def _scenarios() -> Iterator[dict[str, object]]:
    from harness.scenarios.file import known_scenarios, load_scenario
    from harness.scenarios.steps import count_steps

    for name, path in known_scenarios().items():
        found = load_scenario(name)
        yield {
            "name": name,
            "needs": list(found.needs),
            "summary": found.summary,
            "family": found.family,
            "steps": count_steps(found.steps),
            "file": str(path),
        }


def _verbs() -> Iterator[dict[str, object]]:
    from harness.config.arguments import parameters
    from harness.scenarios.verbs import VERBS

    for name, verb in VERBS.items():
        takes = [key if known.required else f"[{key}]" for key, known in parameters(verb).items()]
        yield {"verb": name, "takes": takes, "meaning": verb.summary}
    yield {"verb": "repeat", "takes": ["times", "steps", "[soak]"], "meaning": "repeat steps"}
    yield {"verb": "parallel", "takes": ["steps"], "meaning": "run steps in parallel: a list in place of arguments"}


def _invariants() -> Iterator[dict[str, object]]:
    from harness.check import CATALOGUE

    for item in CATALOGUE.values():
        yield {"id": item.id, "statement": item.statement, "source": item.source, "motive": item.motive}


def _bugs() -> Iterator[dict[str, object]]:
    from harness.check.bugs import known_bugs
    from harness.scenarios.verbs import VERBS

    for bug in known_bugs(VERBS).values():
        fixed = [str(fix) for fix in bug.fixed]
        yield {
            "id": bug.id,
            "arch": list(bug.arches),
            "since": str(bug.since),
            "fixed": fixed or [f"not as of {bug.checked}"],
            "breaks": bug.effects,
            "scenarios": list(bug.scenarios),
            "title": bug.title,
            "source": bug.source,
            "conditions": bug.when.spelled,
        }


def _guests() -> Iterator[dict[str, object]]:
    from harness.config.guest import DEFAULT_BOOT, GuestSpec, known_guests, load_guest

    specs = [GuestSpec.default(arch) for arch in DEFAULT_BOOT] + [load_guest(path) for path in known_guests().values()]
    for spec in specs:
        nodes = f", {len(spec.nodes)} nodes" if spec.nodes else ""
        room = f"{format_size(spec.memory)} of at most {format_size(spec.maxmem)}"
        shape = f"{room}, {spec.slots} slots, {spec.cpus} CPUs, {spec.boot}{nodes}"
        yield {"name": spec.name, "arch": spec.arch, "shape": shape}


def _kernels() -> Iterator[dict[str, object]]:
    meanings = {
        "purpose": "built once from Debian's kernel source with all options that scenarios need",
        "purpose:VERSION": "the same from linux-source-VERSION, such as purpose:7.3",
        "purpose+FLAVOUR": f"a flavour of it: {', '.join(_flavours())}",
        "debian": "Debian's stock kernel: nothing to build, no pc-dimm hotplug, no ptdump",
        "debian:SUITE": "the stock kernel of another suite, such as debian:trixie-backports",
        "debian:VERSION": "the newest stock kernel of a version, such as debian:7.2",
        "linux-image-…": "that Debian package",
        "…@SUITE": "any of these from that suite only, such as purpose:6.1@bookworm",
        "PATH": "your own Image (--modules DIR: its modules), or a source tree, which is built (-K, --build-dir, "
        "--llvm, --own-config)",
    }
    return ({"selector": selector, "meaning": meaning} for selector, meaning in meanings.items())


def _flavours() -> list[str]:
    from harness.arch import ARCHES
    from harness.artifacts.kernel_build import known_flavours
    from harness.config.places import configs_dir

    return [
        f"{flavour} ({name})"
        for name, arch in ARCHES.items()
        for flavour in known_flavours(arch, configs_dir() / "kernels")
    ]


_LISTS: Mapping[str, tuple[Callable[[], Iterable[dict[str, object]]], tuple[str, ...]]] = {
    "scenarios": (_scenarios, ("name", "family", "needs", "summary")),
    "verbs": (_verbs, ("verb", "takes", "meaning")),
    "invariants": (_invariants, ("id", "statement")),
    "bugs": (_bugs, ("id", "arch", "since", "fixed", "breaks", "scenarios", "title")),
    "guests": (_guests, ("name", "arch", "shape")),
    "kernels": (_kernels, ("selector", "meaning")),
}


def run(arguments: ListArguments) -> int:
    """memhp list."""
    if arguments.what == "support":
        from harness.cli.support import show_support

        return show_support(arguments)
    produce, columns = _LISTS[arguments.what]
    rows = list(produce())
    if arguments.json:
        print_json(rows)
    else:
        print_columns([columns, *([_cell(row[name]) for name in columns] for row in rows)])
    return 0


def _cell(value: object) -> str:
    return ", ".join(value) or "-" if isinstance(value, list) else str(value)
