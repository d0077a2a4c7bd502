# SPDX-License-Identifier: GPL-2.0-or-later
"""/sys/kernel/debug/slab/CACHE/alloc_traces: who allocated the objects that are in use (slab_debugfs_show, mm/slub.c).

Available since v5.14 with CONFIG_SLUB_DEBUG, for caches that track their users (slab_debug=U).
"""

from __future__ import annotations

import re

#: ``     16 create_memory_block_devices+0x50/0x1a0 age=…``; the lines of its call trace begin with spaces and no number
_SITE = re.compile(r" *(\d+) ([\w.]+)\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[\w+\])?(?: .*)?", re.ASCII)


def parse_alloc_traces(text: str) -> dict[str, int]:
    """The number of used objects that each function has allocated, summed over all cache files in ``text``.

    All other lines are ignored: call traces, ``No data``, an allocation whose function is unknown.
    """
    found: dict[str, int] = {}
    for line in text.splitlines():
        match = _SITE.fullmatch(line)
        if match is not None:
            found[match[2]] = found.get(match[2], 0) + int(match[1])
    return found
