# SPDX-License-Identifier: GPL-2.0-or-later
"""Repeat the run of a bundle: the same steps on the same guest, only with the same kernel."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.artifacts.cache import content_of
from harness.bounded import MAX_SMALL, load_json, read_file
from harness.check.required import Demand
from harness.codec import Codec, override
from harness.config.cold import ColdDevice, read_devices
from harness.config.guest import GuestSpec, NodeConfig, problems
from harness.config.yaml import parse, read_text
from harness.errors import UsageError
from harness.scenarios.boot import Parts, archives_of
from harness.scenarios.file import Scenario, read_scenario
from harness.scenarios.record import demand_from_json
from harness.scenarios.run_options import LOOKS, STARTS, Look, Start

_HINT = "name the directory of a run; bundles are kept below memhp-runs or --bundle-dir"


@dataclass(frozen=True, slots=True)
class Replay:
    """A run to repeat. ``rounds``, ``seed``, ``start``, ``demand`` and ``look`` are as in RunOptions; ``digests`` are
    those of ``_digests``, without some if the bundle is of an earlier memhp.
    """

    scenario: Scenario
    guest: GuestSpec
    seed: int
    rounds: int | None
    digests: Mapping[str, str]
    start: Start = "auto"
    demand: Demand = field(default_factory=Demand)
    look: Look = "full"


def guest_to_json(guest: GuestSpec, parts: Parts) -> dict[str, object]:
    """A guest in ``run.json``: its spec, and kernel, QEMU and initrd with their SHA-256."""
    found = {name: {"sha256": digest} for name, digest in _digests(guest, parts).items()}
    found["kernel"] |= {"origin": parts.kernel.origin, "path": str(parts.kernel.image.absolute())}
    return {"spec": _CODEC.dump(guest), **found}


def _digests(guest: GuestSpec, parts: Parts) -> dict[str, str]:
    """SHA-256 of the kernel's Image, of QEMU's program, and of the list of those of the initrd's archives."""
    archives = [content_of(path) for path in archives_of(guest, parts)]
    return {
        "kernel": content_of(parts.kernel.image),
        "qemu": content_of(Path(parts.qemu.argv[-1])),
        "initrd": hashlib.sha256(" ".join(archives).encode()).hexdigest(),
    }


def changed_parts(recorded: Replay, guest: GuestSpec, parts: Parts, given: Collection[str]) -> list[str]:
    """What of a guest's ``parts`` is not what the recorded run had, in words.

    Raises UsageError if it is the kernel, unless that is among the fields ``given`` on the command line.
    """
    now, image = _digests(guest, parts), parts.kernel.image
    changed = [name for name, digest in recorded.digests.items() if digest != now[name]]
    if "kernel" in changed and "kernel" not in given:
        raise UsageError(
            f"the kernel has changed since the recorded run: {image}",
            hint="give it with --kernel to replay the run with this one",
        )
    words = {"kernel": f"the kernel: {image}", "qemu": f"QEMU: {parts.qemu.argv[-1]}", "initrd": "the initrd"}
    return [words[name] for name in changed]


def guest_from_json(value: Mapping[str, Any]) -> GuestSpec:
    """The spec written by ``guest_to_json``; raises KeyError, TypeError or ValueError for anything else."""
    spec = _CODEC.load(value, GuestSpec)
    for problem in problems(spec):
        raise ValueError(problem.message)
    return spec


def _codec() -> Codec:
    codec = Codec()
    codec.register_structure_hook(NodeConfig, lambda memory, _: NodeConfig(codec.structure(memory, int)))
    codec.register_unstructure_hook(NodeConfig, lambda node: node.memory)
    always = {"arch", "nodes", "machine_options", "explicit"}
    codec.describe(
        GuestSpec,
        since={field.name for field in dataclasses.fields(GuestSpec)} - always,
        forbid_extra=True,
        devices=override(
            struct_hook=lambda found, _: _read_devices(codec.structure(found, list[dict[str, dict[str, Any]]])),
            unstruct_hook=lambda devices: [{device.verb: dataclasses.asdict(device)} for device in devices],
        ),
        explicit=override(
            struct_hook=lambda names, _: frozenset(codec.structure(names, list[str])), unstruct_hook=sorted
        ),
    )
    return codec


def _read_devices(found: list[dict[str, dict[str, Any]]]) -> tuple[ColdDevice, ...]:
    """Checked like those of a guest file: JSON is YAML, but None is spelled by leaving it out."""
    given = [
        {verb: {name: value for name, value in args.items() if value is not None} for verb, args in device.items()}
        for device in found
    ]
    return read_devices(parse(json.dumps(given), Path("run.json")))


_CODEC = _codec()


def read_replay(bundle: Path) -> Replay:
    """The steps and the guest of the run in ``bundle``.

    Raises UsageError if it is not a bundle, or has no scenario.
    """
    path = bundle / "run.json"
    try:
        details = load_json(read_file(path, MAX_SMALL))
        spec, booted = guest_from_json(details["spec"]), dict(details["kernel"])
        seed, rounds = int(details.get("seed", 0)), _CODEC.load(details.get("rounds"), int | None)
        if rounds is not None and rounds < 1:
            raise ValueError(f"{rounds} rounds")
        digests = {"kernel": str(booted["sha256"])}
        digests |= {name: str(details[name]["sha256"]) for name in ("qemu", "initrd") if name in details}
        start = details.get("start", "auto")
        if start not in STARTS:
            raise ValueError(f"no way to start is called {start!r}")
        look = details.get("look", "full")
        if look not in LOOKS:
            raise ValueError(f"no look is called {look!r}")
    except OSError as error:
        raise UsageError(f"{bundle} is not a bundle: {path.name}: {error.strerror}", hint=_HINT) from None
    except (ValueError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UsageError(f"{bundle} does not describe its guest ({what})", hint=_HINT) from None
    steps = bundle / "scenario.yaml"
    if not steps.exists() or not read_text(steps).strip():
        raise UsageError(f"{bundle} has no scenario to run again", hint=_HINT)
    return Replay(read_scenario(steps), spec, seed, rounds, digests, start, demand_from_json(details), look)
