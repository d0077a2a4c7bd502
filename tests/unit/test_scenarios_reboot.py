# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest after a reset: freshly booted, or restored and therefore asleep at the end of its own boot."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.guest.console import ASLEEP, READY
from harness.scenarios import boot
from harness.scenarios.boot import BootedGuest, meet_again


@dataclasses.dataclass(frozen=True)
class Facts:
    release: str
    config: dict[str, str] | None = None
    image: dict[str, bool] | None = None


@pytest.mark.parametrize("restored", [False, True])
def test_a_guest_is_met_again_with_its_keys(restored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    console: Any = SimpleNamespace(wait_line=lambda pattern, deadline, since: done.append((pattern, since)))
    machine: Any = SimpleNamespace(
        console="the wire", ssh_port=lambda deadline: 2222, spec=SimpleNamespace(arch="its arch")
    )
    shell: Any = SimpleNamespace(identity="its keys", reconnect=lambda port, deadline: done.append(("log in", port)))
    monkeypatch.setattr(boot, "wake", lambda wire, identity, deadline: done.append((wire, identity)))
    monkeypatch.setattr(boot, "collect_facts", lambda shell, arch, deadline: Facts("new"))
    monkeypatch.setattr(boot.KernelView, "open", lambda machine, facts, deadline: f"view of {facts.release}")
    old: Any = Facts("old", {"A": "y"})
    guest = BootedGuest(machine, console, shell, None, old, "acpi", None, restored=restored)  # type: ignore[arg-type]
    fresh: Any = meet_again(guest, 7, Deadline(5))
    woken = [(ASLEEP, 7), ("the wire", "its keys")] if restored else []
    assert done == [*woken, (READY, 7), ("log in", 2222)]
    assert fresh.facts == Facts("new", {"A": "y"}) and fresh.kernel == "view of new"
    assert fresh.shell is shell and fresh.restored is restored
