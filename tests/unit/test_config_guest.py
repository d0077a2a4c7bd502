# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest files, and options of the command line that change a guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.arch import ARCHES
from harness.cli.command_arguments import GUEST_OPTIONS
from harness.config.guest import (
    DEFAULT_BOOT,
    GuestSpec,
    NodeConfig,
    find_guest,
    known_guests,
    load_guest,
    override,
    problems,
)
from harness.config.places import configs_dir
from harness.errors import ConfigError, UsageError
from harness.units import GIB, MIB, TIB


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "g.yaml"
    path.write_text(text)
    return path


def test_every_architecture_has_a_default() -> None:
    assert set(DEFAULT_BOOT) == set(ARCHES)
    for name in ARCHES:
        spec = GuestSpec.default(name)
        assert list(problems(spec)) == []
        assert (spec.arch, spec.name, spec.memory, spec.explicit) == (name, name, GIB, frozenset())


def test_unknown_architecture() -> None:
    with pytest.raises(UsageError, match=r"unknown architecture 'arm46'\n  hint: did you mean 'arm64'\?"):
        GuestSpec.default("arm46")


def test_a_whole_file(tmp_path: Path) -> None:
    (tmp_path / "Image").write_bytes(b"k")
    (tmp_path / "root.cpio").write_bytes(b"r")
    text = """
arch: arm64
kernel: Image
initrd: root.cpio
memory: 2G
maxmem: 4G
slots: 3
ports: 2
cpus: 4
nodes: [{memory: 2G}, {memory: 0}]
boot: dt
cmdline: memmap_on_memory=1
cpu: max,sve=off
machine_options: [mte=on]
random_seed: 0x10
"""
    spec = load_guest(write(tmp_path, text))
    assert spec.kernel == str((tmp_path / "Image").resolve())
    assert spec.initrd == (tmp_path / "root.cpio").resolve()
    assert (spec.memory, spec.maxmem, spec.room, spec.slots, spec.ports) == (2 * GIB, 4 * GIB, 2 * GIB, 3, 2)
    assert spec.nodes == (NodeConfig(2 * GIB), NodeConfig(0))
    assert (spec.name, spec.boot, spec.cpu, spec.machine_options) == ("g", "dt", "max,sve=off", ("mte=on",))
    assert spec.random_seed == 16
    assert {"memory", "boot", "name"} <= spec.explicit


def test_a_kernel_that_is_no_file_is_a_selector(tmp_path: Path) -> None:
    assert load_guest(write(tmp_path, "arch: arm64\nkernel: debian\n")).kernel == "debian"


@pytest.mark.parametrize(
    "text",
    [
        "memory: 1100M\n",
        "memory: 130M\n",
        "memory: 1100M\nnodes: [{memory: 0}, {memory: 1G}, {memory: 76M}, {memory: 0}]\n",
    ],
)
def test_boot_memory_may_end_inside_a_section(tmp_path: Path, text: str) -> None:
    assert list(problems(load_guest(write(tmp_path, f"arch: arm64\n{text}")))) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memory: 1G\n", "g.yaml:1: key 'arch' is missing"),
        ("arch: arm\n", "g.yaml:1: arch: 'arm' is not one of arm64, riscv64\n  hint: did you mean 'arm64'?"),
        ("arch: arm64\nmemroy: 1G\n", "g.yaml:2: unknown key 'memroy'\n  hint: did you mean 'memory'?"),
        ("arch: arm64\nkernel: ./Image\n", "g.yaml:2: kernel: no such file: "),
        ("arch: arm64\ninitrd: nope\n", "g.yaml:2: initrd: no such file: "),
        ("arch: arm64\nqemu: nope\n", "g.yaml:2: qemu: no such file: "),
        ("arch: arm64\nmemory: 100M\n", "g.yaml:2: memory: 100M is too small\n  hint: at least 128M"),
        (
            "arch: arm64\nmemory: 1101M\n",
            "g.yaml:2: memory: 1101M is not a multiple of 2M\n  hint: nearest: 1100M or 1102M",
        ),
        (
            "arch: arm64\nmaxmem: 1100M\n",
            "g.yaml:2: maxmem: 1100M is not a multiple of 128M\n  hint: nearest: 1G or 1152M",
        ),
        (
            "arch: arm64\nnodes: [{memory: 1101M}]\n",
            "g.yaml:2: nodes[0].memory: 1101M is not a multiple of 2M\n  hint: nearest: 1100M or 1102M",
        ),
        (
            "arch: arm64\nmemory: 1100M\nnodes: [{memory: 76M}, {memory: 1G}]\n",
            "g.yaml:3: nodes: memory of node 0: 76M is not a multiple of 128M\n"
            "  hint: nearest: 128M; only the last memory may end inside a section",
        ),
        ("arch: arm64\nmemory: 32G\n", "g.yaml:2: memory: maxmem 16G is below the boot memory 32G\n  hint: maxmem"),
        ("arch: arm64\nmaxmem: 512M\n", "g.yaml:2: maxmem: maxmem 512M is below the boot memory 1G"),
        ("arch: arm64\nmaxmem: 128T\n", "g.yaml:2: maxmem: maxmem 128T does not fit the guest's address space"),
        (
            "arch: arm64\nslots: 0\n",
            "g.yaml:2: slots: 0 slots with maxmem 16G and boot memory 1G\n  hint: memory devices need both",
        ),
        ("arch: arm64\nmaxmem: 1G\n", "g.yaml:2: maxmem: 8 slots with maxmem 1G"),
        ("arch: arm64\nslots: 257\n", "g.yaml:2: slots: 257 is too large\n  hint: at most 256"),
        ("arch: arm64\ncpus: 0\n", "g.yaml:2: cpus: 0 is too small\n  hint: at least 1"),
        ("arch: arm64\nnodes: []\n", "g.yaml:2: nodes: an empty list of nodes\n  hint: remove the key"),
        ("arch: arm64\nnodes: [{memory: 512M}]\n", "nodes: the nodes hold 512M, the guest has 1G\n  hint: the memory"),
        ("arch: arm64\nnodes: [{mem: 1G}]\n", "g.yaml:2: nodes[0]: unknown key 'mem'"),
        ("arch: arm64\nboot: efi\n", "g.yaml:2: boot: 'efi' is not one of acpi, dt"),
        ('arch: arm64\ncmdline: "a\\nb"\n', "g.yaml:2: cmdline: control characters in the kernel command line"),
        (
            "arch: arm64\ncpu: -enable-kvm\n",
            "g.yaml:2: cpu: '-enable-kvm' is not a QEMU CPU model\n  hint: for example max",
        ),
        (
            "arch: arm64\nmachine_options: [x]\n",
            "machine_options: 'x' is not a machine option\n  hint: for example gic",
        ),
        ("arch: arm64\nname: a b\n", "g.yaml:2: name: invalid name 'a b'\n  hint: use letters"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_guest(write(tmp_path, text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"memory": 201 * MIB},
            "--memory: boot memory of 201M is not a multiple of 2M\n  hint: nearest: 200M or 202M",
        ),
        ({"maxmem": 1300 * MIB}, "--maxmem: maxmem of 1300M is not a multiple of 128M"),
        ({"memory": 32 * GIB}, "--memory: maxmem 16G is below the boot memory 32G\n  hint: maxmem counts"),
        ({"maxmem": 65 * TIB}, "--maxmem: maxmem 65T does not fit the guest's address space\n  hint: at most 64T"),
        ({"cpus": 0}, "--cpus: invalid cpus: 0\n  hint: from 1 to 512"),
        ({"ports": 99}, "--ports: invalid ports: 99\n  hint: from 0 to 24"),
        ({"boot": "acip"}, "--boot: unknown boot method 'acip'\n  hint: did you mean 'acpi'?"),
        (
            {"cmdline": "a\x00b"},
            "--cmdline: control characters in the kernel command line\n  hint: write it on one line",
        ),
        ({"nodes": (NodeConfig(101 * MIB),)}, "--node: memory of node 0: 101M is not a multiple of 2M"),
        (
            {"nodes": (NodeConfig(100 * MIB), NodeConfig(924 * MIB))},
            "--node: memory of node 0: 100M is not a multiple of 128M\n  hint: nearest: 128M; only the last",
        ),
        ({"random_seed": 1 << 64}, "--random-seed: invalid seed 18446744073709551616\n  hint: from 0 to 0xfff"),
        ({"machine_options": ("a,b=c",)}, "--machine: 'a,b=c' is not a machine option"),
    ],
)
def test_wrong_options(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        override(GuestSpec.default("arm64"), values, GUEST_OPTIONS)
    assert message in str(caught.value)


def test_options_replace_but_the_command_line_grows() -> None:
    spec = override(GuestSpec.default("arm64").with_fields({"cmdline": "a=1"}), {"cmdline": "b=2", "cpus": 4}, {})
    assert (spec.cmdline, spec.cpus) == ("a=1 b=2", 4)
    assert spec.explicit == {"cmdline", "cpus"}


def test_every_guest_of_the_checkout_loads() -> None:
    for name, path in known_guests().items():
        assert find_guest(name).name == load_guest(path).name == name


def test_unknown_guest() -> None:
    with pytest.raises(UsageError, match=r"unknown guest 'nope'\n  hint: .* \(memhp list guests\)"):
        find_guest("nope")


def test_configs_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMHP_CONFIGS", str(tmp_path))
    assert configs_dir() == tmp_path
    assert known_guests() == {}
    monkeypatch.setenv("MEMHP_CONFIGS", str(tmp_path / "no"))
    with pytest.raises(UsageError, match=r"no directory .*no\n  hint: correct MEMHP_CONFIGS"):
        configs_dir()
