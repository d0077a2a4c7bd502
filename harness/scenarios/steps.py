# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs of a scenario, as things done to a session."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Any

from harness.check import DumpReport, TouchReport, UnplugReport
from harness.config.verbs import TOP
from harness.deadline import Deadline
from harness.errors import DeadlineExpired, QmpRefused, UnsupportedError, UsageError
from harness.guest import blocks, loads, pmem
from harness.guest.devices import switch_slot, wait_driver
from harness.guest.touch import touch_memory
from harness.model.actions import SetAutoOnline, StartLoad, Unplug
from harness.model.devices.device import BACKEND_ALIGNMENT
from harness.model.devices.dimm import Dimm, PlugDimm
from harness.model.devices.pmem import Pmem, SetDaxState, SetPmemMode
from harness.model.devices.virtio_mem import PlugVirtioMem
from harness.model.devices.virtio_pmem import PlugVirtioPmem
from harness.parsers.elf import load_segments
from harness.qemu import memdev
from harness.qemu.dump import dump_head
from harness.scenarios import holds
from harness.scenarios.onlining import follow_reonlined_blocks, offline, online
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session, overlap
from harness.scenarios.sizes import await_size, resize, settle
from harness.state import NotObserved
from harness.units import GIB, MIB, AddrRange, align_down, format_size, intersect_ranges, subtract_ranges

Arguments = Mapping[str, Any]
Verb = Callable[[Session, Arguments, Deadline], Outcome]

#: where CONFIG_MEMORY_NOTIFIER_ERROR_INJECT takes its orders
_NOTIFIERS = "/sys/kernel/debug/notifier-error-inject/memory/actions"

#: properties of a memory-backend-memfd; QEMU asks for transparent huge pages by itself
_BACKENDS: Mapping[str | None, Mapping[str, object]] = {
    f"hugetlb-{format_size(size)}": {"hugetlb": True, "hugetlbsize": size} for size in (2 * MIB, GIB)
}


def plug_dimm(session: Session, args: Arguments, deadline: Deadline) -> Outcome:
    """Hot-add a pc-dimm; the kernel takes it only if it is made of whole memory blocks."""
    machine, size, outcome = session.guest.machine, args["size"], Outcome()
    address = args.get("address")
    if address == TOP:
        address = align_down(session.layout.machine.device_window().end - size, session.layout.block_size)
    try:
        done = memdev.plug_dimm(
            machine,
            args["id"],
            size,
            deadline=deadline.at_most(session.options.settle),
            node=args.get("node"),
            slot=args.get("slot"),
            address=address,
            backend=_BACKENDS.get(args.get("backing")),
        )
        outcome.note = done.detail
        if done.kind == "refused":
            outcome.refuse(done.detail)
    except QmpRefused as refusal:
        outcome.refuse(refusal.desc, "qemu-refused")
        return outcome
    except DeadlineExpired as late:
        outcome.note = str(late)
    if address is None:
        address = session.model.place(size, _alignment(args)).start
    why_not = _not_addable(session, AddrRange.sized(address, size))
    added = why_not is None and session.expect != "failed"
    session.apply(PlugDimm(args["id"], size, args.get("node") or 0, args.get("slot"), address, added))
    if session.expect == "failed":
        # Whether it did fail the checks see: an _OST of success proves nothing (acpi_memory_device_add, v6.12).
        outcome.refuse(outcome.note if why_not is None else f"the kernel cannot add {why_not}", "failed")
    elif why_not is not None:
        outcome.refuse(f"the kernel cannot add {why_not}")
    return outcome


def _alignment(args: Arguments) -> int:
    """What QEMU aligns the device's address to: no less than the pages its memory is made of."""
    size = _BACKENDS.get(args.get("backing"), {}).get("hugetlbsize")
    return size if isinstance(size, int) else BACKEND_ALIGNMENT


def _not_addable(session: Session, place: AddrRange) -> str | None:
    """What keeps the kernel from taking a DIMM (check_hotplug_memory_range, mhp_range_allowed, v6.12), or None."""
    if session.guest.boot != "acpi":
        return "a DIMM that no ACPI tells it of"
    if not place.is_aligned(session.layout.block_size):
        return "a range that is not made of whole memory blocks"
    kernel = session.layout.kernel
    if kernel is not None and not kernel.linear_window.covers(kernel.linear(place)):
        return f"{place}: it lies beyond what its linear map can hold ({kernel.physical(kernel.linear_window)})"
    return None


def plug_virtio_mem(session: Session, args: Arguments, deadline: Deadline) -> Outcome:
    """Hot-plug a virtio-mem device and wait for what it was asked to bring."""
    machine, requested = session.guest.machine, args.get("requested") or 0
    port = memdev.free_root_port(machine, deadline=deadline)
    done = memdev.plug_virtio_mem(
        machine,
        args["id"],
        args["max"],
        deadline=deadline,
        requested=requested,
        block_size=args.get("block"),
        node=args.get("node"),
        bus=port,
        backend=_BACKENDS.get(args.get("backing")),
    )
    _power_up(session, args["id"], deadline)
    block = memdev.memory_device(machine, args["id"], deadline=deadline).block_size or 2 * MIB
    address = session.model.place(args["max"], max(block, _alignment(args))).start
    session.apply(PlugVirtioMem(args["id"], args["max"], block, requested, args.get("node") or 0, port, address))
    outcome = Outcome(note=done.detail)
    _await_driver(session, "virtio", session.model.expected().virtio_names[args["id"]], "virtio_mem", outcome, deadline)
    await_size(session, args["id"], requested, outcome, deadline)
    return outcome


def plug_pmem(session: Session, args: Arguments, deadline: Deadline) -> Outcome:
    """Hot-plug a virtio-pmem device; its raw namespace comes up by itself."""
    port = memdev.free_root_port(session.guest.machine, deadline=deadline)
    done = memdev.plug_virtio_pmem(session.guest.machine, args["id"], args["size"], deadline=deadline, bus=port)
    _power_up(session, args["id"], deadline)
    session.apply(PlugVirtioPmem(args["id"], args["size"], port))
    device = _pmem(session, args["id"])
    outcome = Outcome(note=done.detail)
    _await_driver(session, "nd", f"namespace{device.region_index}.0", "nd_pmem", outcome, deadline)
    return outcome


def _power_up(session: Session, id: str, deadline: Deadline) -> None:
    """Do what pciehp does where the kernel is known to have none: nobody else would find the device."""
    if session.model.layout.features.pciehp is False:
        slot = memdev.pci_slot(session.guest.machine, id, deadline=deadline)
        switch_slot(session.guest.shell, slot, True, deadline=deadline)


def _await_driver(session: Session, bus: str, device: str, driver: str, outcome: Outcome, deadline: Deadline) -> None:
    """Wait for a driver to bind; where it never does, the checks show what is missing for it."""
    try:
        wait_driver(session.guest.shell, bus, device, driver, deadline=deadline.at_most(session.options.settle))
    except DeadlineExpired as late:
        outcome.note = str(late)


def unplug(session: Session, args: Arguments, deadline: Deadline) -> Outcome:
    """Ask for a device back, and see what the guest makes of it."""
    outcome = Outcome()
    try:
        device = session.model.devices.get(args["id"])
        if args.get("by") == "guest" and isinstance(device, Dimm):
            raise UsageError(f"{args['id']} is a DIMM: it has no PCI slot to power off", hint="leave `by` out")
        if args.get("by") == "guest" or (args.get("by") is None and isinstance(device, Pmem)):
            done = _eject(session, args["id"], deadline)
        else:
            done = memdev.unplug(session.guest.machine, args["id"], deadline=deadline)
    except QmpRefused as refusal:
        outcome.refuse(refusal.desc, "qemu-refused")
        return outcome
    refused = done.kind == "refused"
    outcome.note = done.detail
    outcome.unplugs.append(UnplugReport(args["id"], unplug_endings(args["id"], done), refused))
    if refused:
        outcome.refuse(f"the guest keeps {args['id']}: {done.detail}")
        _note_due(session, args["id"], outcome)
        follow_reonlined_blocks(session, args["id"], deadline)
    else:
        session.apply(Unplug(args["id"]))
    return outcome


def _eject(session: Session, id: str, deadline: Deadline) -> memdev.UnplugOutcome:
    """Have the guest power the slot off: QEMU refuses device_del of virtio-pmem (hw/virtio/virtio-md-pci.c, 10.0)."""
    machine = session.guest.machine
    mark, slot = machine.qmp.seq, memdev.pci_slot(machine, id, deadline=deadline)
    switch_slot(session.guest.shell, slot, False, deadline=deadline)
    return memdev.await_ejected(machine, id, since=mark, deadline=deadline)


def unplug_endings(id: str, done: memdev.UnplugOutcome) -> tuple[str, ...]:
    """The terminal events of an unplug, in order: what QMP-2 counts."""
    names = [
        event.name
        for event in done.events
        if event.name in ("DEVICE_DELETED", "MEM_UNPLUG_ERROR", "DEVICE_UNPLUG_GUEST_ERROR")
        and event.data.get("device") == id
    ]
    if done.kind == "refused" and not names:
        names.append("ACPI_OST_REFUSED")
    return tuple(names)


def auto_online(session: Session, args: Arguments, deadline: Deadline) -> Outcome:
    """Set the policy for memory that is added from now on."""
    blocks.set_auto_online(session.guest.shell, args["policy"], deadline=deadline)
    session.apply(SetAutoOnline(args["policy"]))
    return Outcome()


def touch(session: Session, args: Arguments, deadline: Deadline) -> Outcome:
    """Allocate, write and read back memory; some of it must come from the device."""
    ranges: list[AddrRange] = []
    node: int | None = None
    if args.get("device"):
        online_blocks = [i for i in session.model.blocks_of(args["device"]) if session.model.blocks[i].zone]
        if not online_blocks:
            raise UsageError(f"nothing of {args['device']} is online", hint="online it before it is touched")
        ranges = [
            AddrRange(
                session.model.block_range(online_blocks[0]).start, session.model.block_range(online_blocks[-1]).end
            )
        ]
        # A process that runs on another node takes memory of that one first.
        node = session.model.blocks[online_blocks[0]].node
    # Hot-added memory is in the zones that are handed out first, so as much as all of it must reach each device.
    limit = session.model.expected().managed_bytes + args["size"]
    seen = touch_memory(session.guest.shell, args["size"], ranges, deadline=deadline, limit=limit, node=node)
    used = tuple((where, seen.used.get(where, 0)) for where in ranges)
    outcome = Outcome(note=", ".join(f"{format_size(size)} of it in {where}" for where, size in used))
    outcome.touches.append(TouchReport(seen.pages, seen.mismatches, used))
    return outcome


def fill(session: Session, args: Arguments, deadline: Deadline) -> Outcome:
    """Allocate what the last snapshot showed as free, all but some of it."""
    meminfo = session.state.meminfo
    if isinstance(meminfo, NotObserved):
        raise UnsupportedError("meminfo", f"nobody knows how much is free: {meminfo.reason}")
    size = align_down(meminfo["MemFree"] - args["leave"], session.layout.page_size)
    if size <= 0:
        raise UsageError(f"the guest has {format_size(meminfo['MemFree'])} free, less than fill is to leave")
    seen = touch_memory(session.guest.shell, size, (), deadline=deadline)
    outcome = Outcome(note=f"{size / MIB:.0f}M of {meminfo['MemFree'] / MIB:.0f}M free")
    outcome.touches.append(TouchReport(seen.pages, seen.mismatches, ()))
    return outcome


def _pmem(session: Session, id: str) -> Pmem:
    device = session.model.devices.get(id)
    if not isinstance(device, Pmem):
        raise UsageError(f"{id} is not a virtio-pmem device")
    return device


def namespace(session: Session, args: Arguments, deadline: Deadline) -> Outcome:
    """Make the namespace raw or devdax."""
    device, shell = _pmem(session, args["id"]), session.guest.shell
    name, mode = f"namespace{device.region_index}.0", args["mode"]
    layout = args.get("map") or "mem"
    align = args.get("align") or session.layout.paging.leaf_sizes["PMD"]
    if mode == "raw":
        done = pmem.destroy(shell, name, deadline=deadline)
    else:
        done = pmem.create_devdax(shell, name, map=layout, align=align, deadline=deadline)
    return _pmem_outcome(session, done, SetPmemMode(args["id"], mode, layout, align))


def kmem(session: Session, args: Arguments, deadline: Deadline) -> Outcome:
    """Hand the devdax device to the kmem driver; nothing is onlined beyond the guest's policy."""
    device = _pmem(session, args["id"])
    done = pmem.to_system_ram(session.guest.shell, f"dax{device.region_index}.0", deadline=deadline)
    return _pmem_outcome(session, done, SetPmemMode(args["id"], "kmem", device.map, device.align))


def kmem_fault(session: Session, args: Arguments, deadline: Deadline) -> Outcome:
    """Fail one allocation of an add, a later one each time; everything is as before, whatever came of it."""
    device = _pmem(session, args["id"])
    name, outcome = f"dax{device.region_index}.0", Outcome()
    session.faults += args["step"]
    done = pmem.to_system_ram(
        session.guest.shell,
        name,
        fail=session.faults,
        of=args["of"],
        own=args.get("memmap") == "own",
        deadline=deadline,
    )
    said = f"allocation {session.faults}: {'the add went well all the same' if done.ok else done.text}"
    if done.ok:
        back = pmem.to_devdax(session.guest.shell, name, deadline=deadline)
        if not back.ok:
            outcome.refuse(f"{said}, and {name} would not come back: {back.text}")
            return outcome
    outcome.refuse(said, "failed")
    return outcome


def dax_state(session: Session, args: Arguments, deadline: Deadline) -> Outcome:
    """Have the kmem driver remove its memory or add it again; all of a device's ranges or none."""
    device, state = _pmem(session, args["id"]), args["state"]
    done = pmem.set_state(session.guest.shell, device.dax_name, state, patience=args.get("patience"), deadline=deadline)
    return _pmem_outcome(session, done, SetDaxState(args["id"], state))


def devdax(session: Session, args: Arguments, deadline: Deadline) -> Outcome:
    """Take the device back from the kmem driver."""
    device = _pmem(session, args["id"])
    done = pmem.to_devdax(session.guest.shell, f"dax{device.region_index}.0", deadline=deadline)
    return _pmem_outcome(session, done, SetPmemMode(args["id"], "devdax", device.map, device.align))


def _pmem_outcome(session: Session, done: pmem.PmemOutcome, action: SetPmemMode | SetDaxState) -> Outcome:
    outcome = Outcome(note=done.text)
    if done.ok:
        session.apply(action)
    else:
        outcome.refuse(done.text)
        _note_due(session, action.id, outcome)
    return outcome


def _note_due(session: Session, id: str, outcome: Outcome) -> None:
    """A device is kept for good while a memory block of it is online that cannot go offline."""
    kept = session.model.kept_blocks()
    held = [index for index in session.model.blocks_of(id) if index in kept and session.model.blocks[index].zone]
    if held:
        outcome.due = f"memory{held[0]} stays online, as {kept[held[0]]}"


def load(session: Session, args: Arguments, deadline: Deadline) -> Outcome:
    """Start a load; it runs until unload, paused during snapshots."""
    values = {name: value for name, value in args.items() if name not in ("id", "kind") and value is not None}
    loads.start_load(session.guest.shell, args["id"], args["kind"], values, deadline=deadline)
    session.loads[args["id"]] = loads.LoadCount(0, 0, True)
    session.apply(StartLoad(args["kind"]))
    return Outcome(note=f"{args['kind']} is under way")


def unload(session: Session, args: Arguments, deadline: Deadline) -> Outcome:
    """End a load; one that had died is no success."""
    start = session.loads.pop(args["id"])
    count = loads.stop_load(session.guest.shell, args["id"], deadline=deadline)
    _, inconclusive = overlap({args["id"]: start}, {args["id"]: count})
    total = f"{count.rounds} rounds in all" + (f", {count.failures} failed" if count.failures else "")
    return Outcome(note=total, inconclusive="" if count.running else inconclusive)


def fail_notifier(session: Session, args: Arguments, deadline: Deadline) -> Outcome:
    """Set which memory notifier fails from now on (lib/notifier-error-inject.c, v6.12)."""
    wanted = args["event"]
    for event in ("going-online", "going-offline"):
        code = -errno.ENOMEM if event == wanted else 0
        name = f"MEM_{event.upper().replace('-', '_')}"
        session.guest.shell.must(f"echo {code} >{_NOTIFIERS}/{name}/error", deadline=deadline)
    return Outcome(note="no notifier fails" if wanted == "none" else f"{wanted} fails with ENOMEM")


def dump(session: Session, args: Arguments, deadline: Deadline) -> Outcome:
    """Read what crash dumps would hold, by the kernel's own account and by QEMU's."""
    kernel, shape = session.layout.kernel, session.layout.machine
    head = session.guest.shell.must("head -c 65536 /proc/kcore", deadline=deadline)
    seen = load_segments(head, "/proc/kcore")
    if kernel is not None:
        seen = tuple(one for one in seen if kernel.linear_window.covers(one.virtual))
    everything = AddrRange(0, max(shape.device_window().end, *(one.physical.end for one in seen)))
    window = shape.device_window()
    # QEMU refuses to dump nothing, and boot memory is always there.
    wanted = AddrRange(shape.arch.ram_base + shape.memory - 2 * MIB, window.end)
    dumped = load_segments(dump_head(session.guest.machine, wanted, deadline=deadline), "dump-guest-memory")
    pmem_ranges = [device.range for device in session.model.devices.values() if isinstance(device, Pmem)]
    outside = subtract_ranges(intersect_ranges([window], [one.physical for one in dumped]), pmem_ranges)
    told = tuple(sorted(one.physical for one in seen))
    reports = (DumpReport("/proc/kcore", everything, told), DumpReport("dump-guest-memory", window, tuple(outside)))
    return Outcome(note=f"{len(told)} segments in /proc/kcore, {len(dumped)} in QEMU's dump", dumps=reports)


def reboot(session: Session, args: Arguments, deadline: Deadline) -> Outcome:
    """Reset the machine and meet the guest again, with its devices."""
    session.reboot(deadline)
    return Outcome(note=f"another boot, of {len(session.model.devices)} devices as well")


def check(session: Session, args: Arguments, deadline: Deadline) -> Outcome:
    """Do nothing: look and compare."""
    return Outcome()


VERBS: dict[str, Verb] = {
    "plug-dimm": plug_dimm,
    "plug-virtio-mem": plug_virtio_mem,
    "plug-pmem": plug_pmem,
    "unplug": unplug,
    "resize": resize,
    "settle": settle,
    "online": online,
    "offline": offline,
    "auto-online": auto_online,
    "touch": touch,
    "fill": fill,
    "namespace": namespace,
    "kmem": kmem,
    "kmem-fault": kmem_fault,
    "dax-state": dax_state,
    "devdax": devdax,
    "load": load,
    "unload": unload,
    "hold": holds.hold,
    "occupy": holds.occupy,
    "release": holds.release,
    "fail-notifier": fail_notifier,
    "dump": dump,
    "reboot": reboot,
    "check": check,
}
