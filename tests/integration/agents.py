# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's agent, killed while it is idle or at work."""

from __future__ import annotations

import select

import paramiko

from harness.deadline import Deadline
from harness.guest.ssh import GuestShell


def kill_agent(shell: GuestShell, deadline: Deadline) -> None:
    """Kill the idle agent, and wait until the harness has noticed that it exited."""
    agent = shell._agent
    assert agent is not None
    shell.must("killall -KILL agent", deadline=deadline)
    assert agent.channel.status_event.wait(deadline.remaining())


def kill_agent_at_work(shell: GuestShell, deadline: Deadline) -> None:
    """Stop the agent; it is killed as soon as the harness waits for the answer to its next request."""
    shell.must("killall -STOP agent", deadline=deadline)
    wait = shell._await

    def kill_first(poll: select.poll, channel: paramiko.Channel, shown: str, deadline: Deadline) -> None:
        if shell._agent is not None and channel is shell._agent.channel:
            shell._await = wait  # type: ignore[method-assign]
            shell.must("killall -KILL agent", deadline=deadline)
        wait(poll, channel, shown, deadline)

    shell._await = kill_first  # type: ignore[method-assign]
