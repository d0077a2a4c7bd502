# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest output is untrusted: on any input, every parser quickly returns a value or raises ParseError."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harness.arch import ARM64, RISCV64
from harness.errors import ParseError
from harness.parsers._lines import MAX_CHARS
from harness.parsers.blocks import parse_blocks
from harness.parsers.dax import parse_dax
from harness.parsers.dmesg import parse_dmesg
from harness.parsers.iomem import parse_iomem
from harness.parsers.kernel_config import parse_config
from harness.parsers.meminfo import parse_meminfo
from harness.parsers.ptdump import parse_ptdump
from harness.parsers.slabinfo import parse_slabinfo
from harness.parsers.vmcoreinfo import parse_vmcoreinfo
from harness.parsers.vmstat import parse_vmstat
from harness.parsers.zoneinfo import parse_zoneinfo

FIXTURES = Path(__file__).parent / "fixtures"

# parser and a recorded input
PARSERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "iomem": (parse_iomem, "arm64-dimm-added/iomem.txt"),
    "blocks": (parse_blocks, "arm64-dimm-added/blocks.txt"),
    "zoneinfo": (parse_zoneinfo, "arm64-dimm-online/zoneinfo.txt"),
    "meminfo": (parse_meminfo, "arm64-built/meminfo.txt"),
    "vmstat": (parse_vmstat, "arm64-built/vmstat.txt"),
    "slabinfo": (parse_slabinfo, "arm64-stock/slabinfo.txt"),
    "vmcoreinfo": (parse_vmcoreinfo, "arm64-built/vmstat.txt"),
    "dmesg": (parse_dmesg, "riscv64-stock/dmesg.txt"),
    "config": (parse_config, "arm64-built/meminfo.txt"),
    "dax": (parse_dax, "arm64-built/dax-kmem.txt"),
    "ptdump-arm64": (partial(parse_ptdump, arch=ARM64), "arm64-dimm-added/ptdump.txt"),
    "ptdump-riscv64": (partial(parse_ptdump, arch=RISCV64), "arm64-dimm-added/ptdump.txt"),
}
BY_PARSER = pytest.mark.parametrize("name", PARSERS)


@BY_PARSER
@given(text=st.text(st.characters(codec=None), max_size=200))
@example(text="\n")
@example(text="\n\n\n")
@example(text="\0")
@example(text="\udcff\n")
def test_any_text(name: str, text: str) -> None:
    for guess in (text, text + "\n"):
        with contextlib.suppress(ParseError):
            PARSERS[name][0](guess)


@BY_PARSER
@given(data=st.data())
def test_damaged_recordings(name: str, data: st.DataObject) -> None:
    parse, file = PARSERS[name]
    text = (FIXTURES / file).read_text()
    start = data.draw(st.integers(0, len(text)), label="start")
    length = data.draw(st.integers(0, 40), label="length")
    noise = data.draw(st.text(st.sampled_from("0123456789abcdefx -:[]()=.,\n\t\0KMG\"'"), max_size=20), label="noise")
    with contextlib.suppress(ParseError):
        parse(text[:start] + noise + text[start + length :])


@BY_PARSER
def test_more_than_the_limit_is_refused_at_once(name: str) -> None:
    before = time.thread_time()
    with pytest.raises(ParseError, match=f"longer than {MAX_CHARS} characters"):
        PARSERS[name][0]("x" * (MAX_CHARS + 1))
    assert time.thread_time() - before < 0.5


@BY_PARSER
@pytest.mark.parametrize(
    "unit",
    [
        " ",
        "0",
        "a ",
        "1 1 ",
        "\n",
        "  00001000-00001fff : x\n",
        "Node 0, zone  A\n",
        "(",
        '"\\',
        "---[ x ]---",
        "=",
        ", 0",
        " : ",
        "<6>[    1.000000] ",
        "]---\n---[ ",
        "BUG: INFO: task ",
    ],
)
def test_nothing_takes_quadratic_time(name: str, unit: str) -> None:
    def cost(size: int) -> float:
        body = unit * (size // len(unit))
        before = time.thread_time()
        for text in (body + "\n", "---[ " + body + "\n", 'CONFIG_A="' + body + "\n", "Name:" + body + "\n"):
            with contextlib.suppress(ParseError):
                PARSERS[name][0](text)
        return time.thread_time() - before

    # Four times the text takes four times as long, quadratic work sixteen times, on slow and busy machines, too.
    pairs = ((cost(1 << 16), cost(1 << 18)) for _ in range(5))
    assert any(long < 0.2 + 8 * short for short, long in pairs)


def test_a_message_quotes_the_line_but_not_all_of_it() -> None:
    with pytest.raises(ParseError) as caught:
        parse_vmstat("nr_free_pages 1\n" + "x 1" + "1" * 5000 + "\n")
    message = str(caught.value)
    assert message.startswith("/proc/vmstat:2: '11111111111111111111111111")
    assert len(message) < 500
    assert caught.value.hint is not None
