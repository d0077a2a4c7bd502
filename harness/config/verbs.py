# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs that scenarios are written in, with the arguments of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.config.yaml import Value
from harness.units import MIB, format_size

#: how a step can be meant to end: done, refused by the guest, tried by the guest in vain, refused by QEMU
EXPECTATIONS = ("done", "refused", "failed", "qemu-refused")
#: what the kernel can be made to fail at, so that everything is as it was before
CAN_FAIL = ("plug-dimm", "online", "offline", "kmem-fault")
#: huge pages of the host that a device's memory may be made of; each needs the ability host-NAME
BACKINGS = ("thp", "hugetlb-2M", "hugetlb-1G")
#: an address: as high as the machine has room for the device
TOP = "top"
ONLINE_TYPES = ("kernel", "movable", "default")
#: auto_online_blocks (drivers/base/memory.c, online_type_to_str)
POLICIES = ("offline", "online", "online_kernel", "online_movable")
#: what can be written to daxX.Y/state (dax_kmem_parse_state, drivers/dax/kmem.c, v7.3); the kernel refuses ``offline``
DAX_STATES = ("unplugged", *POLICIES)

#: kinds of load with their parameters, as ``harness.guest.loads`` knows them: plain numbers, or sizes
LOADS: Mapping[str, Mapping[str, str]] = {
    "ptdump": {"cpus": "integer"},
    "kcore": {"cpus": "integer", "step": "size"},
    "kpageflags": {"cpus": "integer"},
    "vmalloc": {"areas": "integer", "cpus": "integer", "node": "integer", "size": "size"},
    "anon": {"cpus": "integer", "node": "integer", "size": "size"},
    "memfd-secret": {"cpus": "integer", "node": "integer", "size": "size"},
    "bpf": {"node": "integer"},
    "hugetlb": {"count": "integer", "node": "integer", "size": "size"},
    "compaction": {},
}

#: what can be done side by side, and which of it depends on what room is taken
SIDE_BY_SIDE = (
    *("plug-dimm", "plug-virtio-mem", "plug-pmem", "unplug", "resize", "online", "offline", "touch", "namespace"),
    *("kmem", "devdax", "fill", "release"),
)
TAKES_ROOM = ("plug-dimm", "plug-virtio-mem", "plug-pmem", "unplug")

#: sizes of devices are multiples of this, the sub-section size (include/linux/mmzone.h)
GRANULE = 2 * MIB

_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,39}")
#: names that the machine itself uses
_RESERVED = re.compile(r"(ram|rp)[0-9]+|mem-.*|net0|nic0|rng0|random0|qmp|console|pcie\.0|virtio-.*")


@dataclass(frozen=True, slots=True)
class Field:
    """One argument: ``read`` checks it, ``default`` stands in where it may be left out.

    ``spell`` turns a value into words for a step's title; a ``bare`` argument stands there without its name.
    """

    read: Callable[[Value], object]
    required: bool = False
    default: object = None
    spell: Callable[[object], str] = str
    bare: bool = False


@dataclass(frozen=True, slots=True)
class Verb:
    """One thing a scenario can do. ``needs`` are the abilities without which it cannot be done."""

    summary: str
    fields: Mapping[str, Field]
    needs: tuple[str, ...] = ()


def id_problem(text: str) -> tuple[str, str] | None:
    """Why ``text`` cannot be the id of a memory device, and what to do; None if it can."""
    if not _ID.fullmatch(text):
        return f"{text!r} cannot be a device id", "a letter, then up to 39 letters, digits, '-', '.' or '_': dimm0"
    if _RESERVED.fullmatch(text):
        return f"device id {text!r} is taken by the machine itself", "choose another, such as dimm0"
    return None


def read_id(value: Value) -> str:
    """The id of a memory device."""
    text = value.line_of_text()
    wrong = id_problem(text)
    if wrong is not None:
        value.fail(wrong[0], hint=wrong[1])
    return text


def _spell_size(value: object) -> str:
    return format_size(value) if isinstance(value, int) else str(value)


def _spell_blocks(value: object) -> str:
    return ",".join(str(index) for index in value) if isinstance(value, tuple) else str(value)


def _read_blocks(value: Value) -> tuple[int, ...]:
    blocks = tuple(item.integer(minimum=0, maximum=1 << 32) for item in value.items())
    if not blocks:
        value.fail("an empty list of memory blocks", hint="name at least one")
    if len(set(blocks)) != len(blocks):
        value.fail("duplicate memory block")
    return blocks


def _read_block_size(value: Value) -> int:
    size = value.size(minimum=MIB)
    if size & (size - 1):
        value.fail(f"{format_size(size)} is not a power of two", hint="such as 2M")
    return size


def _read_address(value: Value) -> int | str:
    return TOP if value.is_text(TOP) else value.size()


def _size(*, required: bool = True, default: int | None = None, minimum: int = GRANULE, bare: bool = True) -> Field:
    return Field(lambda value: value.size(minimum=minimum), required, default, _spell_size, bare)


def _choice(*known: str, required: bool = False, default: str | None = None) -> Field:
    return Field(lambda value: value.choice(known), required, default, bare=True)


def _count(minimum: int = 0, maximum: int = 1 << 20, *, required: bool = False, default: int | None = None) -> Field:
    return Field(lambda value: value.integer(minimum=minimum, maximum=maximum), required, default)


def _load_parameters() -> dict[str, Field]:
    kinds = {name: kind for known in LOADS.values() for name, kind in known.items()}
    return {
        name: _size(required=False, bare=False, minimum=0) if kind == "size" else _count()
        for name, kind in kinds.items()
    }


def _read_load_id(value: Value) -> str:
    text = value.line_of_text()
    if not _LOAD_ID.fullmatch(text):
        value.fail(f"{text!r} cannot be a load's id", hint="a letter, then up to 31 letters, digits, '-' or '_'")
    return text


_LOAD_ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_BACKING = Field(lambda value: value.choice(BACKINGS))
_NEW_ID = Field(read_id, required=True, bare=True)
_BLOCKS: Mapping[str, Field] = {
    "device": Field(read_id, bare=True),
    "boot": Field(Value.boolean, default=False, spell=lambda boot: "boot memory", bare=True),
    "blocks": Field(_read_blocks, spell=_spell_blocks),
    "first": _count(1),
    "last": _count(1),
}

VERBS: Mapping[str, Verb] = {
    "plug-dimm": Verb(
        "hot-add a pc-dimm",
        {
            "id": _NEW_ID,
            "size": _size(),
            "node": _count(default=0),
            "slot": _count(maximum=255),
            "backing": _BACKING,
            "address": Field(_read_address, spell=lambda at: f"{at:#x}" if isinstance(at, int) else str(at)),
        },
        needs=("acpi-dimm",),
    ),
    "plug-virtio-mem": Verb(
        "hot-plug a virtio-mem device with a region of max bytes, of which requested are asked for",
        {
            "id": _NEW_ID,
            "max": _size(),
            "requested": _size(required=False, default=0, minimum=0, bare=False),
            "block": Field(_read_block_size, default=2 * MIB, spell=_spell_size),
            "node": _count(default=0),
            "backing": _BACKING,
        },
        needs=("virtio-mem",),
    ),
    "plug-pmem": Verb("hot-plug a virtio-pmem device", {"id": _NEW_ID, "size": _size()}, needs=("virtio-pmem",)),
    "unplug": Verb(
        "hot-remove a device; by qemu asks with device_del, by guest powers its PCI slot off (all a pmem allows)",
        {"id": _NEW_ID, "by": _choice("qemu", "guest")},
    ),
    "resize": Verb(
        "ask a virtio-mem device for another size; wait: false goes on at once",
        {
            "id": _NEW_ID,
            "to": _size(minimum=0),
            "wait": Field(Value.boolean, default=True, spell=lambda wait: "yes" if wait else "no"),
        },
    ),
    "settle": Verb("wait for a resize that nobody waited for", {"id": _NEW_ID}),
    "online": Verb(
        "bring memory blocks online: all of a device or of boot memory, its first or last ones, or by number",
        {**_BLOCKS, "type": _choice(*ONLINE_TYPES, default="movable")},
    ),
    "offline": Verb(
        "take memory blocks offline: all of a device or of boot memory, its first or last ones, or by number; "
        "one that is busy (EBUSY) is asked so many times, one that takes longer than patience, in seconds, is let be",
        {**_BLOCKS, "attempts": _count(1, default=1), "patience": _count(1, 3600)},
    ),
    "auto-online": Verb("set what becomes of memory that is added", {"policy": _choice(*POLICIES, required=True)}),
    "touch": Verb(
        "allocate memory in the guest, write it, read it back; some of it must lie in the device",
        {"device": Field(read_id, bare=True), "size": _size()},
    ),
    "fill": Verb(
        "allocate all of the guest's free memory but this much, write it, read it back, and give it back",
        {"leave": _size(bare=False)},
    ),
    "namespace": Verb(
        "put the namespace of a virtio-pmem device into a mode; map says where its memmap lives, align the size of its "
        "pages (by default what a PMD entry maps: 2M where pages are 4K)",
        {
            "id": _NEW_ID,
            "mode": _choice("raw", "devdax", required=True),
            "map": Field(lambda value: value.choice(("mem", "dev")), default="mem"),
            "align": Field(_read_block_size, spell=_spell_size),
        },
    ),
    "kmem": Verb("hand a devdax device to the kmem driver, online as the policy says", {"id": _NEW_ID}, ("dax-kmem",)),
    "kmem-fault": Verb(
        "hand a devdax device to the kmem driver while an allocation of the kernel's fails, another one each "
        "time; what went well in spite of it is taken back; memmap: own has the memory hold its own struct pages",
        {
            "id": _NEW_ID,
            "step": _count(1, default=1),
            "of": _choice("slab", "pages", default="slab"),
            "memmap": _choice("own"),
        },
        ("dax-kmem", "fault-injection"),
    ),
    "dax-state": Verb(
        "write to the state of a dax device that the kmem driver has (since v7.3): unplugged removes its memory, which "
        "online types add again; what takes longer than patience, in seconds, is interrupted",
        {"id": _NEW_ID, "state": _choice(*DAX_STATES, required=True), "patience": _count(1, 3600)},
        ("dax-kmem",),
    ),
    "devdax": Verb("take a device back from the kmem driver", {"id": _NEW_ID}, ("dax-kmem",)),
    "load": Verb(
        "start a load that goes round in the guest while the steps are done, and rests while they are checked",
        {
            "id": Field(_read_load_id, required=True, bare=True),
            "kind": _choice(*LOADS, required=True),
            **_load_parameters(),
        },
    ),
    "unload": Verb("end a load", {"id": Field(_read_load_id, required=True, bare=True)}),
    "hold": Verb(
        "have a process hold pages of a device, so that they cannot be migrated",
        {
            "id": Field(_read_load_id, required=True, bare=True),
            "device": Field(read_id, required=True),
            "pages": _count(1, 16, default=1),
        },
    ),
    "occupy": Verb(
        "have a process keep so much of a device in use; the kernel may move it, and release verifies it",
        {
            "id": Field(_read_load_id, required=True, bare=True),
            "device": Field(read_id, required=True),
            "size": _size(bare=False),
        },
    ),
    "release": Verb(
        "let go of held or occupied pages, which must be as they were",
        {"id": Field(_read_load_id, required=True, bare=True)},
    ),
    "fail-notifier": Verb(
        "have the kernel's memory notifiers fail (CONFIG_MEMORY_NOTIFIER_ERROR_INJECT) at an event; none: no more",
        {"event": _choice("going-online", "going-offline", "none", required=True)},
        needs=("notifier-errors",),
    ),
    "dump": Verb("compare what a crash dump would hold (/proc/kcore, QEMU's dump-guest-memory) with /proc/iomem", {}),
    "reboot": Verb("reset the machine with all that is plugged; the steps after it meet another kernel", {}),
    "check": Verb("do nothing; everything is checked after every step anyway", {}),
}


def title_of(verb: str, args: Mapping[str, object], expect: str) -> str:
    """A step in one line for people: ``plug-dimm dimm0 1G``; named arguments at their defaults are left out."""
    words = [verb]
    for name, field in VERBS[verb].fields.items():
        value = args.get(name)
        if value is None or (value == field.default and (value is False or not field.bare)):
            continue
        words.append(field.spell(value) if field.bare else f"{name}={field.spell(value)}")
    return " ".join(words) + ("" if expect == "done" else f" ({expect})")
