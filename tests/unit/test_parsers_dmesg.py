# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel log, and which of its lines are alarms. The lines are from Linux 6.12 unless noted otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ParseError
from harness.parsers.dmesg import alarming, parse_dmesg
from harness.parsers.notes import Notes
from harness.state import DmesgLine, Unknown

FIXTURES = Path(__file__).parent / "fixtures"

# (class, line, where the kernel prints it)
ALARMS = [
    ("cut here", "------------[ cut here ]------------", "include/asm-generic/bug.h CUT_HERE"),
    ("WARN", "WARNING: CPU: 1 PID: 73 at mm/memory_hotplug.c:1120 online_pages+0x2f8/0x3a0", "kernel/panic.c __warn"),
    ("WARN", "WARNING: CPU: 0 PID: 1 at arch_remove_memory+0x44/0x70", "kernel/panic.c __warn, no file"),
    (
        "WARN",
        "WARNING: mm/sparse.c:800 at section_deactivate+0x1f0/0x2a0, CPU#1: sh/73",
        "kernel/panic.c as of v6.19",
    ),
    ("end trace", "---[ end trace 0000000000000000 ]---", "kernel/panic.c print_oops_end_marker"),
    ("end trace", "---[ end trace ]---", "lib/ubsan.c ubsan_epilogue"),
    ("BUG", "kernel BUG at mm/memory_hotplug.c:2014!", "lib/bug.c report_bug"),
    ("BUG", "Kernel BUG at __remove_pages+0x10/0x80 [verbose debug info unavailable]", "lib/bug.c report_bug"),
    ("BUG", "Kernel BUG [#1]", "arch/riscv/kernel/traps.c handle_break, die"),
    ("BUG", "Internal error: Oops - BUG: 00000000f2000800 [#1] PREEMPT SMP", "arch/arm64/kernel/traps.c bug_handler"),
    ("BUG", "BUG: sleeping function called from invalid context at mm/slab.h:1", "kernel/sched/core.c __might_resched"),
    ("BUG", "BUG: scheduling while atomic: sh/73/0x00000002", "kernel/sched/core.c __schedule_bug"),
    ("BUG", "BUG: spinlock bad magic on CPU#0, sh/73", "kernel/locking/spinlock_debug.c spin_dump"),
    ("BUG", "BUG: using smp_processor_id() in preemptible [00000000] code: sh/73", "lib/smp_processor_id.c"),
    ("BUG", "BUG: workqueue leaked atomic, lock or RCU: kworker/0:1[9]", "kernel/workqueue.c process_one_work"),
    ("BUG", "BUG kmalloc-64 (Tainted: G    B             ): Poison overwritten", "mm/slub.c slab_bug"),
    ("BUG", "BUG: not creating mapping for 0x80000000 at 0x1000 - outside kernel range", "arch/arm64/mm/mmu.c"),
    ("bad page", "BUG: Bad page state in process sh  pfn:80000", "mm/page_alloc.c bad_page"),
    ("bad page", "BUG: Bad page map in process sh  pte:00000001 pmd:00000002", "mm/memory.c print_bad_pte"),
    ("bad page", "BUG: Bad page cache in process sh  pfn:80000", "mm/filemap.c filemap_unaccount_folio"),
    ("bad page", "BUG: Bad rss-counter state mm:0000000 type:MM_ANONPAGES val:1", "kernel/fork.c check_mm"),
    ("bad page", "BUG: non-zero pgtables_bytes on freeing mm: 4096", "kernel/fork.c check_mm"),
    (
        "bad page table",
        "mm/pgtable-generic.c:54: bad pmd 0068000088000711.",
        "arch/arm64/include/asm/pgtable.h pmd_ERROR",
    ),
    (
        "bad page table",
        "arch/riscv/mm/init.c:54: bad pgd 0000000020000001.",
        "arch/riscv/include/asm/pgtable.h pgd_ERROR",
    ),
    ("page_table_check", "kernel BUG at mm/page_table_check.c:87!", "mm/page_table_check.c page_table_check_clear"),
    ("Oops", "Internal error: Oops: 0000000096000004 [#1] PREEMPT SMP", "arch/arm64/kernel/traps.c __die"),
    ("Oops", "Internal error: Oops - Undefined instruction: 0000000002000000 [#1] SMP", "arch/arm64/kernel/traps.c"),
    ("Oops", "Internal error: synchronous external abort: 0000000096000010 [#1] SMP", "arch/arm64/mm/fault.c do_sea"),
    ("Oops", "Oops [#1]", "arch/riscv/mm/fault.c die_kernel_fault"),
    ("Oops", "Oops - illegal instruction [#1]", "arch/riscv/kernel/traps.c do_trap_insn_illegal"),
    ("Oops", "Oops - load access fault [#2]", "arch/riscv/kernel/traps.c"),
    ("Oops", "Oops - store (or AMO) address misaligned [#1]", "arch/riscv/kernel/traps.c"),
    (
        "Oops",
        "Unable to handle kernel paging request at virtual address fff0000080000000",
        "arch/arm64/mm/fault.c die_kernel_fault",
    ),
    (
        "Oops",
        "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000008",
        "arch/{arm64,riscv}/mm/fault.c",
    ),
    (
        "Oops",
        "Unable to handle kernel access to user memory without uaccess routines at virtual address 00000000ffffe000",
        "arch/riscv/mm/fault.c",
    ),
    (
        "Oops",
        "Unable to handle kernel write to read-only memory at virtual address ffff800080000000",
        "arch/arm64/mm/fault.c",
    ),
    ("Oops", "Insufficient stack space to handle exception!", "arch/{arm64,riscv}/kernel/traps.c"),
    (
        "Oops",
        "Unhandled 64-bit el1h sync exception on CPU0, ESR 0x0000000002000000 -- Unknown",
        "arch/arm64/kernel/traps.c",
    ),
    (
        "SError",
        "SError Interrupt on CPU0, code 0x00000000be000011 -- SError",
        "arch/arm64/kernel/traps.c arm64_serror_panic",
    ),
    ("SError", "Kernel panic - not syncing: Asynchronous SError Interrupt", "arch/arm64/kernel/traps.c nmi_panic"),
    ("panic", "Kernel panic - not syncing: Fatal exception in interrupt", "kernel/panic.c panic"),
    (
        "panic",
        "---[ end Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b ]---",
        "kernel/panic.c",
    ),
    ("lockdep", "WARNING: possible circular locking dependency detected", "kernel/locking/lockdep.c"),
    ("lockdep", "WARNING: possible recursive locking detected", "kernel/locking/lockdep.c"),
    ("lockdep", "WARNING: possible irq lock inversion dependency detected", "kernel/locking/lockdep.c"),
    ("lockdep", "WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected", "kernel/locking/lockdep.c"),
    ("lockdep", "WARNING: inconsistent lock state", "kernel/locking/lockdep.c"),
    ("lockdep", "WARNING: suspicious RCU usage", "kernel/locking/lockdep.c"),
    ("lockdep", "WARNING: bad unlock balance detected!", "kernel/locking/lockdep.c"),
    ("lockdep", "WARNING: held lock freed!", "kernel/locking/lockdep.c"),
    ("lockdep", "WARNING: sh/73 still has locks held!", "kernel/locking/lockdep.c"),
    ("lockdep", "WARNING: lock held when returning to user space!", "kernel/locking/lockdep.c"),
    ("lockdep", "[ BUG: Invalid wait context ]", "kernel/locking/lockdep.c"),
    ("lockdep", "INFO: trying to register non-static key.", "kernel/locking/lockdep.c"),
    ("lockdep", "DEBUG_LOCKS_WARN_ON(chain_hlocks[chain->base])", "include/linux/debug_locks.h"),
    ("lockdep", "BUG: MAX_LOCKDEP_ENTRIES too low!", "kernel/locking/lockdep_internals.h, lockdep.c"),
    (
        "KASAN",
        "BUG: KASAN: slab-use-after-free in remove_memory+0x10/0x20",
        "mm/kasan/report.c print_error_description",
    ),
    ("KASAN", "BUG: KASAN: invalid-access", "mm/kasan/report.c kasan_report_async"),
    ("KASAN", "Internal error: Oops - KASAN: 00000000f2000900 [#1] SMP", "arch/arm64/kernel/traps.c kasan_handler"),
    ("KFENCE", "BUG: KFENCE: use-after-free read in test+0x10/0x20", "mm/kfence/report.c kfence_report_error"),
    ("KCSAN", "BUG: KCSAN: data-race in a / b", "kernel/kcsan/report.c"),
    ("KMSAN", "BUG: KMSAN: uninit-value in a+0x1/0x2", "mm/kmsan/report.c"),
    ("UBSAN", "UBSAN: array-index-out-of-bounds in mm/sparse.c:10:20", "lib/ubsan.c ubsan_prologue"),
    ("RCU stall", "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", "kernel/rcu/tree_stall.h"),
    ("RCU stall", "rcu: INFO: rcu_sched self-detected stall on CPU", "kernel/rcu/tree_stall.h"),
    ("RCU stall", "rcu: INFO: rcu_sched detected expedited stalls on CPUs/tasks: {", "kernel/rcu/tree_exp.h"),
    ("RCU stall", "INFO: rcu_tasks detected stalls on tasks:", "kernel/rcu/tasks.h"),
    ("RCU stall", "INFO: rcu_tasks_trace detected stalls? (Late IPI?)", "kernel/rcu/tasks.h"),
    (
        "RCU stall",
        "rcu: rcu_preempt kthread starved for 5252 jiffies! g1 f0x0 RCU_GP_WAIT_FQS(5)",
        "kernel/rcu/tree_stall.h",
    ),
    (
        "RCU stall",
        "rcu: rcu_preempt kthread timer wakeup didn't happen for 5 jiffies! g1 f0x0",
        "kernel/rcu/tree_stall.h",
    ),
    (
        "hung task",
        "INFO: task kworker/u4:1:42 blocked for more than 120 seconds.",
        "kernel/hung_task.c check_hung_task",
    ),
    ("hung task", "INFO: task sh:42 is blocked on a mutex likely owned by task sh:43.", "kernel/hung_task.c, newer"),
    ("hung task", "INFO: task init:1 blocked in I/O wait for more than 122 seconds.", "kernel/hung_task.c, newer"),
    (
        "WARN",
        "WARNING: [!(ms->flags & (1 << 2))] mm/sparse.c:214 at online_mem_sections+0x44/0x70, CPU#1: sh/73",
        "arch/riscv/include/asm/bug.h, v7.3",
    ),
    ("WARN", "WARNING: at arch_remove_memory+0x44/0x70, CPU#1: sh/73", "kernel/panic.c as of v6.19, no file"),
    ("soft lockup", "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [sh:73]", "kernel/watchdog.c watchdog_timer_fn"),
    ("hard lockup", "watchdog: Watchdog detected hard LOCKUP on cpu 1", "kernel/watchdog.c watchdog_hardlockup_check"),
    (
        "workqueue lockup",
        "BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 33s!",
        "kernel/workqueue.c",
    ),
    ("list corruption", "list_del corruption. prev->next should be a, but was b. (prev=c)", "lib/list_debug.c"),
    ("list corruption", "list_add corruption. next->prev should be prev (a), but was b. (next=c).", "lib/list_debug.c"),
    ("list corruption", "list_add double add: new=a, prev=b, next=c.", "lib/list_debug.c"),
    ("refcount", "refcount_t: underflow; use-after-free.", "lib/refcount.c refcount_warn_saturate"),
    ("refcount", "refcount_t: decrement hit 0; leaking memory.", "lib/refcount.c refcount_warn_saturate"),
    (
        "debugobjects",
        "ODEBUG: free active (active state 0) object: a object type: timer_list hint: b",
        "lib/debugobjects.c",
    ),
    ("W+X", "Checked W+X mappings: FAILED, 12 W+X pages found, 0 non-UXN pages found", "arch/arm64/mm/ptdump.c"),
    ("W+X", "Checked W+X mappings: failed, 3 W+X pages found", "arch/riscv/mm/ptdump.c"),
    ("W+X", "arm64/mm: Found insecure W+X mapping at address 0/0", "arch/arm64/mm/ptdump.c note_prot_wx"),
    ("W+X", "arm64/mm: Found non-UXN mapping at address 0/0", "arch/arm64/mm/ptdump.c note_prot_uxn"),
    ("W+X", "riscv/mm: Found insecure W+X mapping at address 0/0", "arch/riscv/mm/ptdump.c note_prot_wx"),
    (
        "duplicate object",
        "sysfs: cannot create duplicate filename '/devices/system/memory/memory16'",
        "fs/sysfs/dir.c sysfs_warn_dup",
    ),
    (
        "duplicate object",
        "sysfs: cannot create duplicate filename '/devices/pci0000:00/0000:00:06.0/virtio4'",
        "fs/sysfs/dir.c sysfs_warn_dup",
    ),
    (
        "duplicate object",
        "kobject: kobject_add_internal failed for memory16 with -EEXIST, "
        "don't try to register things with the same name",
        "lib/kobject.c",
    ),
    ("kmemleak", "kmemleak: 2 new suspected memory leaks (see /sys/kernel/debug/kmemleak)", "mm/kmemleak.c"),
]

BENIGN = [
    "",
    "ACPI BIOS Warning (bug): Incorrect checksum in table [SSDT] - 0x00, should be 0x11",
    "[Firmware Warn]: GHES: Poll interval is 0",
    "[Firmware Bug]: TSC frequency mismatch",
    "rcu: Hierarchical RCU implementation.",
    "rcu: \tRCU CPU stall warnings timeout set to 60 (rcu_cpu_stall_timeout).",
    "rcu: \tRCU restricting CPUs from NR_CPUS=16 to nr_cpu_ids=2.",
    "kfence: initialized - using 2097152 bytes for 255 objects at 0x(____ptrval____)-0x(____ptrval____)",
    "kasan: KernelAddressSanitizer initialized (generic)",
    "kmemleak: Kernel memory leak detector initialized (mem pool available: 15723)",
    "ODEBUG: Out of memory. ODEBUG disabled",
    "ODEBUG: selftest passed",
    "Checked W+X mappings: passed, no W+X pages found",
    "NMI watchdog: Enabled. Permanently consumes one hw-PMU counter.",
    "watchdog: Delayed init of the lockup detector failed: -19",
    "Memory failure: 0x80000: recovery action for dirty LRU page: Recovered",
    "sh: page allocation failure: order:9, mode:0xcc0(GFP_KERNEL), nodemask=(null),cpuset=/,mems_allowed=0",
    "Call trace:",
    "warn_alloc+0x10c/0x190",
    "page dumped because: unmovable page",
    "memory memory22: Offline failed.",
    "acpi PNP0C80:00: add_memory failed",
    "acpi PNP0C80:00: acpi_memory_enable_device() error",
    "virtio_mem virtio2: plugged size: 0x10000000",
    "nd_pmem namespace0.0: unable to guarantee persistence of writes",
    "Block size [0x8000000] unaligned hotplug range: start 0x80000000, size 0x4000000",
    "migrating pfn 80000 failed ret:1",
    "WARNING: x1-x3 nonzero in violation of boot protocol:",
    "WARNING: 'bootconfig' found on the kernel command line but CONFIG_BOOT_CONFIG is not set.",
    "** This means that this is a DEBUG kernel and it is     **",
    "random: crng init done",
    "sh[73]: unhandled exception: DABT (lower EL), ESR 0x92000046, level 2 translation fault in busybox[400000+1c0000]",
    "sh[73]: unhandled signal 11 code 0x1 at 0x0000000000000000 in busybox[10000+1c0000]",
    "LSM: initializing lsm=capability,landlock",
]


@pytest.mark.parametrize(
    ("kind", "line", "source"), ALARMS, ids=[f"{kind}-{at}" for at, (kind, _, _) in enumerate(ALARMS)]
)
def test_alarms(kind: str, line: str, source: str) -> None:
    assert alarming(line) == kind, source
    for prefix in ("[   12.345678] ", "<4>[   12.345678] ", "<1>[   12.345678][    T1] ", "[    0.000000][   C1] "):
        assert alarming(prefix + line) == kind


@pytest.mark.parametrize("line", BENIGN)
def test_harmless_lines(line: str) -> None:
    assert alarming(line) is None
    assert alarming(f"<4>[   12.345678] {line}") is None


@pytest.mark.parametrize(
    "path", sorted(FIXTURES.glob("*/dmesg*.txt")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_no_alarm_in_recorded_logs(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) > 200
    assert [line for line in lines if alarming(line) is not None] == []


@pytest.mark.parametrize("name", ["arm64-built", "arm64-stock", "riscv64-stock"])
def test_recorded_logs(name: str) -> None:
    text = (FIXTURES / name / "dmesg.txt").read_text()
    lines = parse_dmesg(text)
    assert len(lines) == text.count("\n")
    assert any(line.text.startswith("Linux version 6.12.107") and line.level == 5 for line in lines)
    assert [line.seconds for line in lines] == sorted(line.seconds for line in lines)


def test_prefix_facility_caller_and_continuation() -> None:
    text = "<6>[    0.000000] Booting\n<30>[12345.678901][    T1] init: up\n  more\n\n<4>[   13.000000][   C1] x\n"
    assert parse_dmesg(text) == (
        DmesgLine(0.0, 6, "Booting"),
        DmesgLine(12345.678901, 6, "init: up"),
        DmesgLine(12345.678901, 6, "  more"),
        DmesgLine(12345.678901, 6, ""),
        DmesgLine(13.0, 4, "x"),
    )
    assert parse_dmesg("") == ()
    assert parse_dmesg("<6>[    1.000000] \x1b[1mbold\ufffd\n")[0].text == "\x1b[1mbold\ufffd"


def test_a_log_that_was_cut_off() -> None:
    with pytest.raises(ParseError, match="dmesg:1: the text ends in the middle of a line"):
        parse_dmesg("<6>[    0.000000] a")


WARN = "WARNING: CPU: 0 PID: 1 at mm/memory_hotplug.c:1 f+0x0/0x10"


@pytest.mark.parametrize(
    ("text", "line", "kind"),
    [
        (f"<4>{WARN}", DmesgLine(1.5, 4, WARN, "WARN"), "message without a time stamp"),
        (f"<4>[    2.000000][    T1] {WARN}", DmesgLine(2.0, 4, WARN, "WARN"), None),
        (f"<4>[    2.000000][    T1][ init/1] {WARN}", DmesgLine(2.0, 4, WARN, "WARN"), "message with another prefix"),
        (f"<4>[    2.000000][ CPU0] {WARN}", DmesgLine(2.0, 4, WARN, "WARN"), "message with another prefix"),
        (f"[    2.000000] {WARN}", DmesgLine(2.0, None, WARN, "WARN"), "message with another prefix"),
        (WARN, DmesgLine(1.5, 6, WARN, "WARN"), None),
        ("<6>[    2.000000] \ufffd\x00\udc80", DmesgLine(2.0, 6, "\ufffd\x00\udc80"), None),
    ],
)
def test_no_prefix_hides_an_alarm(text: str, line: DmesgLine, kind: str | None) -> None:
    notes = Notes()
    assert parse_dmesg(f"<6>[    1.500000] a\n{text}\n", notes)[1] == line
    assert [note.kind for note in notes.unknown] == ([] if kind is None else [kind])


def test_a_log_that_begins_in_the_middle_of_a_message() -> None:
    notes = Notes()
    assert parse_dmesg(f"{WARN}\n", notes) == (DmesgLine(0.0, None, WARN, "WARN"),)
    assert notes.unknown == (Unknown("dmesg", "line without a message before it", WARN, 1),)


def test_a_recorded_log_without_time_stamps() -> None:
    text = (FIXTURES / "arm64-virtio-mem/dmesg-notime.txt").read_text()
    notes = Notes()
    assert len(parse_dmesg(text, notes)) == len(text.splitlines())
    assert {note.kind for note in notes.unknown} == {"message without a time stamp"}
    assert sum(note.count for note in notes.unknown) > 100


@given(st.text())
def test_any_line_is_judged(text: str) -> None:
    assert alarming(text) is None or isinstance(alarming(text), str)
