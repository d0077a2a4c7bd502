# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU knows about a guest that no longer answers: its CPUs, its interrupts, its network."""

from __future__ import annotations

from harness.deadline import Deadline
from harness.errors import InfraError
from harness.qemu.qmp import QmpSession

_NIC = "/machine/peripheral/nic0/virtio-backend"
#: hmp-commands-info.hx, QEMU 10.0; queue 0 of the network card receives, queue 1 sends
_COMMANDS = (
    "info status",
    "info cpus",
    "info registers -a",
    "info irq",
    "info pic",
    "info network",
    "info usernet",
    f"info virtio-status {_NIC}",
    f"info virtio-queue-status {_NIC} 0",
    f"info virtio-queue-status {_NIC} 1",
)


def monitor_report(qmp: QmpSession, deadline: Deadline) -> str:
    """The answers of QEMU's human monitor, each below its command, or the reason for a missing answer."""
    report = []
    for command in _COMMANDS:
        try:
            answer = str(qmp.execute("human-monitor-command", {"command-line": command}, deadline=deadline))
        except InfraError as error:
            answer = f"(no answer: {error.message})"
        report.append(f"(qemu) {command}\n{answer.strip()}\n")
    return "\n".join(report)
