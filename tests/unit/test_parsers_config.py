# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel configurations and dax devices."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ParseError
from harness.parsers.dax import parse_dax
from harness.parsers.kernel_config import parse_config
from harness.state import DaxDevice
from harness.units import AddrRange

FIXTURES = Path(__file__).parent / "fixtures"

DAX = """\
dax0.0/resource:0x80a00000
dax0.0/size:526385152
dax0.0/align:2097152
dax0.0/target_node:0
"""


def test_config_recorded() -> None:
    options = parse_config(gzip.decompress((FIXTURES / "arm64-built/config.gz").read_bytes()).decode())
    assert options["MEMORY_HOTPLUG"] == options["PTDUMP_DEBUGFS"] == "y"
    assert options["NR_CPUS"] == "16"
    assert options["LOCALVERSION"] == "-hp"
    assert "CPU_BIG_ENDIAN" not in options


def test_config_values() -> None:
    text = (
        '#\n# Automatically generated file\n#\nCONFIG_A=y\nCONFIG_B=m\nCONFIG_C=0x1F\nCONFIG_D=-3\nCONFIG_E=""\n'
        '# CONFIG_F is not set\nCONFIG_G="a \\"b\\" \\\\ c"\n\nCONFIG_H=n\nCONFIG_I="n"\n'
    )
    assert parse_config(text) == {
        "A": "y",
        "B": "m",
        "C": "0x1F",
        "D": "-3",
        "E": "",
        "G": 'a "b" \\ c',
        "I": "n",
    }


def test_dax_devices_by_number_and_driver() -> None:
    ten = DAX.replace("dax0.0", "dax0.10") + "dax0.10/driver:device_dax\n"
    two = DAX.replace("dax0.0", "dax0.2").replace("node:0", "node:-1")
    extent = AddrRange.sized(0x80A00000, 526385152)
    assert parse_dax(ten + two) == (
        DaxDevice("dax0.2", extent, 2097152, -1, None),
        DaxDevice("dax0.10", extent, 2097152, 0, "device_dax"),
    )
    assert parse_dax("") == ()


@pytest.mark.parametrize(("name", "driver"), [("devdax", "device_dax"), ("unbound", None), ("kmem", "kmem")])
def test_dax_recorded(name: str, driver: str | None) -> None:
    (device,) = parse_dax((FIXTURES / f"arm64-built/dax-{name}.txt").read_text())
    assert device == DaxDevice("dax0.0", AddrRange(0x80A00000, 0xA0000000), 2 << 20, 0, driver)


def test_the_state_of_a_kmem_device() -> None:
    (device,) = parse_dax(DAX + "dax0.0/driver:kmem\ndax0.0/state:online_movable\n")
    assert (device.driver, device.state) == ("kmem", "online_movable")


@pytest.mark.parametrize(
    ("parse", "text", "why"),
    [
        (parse_config, "", "sets no option"),
        (parse_config, "# CONFIG_A is not set\n", "sets no option"),
        (parse_config, "CONFIG_A=y\n# CONFIG_A is not set\n", "sets no option"),
        (parse_config, "CONFIG_A=yes\n", "sets no option"),
        (parse_config, 'CONFIG_A="x\nCONFIG_A="x"y"\nA=y\n', "sets no option"),
        (parse_config, "CONFIG_A=y", "ends in the middle of a line"),
        (parse_config, "\x1f\x8b\n", "does not belong in this file"),
        (parse_dax, DAX + "dax0.0/size:1\n", "the same file twice"),
        (parse_dax, DAX + "dax0.1/size:-1\n", "not valid content of 'size'"),
        (parse_dax, DAX + "dax0.1/resource:80000000\n", "not valid content of 'resource'"),
        (parse_dax, DAX + "dax0.1/driver:\n", "not valid content of 'driver'"),
        (parse_dax, DAX + "dax0.1/size:4096\n", "dax0.1 has no resource"),
        (parse_dax, DAX.replace("526385152", "9" * 30), "not valid content of 'size'"),
        (parse_dax, DAX.replace("526385152", "9" * 20), "is not an unsigned 64-bit number"),
    ],
)
def test_refusals(parse: Callable[[str], Any], text: str, why: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse(text)
    assert why in str(caught.value)
