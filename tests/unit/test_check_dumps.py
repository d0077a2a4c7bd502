# SPDX-License-Identifier: GPL-2.0-or-later
"""Crash dumps compared with /proc/iomem, and how they are saved in a bundle."""

from __future__ import annotations

import dataclasses

import model_guest

from harness.check import CATALOGUE, CheckResult, DumpReport, Evidence, run_check
from harness.scenarios.outcome import Outcome
from harness.scenarios.record import CODEC
from harness.state import GuestState, IomemEntry, NotObserved
from harness.units import AddrRange

RAM, DRIVER = AddrRange(0x4000, 0x8000), AddrRange(0x9000, 0xA000)


def state() -> GuestState:
    iomem = (
        IomemEntry(RAM, "System RAM", (IomemEntry(AddrRange(0x5000, 0x6000), "reserved"),)),
        IomemEntry(AddrRange(0x9000, 0xC000), "virtio2", (IomemEntry(DRIVER, "System RAM (virtio_mem)"),)),
        IomemEntry(AddrRange(0xD000, 0xE000), "Persistent Memory"),
    )
    return dataclasses.replace(model_guest.boot_state(), iomem=iomem)


def checked(*dumps: DumpReport, seen: GuestState | None = None, step: str = "") -> CheckResult | None:
    model = model_guest.model()
    return run_check(CATALOGUE["IOM-4"], Evidence(model.layout, model.expected(), seen or state(), dumps=dumps), step)


def test_dumps_that_hold_what_iomem_tells() -> None:
    parts = (AddrRange(0x4000, 0x5000), AddrRange(0x5000, 0x8000), DRIVER)
    whole = DumpReport("/proc/kcore", AddrRange(0, 0xF000), parts)
    window = DumpReport("QEMU", AddrRange(0x9000, 0xF000), (DRIVER,))
    assert checked(whole, window) == CheckResult("IOM-4", "pass")
    assert checked() is None, "a step without dumps"


def test_dumps_prove_nothing_without_iomem() -> None:
    blind = dataclasses.replace(state(), iomem=NotObserved("x"))
    result = checked(DumpReport("/proc/kcore", AddrRange(0, 0xF000), ()), seen=blind)
    assert result == CheckResult("IOM-4", "not-observed", reason="x")


def test_what_is_missing_and_what_is_too_much() -> None:
    report = DumpReport("/proc/kcore", AddrRange(0, 0xF000), (RAM, AddrRange(0xB000, 0xC000)))
    result = checked(report, step="step 3")
    assert result is not None and result.status == "fail"
    missing, extra = result.findings
    assert (missing.invariant, missing.where) == ("IOM-4", f"PT_LOAD of {DRIVER}")
    assert (missing.expected, missing.observed, missing.source) == ("in the dump", "missing", "/proc/kcore")
    assert (extra.where, extra.expected) == (f"PT_LOAD of {AddrRange(0xB000, 0xC000)}", "not in the dump")
    assert extra.step == "step 3"


def test_a_bundle_keeps_them() -> None:
    outcome = Outcome(dumps=(DumpReport("QEMU", AddrRange(1, 9), (AddrRange(2, 3), AddrRange(4, 5))),))
    assert CODEC.load(CODEC.dump(outcome), Outcome) == outcome
