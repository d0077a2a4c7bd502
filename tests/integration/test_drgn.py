# SPDX-License-Identifier: GPL-2.0-or-later
"""drgn at the prompt of ``memhp shell``, on a real kernel with debug info, with drgn's helpers for memory hotplug."""

from __future__ import annotations

from pathlib import Path

import pytest
from leftovers import MEMHP, World
from typist import Typist

from harness.artifacts.cache import Cache

pytestmark = [pytest.mark.memhp_guest, pytest.mark.long]

BUILT = 1800.0
SHOWN = 120.0


def test_drgn_sees_what_was_plugged(tmp_path: Path, guest: list[str], request: pytest.FixtureRequest) -> None:
    pytest.importorskip("drgn")
    arch = guest[1]
    cached = list(Cache().root.glob(f"kernel/{arch}-*+dwarf-*"))
    if not cached and not request.config.getoption("memhp_debug_info"):
        pytest.skip(f"the cache has no {arch} kernel with debug info: --memhp-debug-info builds it in seven minutes")
    first = {"arm64": 0x8000_0000, "riscv64": 0xC000_0000}[arch] // 4096
    world = World(tmp_path)
    argv = [*MEMHP, "shell", "-a", arch, "--kernel", "purpose+dwarf", "--bundle-dir", "bundles"]
    with Typist(argv, world.environment, str(world.root)) as person:
        person.expect(f"memhp {arch}>", BUILT)
        person.line("plug dimm 512M", "pass  plug-dimm dimm0 512M", SHOWN)
        person.expect(">")
        person.line("online dimm0 first=1", "pass  online dimm0 first=1", SHOWN)
        person.expect(">")
        person.line("drgn", ">>> ", SHOWN)
        person.line("blocks = [decode_memory_block_state(b) for b in for_each_memory_block(prog)]", ">>> ")
        person.line("print(len(blocks), blocks.count('MEM_ONLINE'), blocks.count('MEM_OFFLINE'))", "12 9 3")
        person.expect(">>> ")
        person.line("print(list(for_each_memory_block(prog))[8].zone.name.string_())", "b'Movable'")
        person.expect(">>> ")
        person.line("print(sum(1 for _ in for_each_present_section(prog)), 'sections')", "12 sections")
        person.expect(">>> ")
        # The DIMM's memmap is in vmemmap; its pages are in ZONE_MOVABLE, so their flags are never zero.
        person.line(f"page = pfn_to_page({first}); print(page_to_pfn(page).value_() == {first})", "True")
        person.expect(">>> ")
        person.line("print(page.flags.value_() > 0, 'flags')", "True flags")
        person.expect(">>> ")
        person.line("prog.read(0xffff << 48 | 0x123, 8)", "FaultError")
        person.expect(">>> ")
        person.type("\x04")
        person.expect(f"memhp {arch}>", SHOWN)
        person.line("unplug dimm0", "pass  unplug dimm0", SHOWN)
        person.expect(">")
        person.type("\x04")
        assert person.end(SHOWN) == 0
    world.assert_clean()
