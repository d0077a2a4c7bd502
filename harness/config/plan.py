# SPDX-License-Identifier: GPL-2.0-or-later
"""Follow a scenario's steps without a guest: does each of them make sense after those before it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from harness.config.guest import SECTION, GuestSpec
from harness.config.verbs import GRANULE, LOADS, TAKES_ROOM
from harness.config.yaml import size_problem, suggest
from harness.units import align_up, format_size

S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)

DIMM, VIRTIO_MEM, PMEM = "pc-dimm", "virtio-mem", "virtio-pmem"


class Fail(Protocol[S_contra]):
    """Raises the ConfigError about argument ``name`` (None: the whole step)."""

    def __call__(self, step: S_contra, name: str | None, message: str, hint: str | None) -> NoReturn: ...


@dataclass
class _Device:
    """``mode`` is of virtio-pmem alone; ``requested`` and ``block`` of virtio-mem alone; sizes are bytes."""

    kind: str
    size: int
    block: int = GRANULE
    requested: int = 0
    slot: int | None = None
    mode: str = "raw"


class Plan(Generic[S]):
    """The devices of a guest as a scenario adds and removes them.

    ``follow`` reports through ``fail`` an invalid request: an id that is used twice or before its device is
    plugged, a size that is not aligned, a device for which there is no room. A step that is expected to be refused may
    ask for the impossible.
    """

    def __init__(self, spec: GuestSpec, fail: Fail[S]) -> None:
        self._spec = spec
        self._fail = fail
        self._devices: dict[str, _Device] = {}
        self._loads: set[str] = set()
        self._held: set[str] = set()

    def follow(self, step: S, verb: str, args: Mapping[str, Any], expect: str) -> None:
        """Take note of one step."""
        match verb:
            case "plug-dimm" | "plug-virtio-mem" | "plug-pmem":
                self._plug(step, verb, args, expect)
            case "unplug":
                self._unplug(step, args, expect)
            case "resize" | "settle":
                self._resize(step, verb, args, expect)
            case "namespace" | "kmem" | "kmem-fault" | "dax-state" | "devdax":
                self._pmem(step, verb, args, expect)
            case "load" | "unload":
                self._load(step, verb, args)
            case "hold" | "occupy" | "release":
                self._hold(step, verb, args)
            case "reboot":
                self._reboot(step)
            case "online" | "offline" | "touch":
                self._blocks(step, verb, args)

    def check_side_by_side(self, steps: Sequence[tuple[S, str, Mapping[str, Any]]]) -> None:
        """Report what must not be done at the same time: what shares a device, or whose place depends on the other."""
        seen: set[str] = set()
        movers = sum(verb in TAKES_ROOM for _, verb, _ in steps)
        for step, verb, args in steps:
            id = args.get("id") or args.get("device")
            if id in seen:
                self._fail(step, None, f"two steps at once have to do with {id!r}", "do one after the other")
            if id is not None:
                seen.add(id)
            placed = verb == "plug-dimm" and args["address"] is not None and args["slot"] is not None
            if movers > 1 and verb in TAKES_ROOM and verb != "unplug" and not placed:
                hint = "give the DIMM an address and a slot" if verb == "plug-dimm" else "do one after the other"
                self._fail(step, None, "where it goes depends on which of two comes first", hint)

    def _known(self, step: S, name: str, id: str, kind: str | None = None) -> _Device:
        device = self._devices.get(id)
        if device is None:
            self._fail(step, name, f"no device {id!r} is plugged here", suggest(id, self._devices))
        if kind is not None and device.kind != kind:
            self._fail(step, name, f"{id!r} is a {device.kind}, this takes a {kind}", None)
        return device

    def _aligned(self, step: S, name: str, size: int, multiple: int) -> None:
        wrong = size_problem(size, multiple=multiple)
        if wrong is not None:
            self._fail(step, name, *wrong)

    def _plug(self, step: S, verb: str, args: Mapping[str, Any], expect: str) -> None:
        id = args["id"]
        if id in self._devices:
            self._fail(step, "id", f"device id {id!r} is used twice", "unplug the first one, or choose another id")
        name = "max" if verb == "plug-virtio-mem" else "size"
        if verb == "plug-dimm":
            device = _Device(DIMM, args["size"], slot=args["slot"])
            self._aligned(step, name, args["size"], SECTION if expect == "done" else GRANULE)
            if isinstance(args["address"], int):
                self._aligned(step, "address", args["address"], SECTION if expect == "done" else GRANULE)
        elif verb == "plug-virtio-mem":
            device = _Device(VIRTIO_MEM, args["max"], args["block"], args["requested"])
            self._aligned(step, name, args["max"], args["block"])
            self._check_requested(step, "requested", device, args["requested"], expect)
        else:
            device = _Device(PMEM, args["size"])
            self._aligned(step, name, args["size"], GRANULE)
        if expect != "qemu-refused":
            self._check_node(step, args.get("node") or 0)
            self._check_room(step, name, device)
            self._devices[id] = device

    def _check_requested(self, step: S, name: str, device: _Device, requested: int, expect: str) -> None:
        if expect == "qemu-refused":
            return
        self._aligned(step, name, requested, device.block)
        if requested > device.size:
            message = f"{format_size(requested)} is above the device's maximum of {format_size(device.size)}"
            self._fail(step, name, message, "expect: qemu-refused, if that is the point")

    def _check_node(self, step: S, node: int) -> None:
        nodes = max(1, len(self._spec.nodes))
        if node >= nodes:
            count = "one node" if nodes == 1 else f"{nodes} nodes"
            self._fail(step, "node", f"there is no node {node}: the guest has {count}", "add it to the guest's nodes")

    def _check_room(self, step: S, name: str, device: _Device) -> None:
        spec = self._spec
        taken = sum(other.size for other in self._devices.values())
        if taken + device.size > spec.room:
            needed = align_up(spec.memory + taken + device.size, SECTION)
            self._fail(
                step,
                name,
                f"{format_size(device.size)} does not fit: {format_size(spec.room - taken)} of the "
                f"{format_size(spec.room)} for memory devices are left",
                f"set the guest's maxmem to {format_size(needed)} or more",
            )
        if device.kind == DIMM:
            self._check_slot(step, device)
            return
        ports = sum(other.kind != DIMM for other in self._devices.values())
        if ports >= spec.ports:
            message = f"all {spec.ports} hot-plug ports for virtio devices are taken"
            self._fail(step, None, message, f"set the guest's ports to {ports + 1} or more")

    def _check_slot(self, step: S, device: _Device) -> None:
        slots = self._spec.slots
        dimms = [other for other in self._devices.values() if other.kind == DIMM]
        if len(dimms) >= slots:
            self._fail(step, None, f"all {slots} memory slots are taken", f"set the guest's slots to {slots + 1}")
        if device.slot is None:
            return
        if device.slot >= slots:
            self._fail(step, "slot", f"there is no slot {device.slot}: the guest has {slots}", "counted from 0")
        if any(other.slot == device.slot for other in dimms):
            self._fail(step, "slot", f"slot {device.slot} is taken", "choose another, or leave it to QEMU")

    def _unplug(self, step: S, args: Mapping[str, Any], expect: str) -> None:
        device = self._known(step, "id", args["id"])
        if expect != "done":
            return
        if device.kind == VIRTIO_MEM and device.requested:
            message = f"QEMU keeps {args['id']!r} as long as {format_size(device.requested)} of it are requested"
            self._fail(step, "id", message, "resize it to 0 first, or expect: qemu-refused")
        del self._devices[args["id"]]

    def _resize(self, step: S, verb: str, args: Mapping[str, Any], expect: str) -> None:
        device = self._known(step, "id", args["id"], VIRTIO_MEM)
        if verb == "resize":
            self._check_requested(step, "to", device, args["to"], expect)
            if expect != "qemu-refused":
                device.requested = args["to"]

    def _pmem(self, step: S, verb: str, args: Mapping[str, Any], expect: str) -> None:
        device = self._known(step, "id", args["id"], PMEM)
        wanted = {"namespace": ("raw", "devdax"), "devdax": ("kmem",), "dax-state": ("kmem",)}.get(verb, ("devdax",))
        if expect != "done" and verb not in ("kmem-fault", "dax-state"):
            return
        if device.mode not in wanted:
            hint = {"namespace": "devdax", "devdax": "kmem", "dax-state": "kmem"}.get(
                verb, "namespace with mode: devdax"
            )
            message = f"{args['id']!r} is in {device.mode} mode here, {verb} takes it from {' or '.join(wanted)}"
            self._fail(step, "id", message, f"the step before it would be {hint}")
        device.mode = {"namespace": args.get("mode", ""), "kmem": "kmem", "dax-state": "kmem"}.get(verb, "devdax")

    def _load(self, step: S, verb: str, args: Mapping[str, Any]) -> None:
        id = args["id"]
        if verb == "unload":
            if id not in self._loads:
                self._fail(step, "id", f"no load {id!r} runs here", suggest(id, self._loads))
            self._loads.remove(id)
            return
        if id in self._loads:
            self._fail(step, "id", f"a load {id!r} runs here already", "unload it first, or choose another id")
        known = LOADS[args["kind"]]
        for name, value in args.items():
            if value is not None and name not in (*known, "id", "kind"):
                self._fail(step, name, f"a load of the kind {args['kind']} has no {name!r}", suggest(name, known))
        self._loads.add(id)

    def _hold(self, step: S, verb: str, args: Mapping[str, Any]) -> None:
        id = args["id"]
        if verb == "release":
            if id not in self._held:
                self._fail(step, "id", f"nothing is held as {id!r} here", suggest(id, self._held))
            self._held.remove(id)
            return
        if id in self._held:
            self._fail(step, "id", f"something is held as {id!r} already", "release it first, or choose another id")
        self._known(step, "device", args["device"])
        self._held.add(id)

    def _reboot(self, step: S) -> None:
        for id, device in self._devices.items():
            if device.kind == PMEM:
                self._fail(step, None, f"nobody follows the namespace of {id!r} through a boot", "unplug it before")
        for id in self._loads:
            self._fail(step, None, f"the load {id!r} does not outlive a boot", "unload it before")
        for id in self._held:
            self._fail(step, None, f"nobody holds {id!r} after a boot", "release it before")

    def _blocks(self, step: S, verb: str, args: Mapping[str, Any]) -> None:
        if verb != "touch":
            self._check_choice(step, args)
        elif args["size"] > self._spec.memory + sum(other.size for other in self._devices.values()):
            self._fail(step, "size", f"{format_size(args['size'])} is more than the guest has", None)
        if args["device"] is None:
            return
        device = self._known(step, "device", args["device"])
        if device.kind == PMEM and device.mode != "kmem":
            message = f"{args['device']!r} is in {device.mode} mode here: it has no memory blocks"
            self._fail(step, "device", message, "make it system RAM with kmem first")

    def _check_choice(self, step: S, args: Mapping[str, Any]) -> None:
        if [args["device"] is not None, args["blocks"] is not None, args["boot"]].count(True) != 1:
            message = "takes either a device or blocks or boot memory"
            self._fail(step, None, message, "device: dimm0, or blocks: [32, 33], or boot: true")
        for name in ("first", "last"):
            if args[name] is not None and args["blocks"] is not None:
                self._fail(step, name, "counts the blocks of a device, and no device is named", None)
        if args["first"] is not None and args["last"] is not None:
            self._fail(step, "last", "takes either first or last", None)
