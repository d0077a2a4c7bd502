# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel log as ``dmesg -r`` prints it (kernel/printk/printk.c, info_print_prefix), and its alarms."""

from __future__ import annotations

import re

from harness.parsers._lines import split_lines
from harness.parsers.notes import STRICT, Notes
from harness.state import DmesgLine

SOURCE = "dmesg"

_TIME = r"\[ *([0-9]{1,12}\.[0-9]{6})\]"
_CALLER = r"\[ *[TC][0-9]{1,10}\]"
#: other fields in brackets that may follow the time
_MORE = r"(?:\[[^\[\]]{1,40}\])*"
_LINE = re.compile(rf"(?:<([0-9]{{1,4}})>)?{_TIME}(?:{_CALLER})?({_MORE}) (.*)")
_BARE = re.compile(r"<([0-9]{1,4})>(.*)")
_PREFIX = re.compile(rf"(?:<[0-9]{{1,4}}>)?(?:{_TIME}{_MORE}|{_CALLER})? ?")


def parse_dmesg(text: str, notes: Notes = STRICT) -> tuple[DmesgLine, ...]:
    """Return the lines of the log in order: ``<level>[   12.345678] text``, or with the caller, ``[    T1]``.

    ``level`` is the low three bits of the number in angle brackets (the others are syslog's facility), None where there
    is no such number. A line without any prefix continues the previous message and inherits its level and time; one
    without a time stamp inherits its time. Every line is kept, whatever its prefix, so that no alarm is lost; a prefix
    that printk of v6.1 to v7.3 does not write is unknown. An empty text is an empty log.
    """
    out: list[DmesgLine] = []
    for row in split_lines(SOURCE, text):
        if not row and out and not out[-1].text:
            out.append(out[-1])
            continue
        seconds, level = (out[-1].seconds, out[-1].level) if out else (0.0, None)
        body = row
        if (match := _LINE.fullmatch(row)) is not None:
            seconds, level, body = float(match[2]), None if match[1] is None else int(match[1]) & 7, match[4]
            if match[3] or level is None:
                notes.add_unknown(SOURCE, "message with another prefix", row)
        elif (bare := _BARE.fullmatch(row)) is not None:
            level, body = int(bare[1]) & 7, bare[2]
            notes.add_unknown(SOURCE, "message without a time stamp", row)
        elif not out:
            notes.add_unknown(SOURCE, "line without a message before it", row)
        out.append(DmesgLine(seconds, level, body, alarming(body)))
    return tuple(out)


def alarming(text: str) -> str | None:
    """Return the class of trouble that one line of the kernel log or console announces, or None if it is harmless.

    ``text`` may still have its level, time stamp and caller. Refusals of memory hotplug (``add_memory failed``, pages
    that cannot be isolated), failed allocations and out-of-memory kills are not alarms.
    """
    text = text[: _MAX_CHECKED + 64]
    start = _PREFIX.match(text)
    body = text if start is None else text[start.end() :]
    if _ANY.search(body) is None:
        return None
    return next(name for name, pattern in _COMPILED if pattern.search(body))


#: the kernel's longest line (LOG_LINE_MAX): a longer one is not a kernel message
_MAX_CHECKED = 1024

_OOM = r": (?:System is deadlocked on memory|Out of memory: )"

# (class, pattern); the first that matches names the class. A pattern starts with ^ where harmless lines contain the
# same words elsewhere. Sources are from v6.12.
_ALARMS: tuple[tuple[str, str], ...] = (
    # mm/{kasan,kfence}/report.c, kernel/kcsan/report.c, mm/kmsan/report.c; arm64 die("Oops - KASAN")
    ("KASAN", r"\bBUG: KASAN: |Oops - KASAN\b"),
    ("KFENCE", r"\bBUG: KFENCE: "),
    ("KCSAN", r"\bBUG: KCSAN: "),
    ("KMSAN", r"\bBUG: KMSAN: "),
    # lib/ubsan.c, ubsan_prologue; arch/arm64/kernel/traps.c, report_ubsan_failure
    ("UBSAN", r"^UBSAN: |^Internal error: UBSAN|Oops - UBSAN"),
    # mm/page_alloc.c bad_page, mm/memory.c print_bad_pte, mm/filemap.c, kernel/fork.c check_mm
    ("bad page", r"\bBUG: Bad (?:page|rss-counter) |\bBad page (?:state|map) |BUG: non-zero pgtables_bytes"),
    # mm/pgtable-generic.c and pte_ERROR, pmd_ERROR, pud_ERROR, p4d_ERROR, pgd_ERROR of both architectures
    ("bad page table", r"^[\w./-]+:[0-9]+: bad (?:pte|pmd|pud|p4d|pgd) "),
    ("page_table_check", r"\bkernel BUG at \S*mm/page_table_check\.c:"),
    # kernel/watchdog.c, kernel/workqueue.c
    ("soft lockup", r"\bBUG: soft lockup - "),
    ("hard lockup", r"\bdetected hard LOCKUP\b|\bHard LOCKUP\b"),
    ("workqueue lockup", r"\bBUG: workqueue lockup - "),
    # kernel/rcu/tree_stall.h, tree_exp.h, tasks.h, srcutree.c
    (
        "RCU stall",
        r"\bINFO: \S+ (?:detected (?:expedited )?stalls?|self-detected stall)\b"
        r"|\bINFO: rcu_tasks\S* detected stalls|^(?:rcu: )?\S* ?kthread (?:starved for|timer wakeup didn't happen)",
    ),
    # kernel/hung_task.c
    ("hung task", r"\bINFO: task \S.*blocked (?:(?:in I/O wait )?for more than [0-9]+ seconds|on an? )"),
    # kernel/locking/lockdep.c
    (
        "lockdep",
        r"^WARNING: (?:possible (?:circular locking|recursive locking|irq lock inversion)|inconsistent lock state"
        r"|suspicious RCU usage|bad (?:unlock balance|contention) detected|held lock freed|chain_key collision"
        r"|Nested lock was not taken|lock held when returning|\S+-safe -> \S+-unsafe lock order"
        r"|.*still has locks held)|^\[ BUG: Invalid wait context \]|^INFO: trying to register non-static key"
        r"|^DEBUG_LOCKS_WARN_ON|\bBUG: (?:key \S+ has not been registered|MAX_(?:LOCK|STACK)\S* too low)",
    ),
    # lib/list_debug.c, lib/refcount.c, lib/debugobjects.c
    ("list corruption", r"\blist_(?:add|del) corruption\b|\blist_add double add:"),
    ("refcount", r"\brefcount_t: "),
    ("debugobjects", r"^ODEBUG: \w+ .*\(active state "),
    # arch/arm64/kernel/traps.c arm64_serror_panic; mm/fault.c
    ("SError", r"\bSError Interrupt on CPU|\bAsynchronous SError Interrupt"),
    # kernel/panic.c; not the two in mm/oom_kill.c: running out of memory is not a kernel bug
    ("panic", rf"\bKernel panic - not syncing(?!{_OOM})|\bend Kernel panic(?! - not syncing{_OOM})"),
    # arm64: "Internal error: Oops: … [#1]", "Unable to handle kernel …"; riscv: "Oops [#1]", "Oops - … [#1]",
    # "Kernel BUG [#1]"; both: "Insufficient stack space to handle exception!"
    ("BUG", r"\bkernel BUG at |^Kernel BUG (?:at |\[#[0-9]+\])|Oops - BUG\b"),
    (
        "Oops",
        r"^Internal error: |\bUnable to handle (?:kernel|paging request)|^Oops(?: - [\w ,()-]+)? \[#[0-9]+\]"
        r"|^Insufficient stack space to handle exception|^Unhandled (?:64-bit|32-bit) \S+ \S+ exception"
        r"|^Bad mode in |\bUnhandled fault:",
    ),
    # kernel/panic.c __warn, up to v6.18 and since v6.19 ("WARNING: file:line at function, CPU#0: …"); the condition may
    # precede the file in brackets (CONFIG_DEBUG_BUGVERBOSE_DETAILED)
    ("WARN", r"^WARNING: (?:CPU: [0-9]+ PID: [0-9]+ at |(?:\[.*\] )?\S+:[0-9]+ at |at )"),
    # arch/{arm64,riscv}/mm/ptdump.c, ptdump_check_wx
    ("W+X", r"\bChecked W\+X mappings: (?:FAILED|failed)|\bFound (?:insecure W\+X|non-UXN) mapping"),
    # fs/sysfs/dir.c sysfs_warn_dup, lib/kobject.c
    (
        "duplicate object",
        r"\bcannot create duplicate filename '|\bdon't try to register things with the same name",
    ),
    # mm/kmemleak.c
    ("kmemleak", r"^kmemleak: [0-9]+ new suspected memory leaks?"),
    # mm/slub.c slab_bug, and every other BUG line: scheduling while atomic, sleeping function called, spinlock …
    ("BUG", r"^BUG \S+ \(.*\): |\bBUG: "),
    # include/asm-generic/bug.h, kernel/panic.c
    ("cut here", r"^-{12}\[ cut here \]-{12}"),
    ("end trace", r"^---\[ end trace(?: [0-9a-f]+)? \]---"),
)

_COMPILED = tuple((name, re.compile(pattern)) for name, pattern in _ALARMS)
_ANY = re.compile("|".join(f"(?:{pattern})" for _, pattern in _ALARMS))
