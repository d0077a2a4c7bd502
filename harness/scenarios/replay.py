# SPDX-License-Identifier: GPL-2.0-or-later
"""Run what a bundle recorded once more: the same steps on the same guest, with the same kernel or none."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.arch import arch_named
from harness.artifacts.content import content_of
from harness.artifacts.kernel import kernel_of
from harness.config.cold import COLD
from harness.config.guest import GuestSpec, NodeConfig, problems
from harness.errors import UsageError
from harness.progress import Progress
from harness.scenarios.boot import Parts
from harness.scenarios.file import Scenario, read_scenario
from harness.scenarios.options import STARTS, Start

_HINT = "name the directory of a run; bundles are kept below memhp-runs or --bundle-dir"
_PATHS = ("initrd", "build_dir", "modules")
#: no run.json is larger
_MAX_RUN = 1 << 20


@dataclass(frozen=True, slots=True)
class Replay:
    """What to run once more. ``rounds``, ``seed`` and ``start`` are RunOptions'; ``kernel_sha256`` is of the Image."""

    scenario: Scenario
    guest: GuestSpec
    seed: int
    rounds: int | None
    kernel_sha256: str
    start: Start = "auto"


def guest_to_json(guest: GuestSpec, parts: Parts) -> dict[str, object]:
    """What ``run.json`` keeps of a guest: its spec, and the kernel with its SHA-256."""
    fields = {field.name: getattr(guest, field.name) for field in dataclasses.fields(guest)}
    fields |= {name: None if fields[name] is None else str(fields[name]) for name in _PATHS}
    fields["kernel_options"] = list(guest.kernel_options)
    fields["nodes"] = [node.memory for node in guest.nodes]
    fields["machine_options"] = list(guest.machine_options)
    fields["devices"] = [{device.verb: dataclasses.asdict(device)} for device in guest.devices]
    fields["explicit"] = sorted(guest.explicit)
    return {
        "spec": fields,
        "kernel": {
            "origin": parts.kernel.origin,
            "path": str(parts.kernel.image.absolute()),
            "sha256": content_of(parts.kernel.image),
        },
    }


def guest_from_json(value: Mapping[str, Any]) -> GuestSpec:
    """The spec that ``guest_to_json`` has written; raises KeyError, TypeError or ValueError for anything else."""
    fields = dict(value)
    fields |= {name: Path(fields[name]) for name in _PATHS if fields.get(name) is not None}
    fields["kernel_options"] = tuple(map(str, fields.get("kernel_options", ())))
    fields["nodes"] = tuple(NodeConfig(int(memory)) for memory in fields["nodes"])
    fields["machine_options"] = tuple(map(str, fields["machine_options"]))
    cold = [pair for device in fields.get("devices", ()) for pair in dict(device).items()]
    fields["devices"] = tuple(COLD[verb](**args) for verb, args in cold)
    fields["explicit"] = frozenset(map(str, fields["explicit"]))
    spec = GuestSpec(**fields)
    for problem in problems(spec):
        raise ValueError(problem.message)
    return spec


def read_replay(bundle: Path) -> Replay:
    """What the run in ``bundle`` did and on what.

    Raises UsageError if it is no bundle, or has no scenario of its own.
    """
    path = bundle / "run.json"
    try:
        with path.open("rb") as file:
            details = json.loads(file.read(_MAX_RUN))
        spec, booted = guest_from_json(details["spec"]), dict(details["kernel"])
        seed, rounds = int(details.get("seed", 0)), details.get("rounds")
        digest, start = str(booted["sha256"]), details.get("start", "auto")
        if start not in STARTS:
            raise ValueError(f"no way to start is called {start!r}")
    except OSError as error:
        raise UsageError(f"{bundle} is no bundle: {path.name}: {error.strerror}", hint=_HINT) from None
    except (ValueError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UsageError(f"{bundle} does not tell which guest it ran on ({what})", hint=_HINT) from None
    if not (bundle / "scenario.yaml").is_file() or not (bundle / "scenario.yaml").read_bytes().strip():
        raise UsageError(f"{bundle} has no scenario to run again", hint=_HINT)
    return Replay(read_scenario(bundle / "scenario.yaml"), spec, seed, rounds, digest, start)


def require_kernel(replay: Replay, progress: Progress) -> None:
    """Raise UsageError unless the kernel of the recorded run is what its guest would boot now."""
    image = kernel_of(replay.guest, arch_named(replay.guest.arch), progress).image
    if content_of(image) != replay.kernel_sha256:
        raise UsageError(
            f"the kernel of the recorded run is another one now: {image}",
            hint="memhp run with the bundle's scenario.yaml takes any kernel",
        )
