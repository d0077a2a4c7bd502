# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings of all unit tests, and a guest shell whose agent runs on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from agent_world import World
from guest_peer import SshPeer
from hypothesis import HealthCheck, settings

from harness.deadline import Deadline
from harness.guest import ssh as guest_shell
from harness.guest.identity import Identity
from harness.guest.ssh import GuestShell

# How long an example takes depends more on the load of the machine than on the code. Every run has the same examples.
settings.register_profile("memhp", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("memhp")


@pytest.fixture(scope="module")
def identity() -> Identity:
    return Identity.fresh()


@pytest.fixture
def shell(identity: Identity) -> Iterator[GuestShell]:
    with SshPeer(identity) as peer, GuestShell.connect(peer.port, identity, Deadline(60)) as shell:
        yield shell


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(built: World, monkeypatch: pytest.MonkeyPatch) -> World:
    built.clear()
    monkeypatch.setattr(guest_shell, "START", f"exec {built.program}")
    return built
