# SPDX-License-Identifier: GPL-2.0-or-later
"""Corruptions of the guest's files: iomem, memory blocks, zones, counters and the dump of the page tables."""

from __future__ import annotations

import re
from collections.abc import Callable

from harness.arch.kernel_layout import KernelLayout
from harness.selftest.bits import BITS
from harness.selftest.corruption import Case, Edit, added_to, inclusive, replace, replaced, sources
from harness.selftest.scene import Inapplicable, Scene, observed
from harness.units import AddrRange

# /proc/iomem -----------------------------------------------------------------------------------------------------


def _dimm_line(by: Callable[[AddrRange], str]) -> Edit:
    """Replace the line of a DIMM; ``by`` has the indentation as group 1, the name as group 2."""

    def edit(scene: Scene, text: str) -> str:
        where = scene.device("dimm").range
        return replace(text, rf"^( *){inclusive(where)} : (.*)\n", by(where))

    return edit


def _split(where: AddrRange) -> str:
    return "".join(rf"\g<1>{inclusive(half)} : \g<2>" + "\n" for half in where.chunks(where.size // 2))


def _short(where: AddrRange) -> str:
    return rf"\g<1>{inclusive(AddrRange(where.start, where.end - 4096))} : \g<2>" + "\n"


def _named(name: str) -> Edit:
    """The line of a DIMM has another name."""
    return _dimm_line(lambda where: rf"\g<1>{inclusive(where)} : {name}" + "\n")


def _backwards(where: AddrRange) -> str:
    return rf"\g<1>{where.end - 1:08x}-{where.start:08x} : \g<2>" + "\n"


def _virtio_mem_outside(scene: Scene, text: str) -> str:
    """Memory that virtio-mem added is beside its device instead of below it."""
    return replace(text, r"^ +([0-9a-f]+-[0-9a-f]+ : System RAM \(virtio_mem\))$", r"\1")


def _removed_is_back(scene: Scene, text: str) -> str:
    return f"{text}{inclusive(scene.removed())} : System RAM\n"


def _intruder(scene: Scene, text: str) -> str:
    start = scene.evidence.layout.machine.device_window().end
    return f"{text}{inclusive(AddrRange.sized(start, 4096))} : intruder\n"


def _overlap(scene: Scene, text: str) -> str:
    """Extend the first top-level line without children into the next one."""
    match = re.search(r"^([0-9a-f]+)-[0-9a-f]+ : (.*)\n(?=([0-9a-f]+)-)", text, re.MULTILINE)
    if match is None:
        raise Inapplicable("every line has children")
    return f"{text[: match.start()]}{match[1]}-{match[3]} : {match[2]}\n{text[match.end() :]}"


def _child_outside(scene: Scene, text: str) -> str:
    """The first child ends behind its parent."""
    match = re.search(r"^[0-9a-f]+-([0-9a-f]+) : .*\n( +[0-9a-f]+)-[0-9a-f]+ : ", text, re.MULTILINE)
    if match is None:
        raise Inapplicable("no line has children")
    end = f"{int(match[1], 16) + 1:08x}"
    child = match.start(2)
    return text[:child] + re.sub(r"-[0-9a-f]+ : ", f"-{end} : ", text[child:], count=1)


_IOMEM = sources(
    "iomem",
    Case("iomem-hot-lost", "hot-added memory has no line", "IOM-1", _dimm_line(lambda where: "")),
    Case("iomem-hot-renamed", "hot-added memory has another name", "IOM-1", _named("reserved")),
    Case("iomem-hot-short", "the line of hot-added memory is a page short", "IOM-1", _dimm_line(_short)),
    Case("iomem-hot-split", "hot-added memory has two lines", "IOM-1", _dimm_line(_split)),
    Case("iomem-name-freed", "hot-added memory has a name without letters", "IOM-1 IOM-3", _named("")),
    Case("iomem-name-torn", "a newline is in a name", "IOM-1 IOM-3", _named("Sys\ntem RAM")),
    Case("iomem-name-rubbish", "garbage in a name", "IOM-1 IOM-3", _named("System\x02\x7f RAM")),
    Case("iomem-backwards", "a range runs backwards", "IOM-1 IOM-3", _dimm_line(_backwards)),
    Case("iomem-not-nested", "virtio-mem's memory is not below its device", "IOM-1", _virtio_mem_outside),
    Case("iomem-dax-lost", "a DAX device has no line", "IOM-1", replaced(r"^ *\S+ : dax\S+\n", "")),
    Case("iomem-left-behind", "removed memory has a line again", "IOM-2", _removed_is_back),
    Case("iomem-boot-lost", "a line of boot is gone", "IOM-2", replaced(r"^ +\S+ : Kernel data\n", "")),
    Case("iomem-intruder", "an unexpected line is there", "IOM-2", _intruder),
    Case("iomem-overlap", "two neighbours overlap", "IOM-2 IOM-3", _overlap),
    Case("iomem-child-outside", "a child ends behind its parent", "IOM-2 IOM-3", _child_outside),
)

# memory blocks ---------------------------------------------------------------------------------------------------


def _online(field: str, *values: str) -> Edit:
    """Other values for a field of an online, hot-added block, each in its line."""

    def edit(scene: Scene, text: str) -> str:
        start = f"memory{scene.block('online').index}/{field}:"
        return replace(text, rf"^{start}.*\n", "".join(f"{start}{value}\n" for value in values))

    return edit


def _block_gone(scene: Scene, text: str) -> str:
    index = scene.block("offline").index
    return re.sub(rf"^memory{index}/.*\n", "", text, flags=re.MULTILINE)


def _block_left(scene: Scene, text: str) -> str:
    """The first block of removed memory is there again, like an offline one."""
    model, index = scene.block("offline").index, scene.removed().start // scene.block_size
    lines = "".join(re.findall(rf"^memory{model}/.*\n", text, re.MULTILINE))
    lines = lines.replace(f"memory{model}/", f"memory{index}/")
    return text + lines.replace(f"phys_index:{model:08x}", f"phys_index:{index:08x}")


def _blocks_swapped(scene: Scene, text: str) -> str:
    """Swap an online and an offline block."""
    one, other = scene.block("online").index, scene.block("offline").index

    def turn(match: re.Match[str]) -> str:
        return f"memory{other if int(match[1]) == one else one}/state:"

    return re.sub(rf"^memory({one}|{other})/state:", turn, text, flags=re.MULTILINE)


def _other_policy(scene: Scene, text: str) -> str:
    return "offline\n" if scene.evidence.expected.auto_online != "offline" else "online\n"


_BLOCKS = (
    *sources(
        "blocks",
        Case("block-lost", "a memory block is not there", "BLK-1", _block_gone),
        Case("block-left", "a block of removed memory is left", "BLK-1", _block_left),
        Case("block-phys-index", "a block has the index of another", "BLK-1", _online("phys_index", "00000000")),
        Case("block-zones", "a block of ZONE_MOVABLE lies in another zone", "BLK-1", _online("valid_zones", "Normal")),
        Case("block-not-removable", "a block cannot be removed", "BLK-1", _online("removable", "0")),
        Case("block-no-node", "a block belongs to no node", "BLK-1", _online("node")),
        Case("block-two-nodes", "a block belongs to two nodes", "BLK-1", _online("node", "0", "1")),
        Case("block-offline", "a block that was put online is offline", "BLK-2", _online("state", "offline")),
        Case("block-going-offline", "a block is stuck half-way", "BLK-2", _online("state", "going-offline")),
        Case("block-state-rubbish", "garbage in a block's state", "BLK-1", _online("state", "on\x01line")),
        Case("block-state-twice", "a block's state has two lines", "BLK-1", _online("state", "online", "online")),
        Case("block-states-swapped", "two blocks are swapped", "BLK-2", _blocks_swapped),
    ),
    *sources("auto_online", Case("policy", "another auto-online policy", "BLK-2", _other_policy)),
)

# zones and counters ----------------------------------------------------------------------------------------------


def _zone(field: str, by: int) -> Edit:
    """Another value for a field of the last zone for which it is not 0."""
    return added_to(rf"(?s:.*)^( +{field}:? +)([1-9]\d*)$", by)


def _memmap(by: int) -> Edit:
    """A wrong count of memmap pages, after some were freed."""

    def edit(scene: Scene, text: str) -> str:
        if not scene.removed():
            raise Inapplicable("nothing was removed")
        return added_to(r"^(nr_memmap(?:_pages)? )(\d+)$", by)(scene, text)

    return edit


def _table_count(by: int) -> Edit:
    """A wrong count of page tables."""

    def edit(scene: Scene, text: str) -> str:
        tables = observed(scene.evidence.observed.host_tables)
        observed(tables.count)
        return added_to(r"^(count )(-?\d+)", by)(scene, text)

    return edit


_COUNTERS = (
    *sources(
        "zoneinfo",
        Case("zone-managed", "one managed page is missing", "ZON-1", _zone("managed", -1)),
        Case("zone-present", "one present page too many", "ZON-1", _zone("present", 1)),
        Case("zone-spanned", "a zone spans one section too many", "ZON-1", _zone("spanned", 1 << 15)),
        Case("zone-start", "a zone begins one section too late", "ZON-1", _zone("start_pfn", 1 << 15)),
        Case("zone-twice", "a zone is repeated", "ZON-1", replaced(r"(?s)\A(Node .*?\n)(?=Node )", r"\1\1")),
        Case("zone-rubbish", "garbage in a zone's name", "ZON-1", replaced(r"^(Node 0.*)$", "\\1\x01")),
    ),
    *sources("meminfo", Case("total-rubbish", "garbage in a name", "MEM-1", replaced(r"^MemFree", "Mem\x1bFree"))),
    *sources(
        "vmstat", Case("vmstat-rubbish", "garbage in a name", "MEM-2", replaced(r"^nr_free_pages", "nr\x08_free"))
    ),
    *sources(
        "meminfo",
        Case("total-less", "MemTotal is one page too small", "MEM-1", added_to(r"^(MemTotal: +)(\d+) kB", -4)),
        Case("total-more", "MemTotal is one page too large", "MEM-1", added_to(r"^(MemTotal: +)(\d+) kB", 4)),
    ),
    *sources(
        "vmstat",
        Case("memmap-leaked", "memmap of removed memory was not freed", "MEM-2 VMM-2", _memmap(512)),
        Case("memmap-freed-twice", "memmap of removed memory was freed twice", "MEM-2 VMM-2", _memmap(-1)),
        Case(
            "memmap-of-boot-freed",
            "memmap of boot memory was freed",
            "MEM-2",
            added_to(r"^(nr_memmap_boot(?:_pages)? )(\d+)$", -1),
        ),
    ),
    *sources(
        "host_tables",
        Case("table-overcounted", "one page table too many is counted", "MEM-2", _table_count(1)),
        Case("table-undercounted", "one page table too few is counted", "MEM-2", _table_count(-1)),
    ),
    *sources(
        "boot_id", Case("rebooted", "the guest has rebooted unexpectedly", "LIV-1", replaced(r"^.{8}", "00000000"))
    ),
)

# the dump of the page tables -------------------------------------------------------------------------------------

_DUMPED = re.compile(r"^0x([0-9a-f]+)-0x([0-9a-f]+) .*\n", re.MULTILINE)


def _line_of(text: str, address: int) -> re.Match[str]:
    """The line of the dump with a virtual address."""
    for match in _DUMPED.finditer(text):
        if int(match[1], 16) <= address < int(match[2], 16):
            return match
    raise Inapplicable(f"the dump does not show virtual {address:#x}")


def _kernel(scene: Scene) -> KernelLayout:
    kernel = scene.evidence.layout.kernel
    if kernel is None:
        raise Inapplicable("the kernel's virtual layout is unknown")
    return kernel


def _hot(scene: Scene) -> int:
    return _kernel(scene).linear(scene.online()).start


def _hot_memmap(scene: Scene) -> int:
    return _kernel(scene).memmap(scene.online()).start


def _boot(scene: Scene) -> int:
    """The end of an online block of boot memory, without code and constants."""
    return _kernel(scene).linear(scene.block_range(scene.block("online", hot=False))).end - 1


def _lines(find: Callable[[Scene], int], change: Callable[[Scene, str], str]) -> Edit:
    """Change the line with the address returned by ``find``."""

    def edit(scene: Scene, text: str) -> str:
        match = _line_of(text, find(scene))
        return text[: match.start()] + change(scene, match[0]) + text[match.end() :]

    return edit


def _attribute(name: str) -> Callable[[Scene, str], str]:
    def change(scene: Scene, line: str) -> str:
        arch = scene.evidence.layout.machine.arch
        if name not in BITS[arch.name].dump:
            raise Inapplicable(f"{arch.name} lacks this attribute")
        return replace(line, *BITS[arch.name].dump[name])

    return change


def _other_level(scene: Scene, line: str) -> str:
    return replace(line, r" (PMD|PTE) ", " PTE " if " PMD " in line else " PMD ")


def _hot_line(attribute: str) -> Edit:
    return _lines(_hot, _attribute(attribute))


_PAGE_TABLES = sources(
    "ptdump",
    Case("dump-read-only", "hot-added memory is read-only", "LIN-2 XCK-1", _hot_line("read-only")),
    Case("dump-executable", "hot-added memory is writable and executable", "LIN-2 XCK-1", _hot_line("executable")),
    Case("dump-untagged", "hot-added memory is mapped without memory tags", "LIN-2 XCK-1", _hot_line("untagged")),
    Case("dump-uncached", "hot-added memory is mapped uncached", "LIN-2 XCK-1", _hot_line("uncached")),
    Case("dump-contiguous-lost", "the contiguous hint is lost", "LIN-3 XCK-1", _hot_line("contiguous-lost")),
    Case("dump-not-accessed", "a mapping has lost its access flag", "LIN-2 XCK-1", _hot_line("not-accessed")),
    Case("dump-hot-gone", "hot-added memory is not mapped", "LIN-1 XCK-1", _hot_line("gone")),
    Case("dump-boot-gone", "boot memory is not mapped", "LIN-1 XCK-1", _lines(_boot, _attribute("gone"))),
    Case(
        "dump-boot-executable",
        "boot memory is writable and executable",
        "LIN-2 XCK-1",
        _lines(_boot, _attribute("executable")),
    ),
    Case("dump-other-level", "memory is mapped at another level", "LIN-3 XCK-1", _lines(_hot, _other_level)),
    Case("dump-run-twice", "the dump repeats a run", "XCK-1", _lines(_hot, lambda scene, line: line + line)),
    Case("dump-memmap-gone", "memmap is not mapped", "VMM-1 XCK-1", _lines(_hot_memmap, _attribute("gone"))),
    Case("dump-memmap-read-only", "memmap is read-only", "VMM-1 XCK-1", _lines(_hot_memmap, _attribute("read-only"))),
)

CORRUPTIONS = (*_IOMEM, *_BLOCKS, *_COUNTERS, *_PAGE_TABLES)
