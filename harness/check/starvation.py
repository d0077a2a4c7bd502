# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose fault it is that a watchdog of the guest expired: the kernel's, or the host's that did not let its CPUs run.

A watchdog reports what has not happened for a period of N seconds. It is the host's fault if, in the N seconds before
the report, a thread of QEMU waited for one of the host's CPUs for at least N/2 (or was stopped by a signal, or a
hypervisor took the host's CPUs, for as long): on a host that is free, the same work would have taken at most half of
the period. Otherwise it is the kernel's. Of a soft lockup, the thread is that of the CPU it names, or QEMU's main one,
which runs the guest's timers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from harness.check.known import bare
from harness.state import HostTime

#: seconds: CONFIG_RCU_CPU_STALL_TIMEOUT (kernel/rcu/tree_stall.h), watchdog_thresh (kernel/watchdog.c) and
#: CONFIG_DEFAULT_HUNG_TASK_TIMEOUT (kernel/hung_task.c) of kernels that are not told otherwise (v6.12)
_RCU, _WATCHDOG, _HUNG = 21, 10, 120
_RCU_OPTION = re.compile(r"(?:^|\s)rcupdate\.rcu_cpu_stall_timeout=([0-9]{1,6})(?=\s|$)")
_WATCHDOG_OPTION = re.compile(r"(?:^|\s)watchdog_thresh=([0-9]{1,6})(?=\s|$)")
#: "soft lockup - CPU#0 stuck for 134s!", "workqueue lockup … stuck for 37s!", "blocked for more than 120 seconds"
_SAID = re.compile(r"\bstuck for ([0-9]{1,6})s|\bfor more than ([0-9]{1,6}) seconds")
_CPU = re.compile(r"\bsoft lockup - CPU#([0-9]{1,4})\b")


def period(alarm: str | None, text: str, cmdline: str) -> int | None:
    """The seconds without progress that a console line of the class ``alarm`` reports; None if it does not.

    ``cmdline`` is the kernel's command line.
    """
    if (said := _SAID.search(text)) is not None and alarm in ("soft lockup", "workqueue lockup", "hung task"):
        return int(said[1] or said[2])
    if alarm == "RCU stall":
        return int(([str(_RCU), *_RCU_OPTION.findall(cmdline)])[-1])
    if alarm == "hard lockup":
        return int(([str(_WATCHDOG), *_WATCHDOG_OPTION.findall(cmdline)])[-1])
    return _HUNG if alarm == "hung task" else None


def cause(found: HostTime) -> str:
    """How the host caused the report, with the figures; "" if it did not."""
    if found.seconds <= 0:
        return ""
    cpu = _CPU.search(found.text)
    names = None if cpu is None else ("main", f"CPU {cpu[1]}")
    of = f"of the {found.seconds} s before it"
    for thread in found.threads:
        if names is not None and thread.name not in names:
            continue
        if 2 * thread.waited >= found.seconds:
            return f"QEMU's thread {thread.name} waited for a CPU of the host for {thread.waited:.1f} s {of}"
        if 2 * thread.stopped >= found.seconds:
            return f"QEMU was stopped for {thread.stopped:.1f} s {of}"
    if 2 * found.steal >= found.seconds:
        return f"a hypervisor took each CPU of the host for {found.steal:.1f} s {of}"
    return ""


def excused(times: Iterable[HostTime]) -> Mapping[str, str]:
    """How the host caused each report that it caused, by the report's line without level, time and caller."""
    causes: dict[str, list[str]] = {}
    for found in times:
        causes.setdefault(bare(found.text), []).append(cause(found))
    return {text: told[0] for text, told in causes.items() if all(told)}


def starving(times: Iterable[HostTime]) -> str:
    """The reports that the host caused, and how; "" if there is none."""
    told = "; ".join(f"{text} ({why})" for text, why in excused(times).items())
    return f"the host, not the kernel: {told}" if told else ""
