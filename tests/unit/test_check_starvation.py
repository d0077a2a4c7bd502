# SPDX-License-Identifier: GPL-2.0-or-later
"""A watchdog's report is the host's fault if QEMU did not run for half of the watchdog's period, else the kernel's."""

from __future__ import annotations

import pytest

from harness.check.starvation import cause, excused, period, starving
from harness.parsers.dmesg import alarming
from harness.state import HostTime, ThreadTime

SOFT = "[  140.000000] watchdog: BUG: soft lockup - CPU#1 stuck for 60s! [sh:61]"
TASK = "[  241.000000] INFO: task kworker/u8:0:11 blocked for more than 120 seconds."
STALL = "[   60.000000] rcu: INFO: rcu_sched self-detected stall on CPU"
OURS = "console=ttyAMA0 rcupdate.rcu_cpu_stall_timeout=60 watchdog_thresh=60"


@pytest.mark.parametrize(
    ("text", "cmdline", "seconds"),
    [
        (SOFT, OURS, 60),
        ("watchdog: BUG: soft lockup - CPU#0 stuck for 134s! [swapper/0:0]", OURS, 134),
        (TASK, OURS, 120),
        ("INFO: task sh:7 blocked in I/O wait for more than 241 seconds.", OURS, 241),
        ("INFO: task sh:7 blocked on a mutex likely owned by task cat:8.", OURS, 120),
        (STALL, OURS, 60),
        (STALL, "", 21),
        (STALL, f"{OURS} rcupdate.rcu_cpu_stall_timeout=5", 5),
        ("rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", OURS, 60),
        ("rcu: rcu_preempt kthread starved for 6003 jiffies! g1 f0x0 RCU_GP_WAIT_FQS(5) ->state=0x0 ->cpu=0", OURS, 60),
        ("BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 37s!", OURS, 37),
        ("watchdog: Watchdog detected hard LOCKUP on cpu 1", OURS, 60),
        ("watchdog: Watchdog detected hard LOCKUP on cpu 1", "", 10),
        ("BUG: KASAN: use-after-free in f+0x1/0x2, stuck for 60s", OURS, None),
        ("Internal error: Oops: 0000000096000004 [#1] PREEMPT SMP", OURS, None),
        ("WARNING: CPU: 0 PID: 1 at mm/x.c:1 blocked for more than 120 seconds", OURS, None),
        ("all is well for more than 120 seconds", OURS, None),
    ],
)
def test_the_period_of_a_watchdog(text: str, cmdline: str, seconds: int | None) -> None:
    assert period(alarming(text), text, cmdline) == seconds


def host(text: str, seconds: int, *, steal: float = 0.0, **threads: tuple[float, float, float]) -> HostTime:
    rows = tuple(ThreadTime(name.replace("_", " "), *row) for name, row in threads.items())
    return HostTime(text, seconds, float(seconds), rows, steal)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            host(SOFT, 60, CPU_1=(20.0, 30.0, 0.0)),
            "QEMU's thread CPU 1 waited for a CPU of the host for 30.0 s of",
        ),
        (host(SOFT, 60, CPU_1=(30.0, 29.9, 0.0)), ""),
        # The CPU that is stuck had its time, whatever the other one had.
        (host(SOFT, 60, CPU_0=(1.0, 59.0, 0.0), CPU_1=(60.0, 0.0, 0.0)), ""),
        (host(SOFT, 60, main=(1.0, 59.0, 0.0), CPU_1=(60.0, 0.0, 0.0)), "QEMU's thread main waited"),
        (host(TASK, 120, CPU_0=(1.0, 60.0, 0.0), CPU_1=(60.0, 0.0, 0.0)), "QEMU's thread CPU 0 waited"),
        # Idle: neither ran nor waited.
        (host(TASK, 120, CPU_0=(1.0, 1.0, 0.0), CPU_1=(1.0, 1.0, 0.0)), ""),
        (host(STALL, 60, CPU_0=(1.0, 1.0, 31.0)), "QEMU was stopped for 31.0 s of the 60 s before it"),
        (host(STALL, 60, steal=30.0, CPU_0=(60.0, 0.0, 0.0)), "a hypervisor took each CPU of the host for 30.0 s"),
        (host(STALL, 60, steal=29.0, CPU_0=(60.0, 0.0, 0.0)), ""),
        (HostTime(STALL, 60), ""),
        (host(STALL, 0, CPU_0=(1.0, 60.0, 0.0)), ""),
        (host(STALL, -5, CPU_0=(1.0, 60.0, 0.0)), ""),
    ],
)
def test_whose_fault_it_is(found: HostTime, said: str) -> None:
    assert cause(found).startswith(said) and bool(cause(found)) is bool(said)


def test_of_equal_reports_all_must_be_the_hosts() -> None:
    starved, fine = host(STALL, 60, CPU_0=(1.0, 50.0, 0.0)), host(STALL, 60, CPU_0=(60.0, 0.0, 0.0))
    assert list(excused([starved, starved])) == ["rcu: INFO: rcu_sched self-detected stall on CPU"]
    assert excused([starved, fine]) == {} and starving([starved, fine]) == "" and starving([]) == ""
    assert starving([starved]) == (
        "the host, not the kernel: rcu: INFO: rcu_sched self-detected stall on CPU "
        "(QEMU's thread CPU 0 waited for a CPU of the host for 50.0 s of the 60 s before it)"
    )
