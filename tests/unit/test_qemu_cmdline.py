# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's command line, word by word."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from pathlib import Path

import pytest
from qemu_peer import spec

from harness.arch import RISCV64
from harness.config.guest_parts import Firmware, QemuBinary
from harness.qemu.cmdline import Channels, command_line, escape
from harness.qemu.devices.dimm import DimmSpec
from harness.qemu.devices.virtio_mem import VirtioMemSpec
from harness.qemu.devices.virtio_pmem import VirtioPmemSpec
from harness.qemu.machine_spec import NodeSpec
from harness.units import GIB, MIB

CHANNELS = Channels(qmp=5, console=6, console_log=Path("/w/console.log"), variables=Path("/w/vars.fd"))
PLAIN = Channels(qmp=5, console=6, console_log=Path("/w/console.log"))

ACPI = """
/opt/qemu -nodefaults -no-user-config -display none
-machine virt,gic-version=3,acpi=on,memory-backend=ram0 -accel tcg,thread=multi -cpu max,pauth-impdef=on
-smp 2 -m size=1G,slots=4,maxmem=8G
-object memory-backend-memfd,id=ram0,size=1G,share=on
-chardev socket,id=qmp,fd=5 -mon chardev=qmp,mode=control
-chardev socket,id=console,fd=6,logfile=/w/console.log,logappend=on -serial chardev:console
-drive if=pflash,format=raw,unit=0,readonly=on,file=/f/code.fd
-drive if=pflash,format=raw,unit=1,file=/w/vars.fd
-kernel /k/Image -initrd /k/initrd -append 'console=ttyAMA0 quiet'
-netdev user,id=net0,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22
-device virtio-net-pci,id=nic0,netdev=net0,romfile=,guest_announce=off
-object rng-random,id=random0,filename=/dev/urandom -device virtio-rng-pci,id=rng0,rng=random0
-device pcie-root-port,id=rp0,bus=pcie.0,chassis=1,slot=1
-device pcie-root-port,id=rp1,bus=pcie.0,chassis=2,slot=2
-device vmcoreinfo
"""

NUMA = """
/opt/ld.so --library-path /opt/lib /opt/qemu -L /opt/share -nodefaults -no-user-config -display none
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-machine virt,aia=aplic-imsic,acpi=off,x=y -accel tcg,thread=multi -cpu rv64,sv57=off
-smp 4 -m size=1G,slots=4,maxmem=16G
-object memory-backend-memfd,id=ram0,size=512M,share=on,prealloc=on
-numa node,nodeid=0,cpus=0,cpus=1,memdev=ram0
-numa node,nodeid=1,cpus=2,cpus=3
-object memory-backend-memfd,id=ram2,size=512M,share=on,prealloc=on
-numa node,nodeid=2,memdev=ram2
-chardev socket,id=qmp,fd=5 -mon chardev=qmp,mode=control
-chardev socket,id=console,fd=6,logfile=/w/console.log,logappend=on -serial chardev:console
-kernel /k/Image
-netdev user,id=net0,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22
-device virtio-net-pci,id=nic0,netdev=net0,romfile=,guest_announce=off
-object rng-random,id=random0,filename=/dev/urandom -device virtio-rng-pci,id=rng0,rng=random0
-device pcie-root-port,id=rp0,bus=pcie.0,chassis=1,slot=1
-device pcie-root-port,id=rp1,bus=pcie.0,chassis=2,slot=2
-object memory-backend-memfd,id=mem-d0,size=1G,share=on,merge=off
-device pc-dimm,id=d0,memdev=mem-d0,node=1,slot=3,addr=0x140000000
-object memory-backend-memfd,id=mem-v0,size=2G,share=on
-device virtio-mem-pci,id=v0,memdev=mem-v0,bus=rp0,requested-size=0,block-size=4M,node=2
-object memory-backend-memfd,id=mem-p0,size=1G,share=on
-device virtio-pmem-pci,id=p0,memdev=mem-p0,bus=rp1,memaddr=0x200000000
-S -no-reboot
"""


def test_acpi_machine() -> None:
    machine = spec(initrd=Path("/k/initrd"), cmdline="console=ttyAMA0 quiet", root_ports=2)
    assert command_line(machine, CHANNELS) == shlex.split(ACPI)


def test_dt_machine_with_everything() -> None:
    qemu = QemuBinary(("/opt/ld.so", "--library-path", "/opt/lib", "/opt/qemu"), Path("/opt/share"), "test", "10")
    machine = spec(
        arch=RISCV64,
        qemu=qemu,
        boot="dt",
        firmware=None,
        maxmem=16 * GIB,
        cpus=4,
        cpu="rv64,sv57=off",
        machine_options=("x=y",),
        nodes=(NodeSpec(512 * MIB, (0, 1)), NodeSpec(0, (2, 3)), NodeSpec(512 * MIB)),
        root_ports=2,
        cold_devices=(
            DimmSpec("d0", GIB, node=1, slot=3, address=0x140000000, backend=(("merge", "off"),)),
            VirtioMemSpec("v0", 2 * GIB, block_size=4 * MIB, node=2),
            VirtioPmemSpec("p0", GIB, address=0x200000000),
        ),
        backend=(("prealloc", "on"),),
        paused=True,
        reboot=False,
        vmcoreinfo=False,
        sandbox=True,
    )
    assert command_line(machine, PLAIN) == shlex.split(NUMA)


def test_no_room_for_devices() -> None:
    argv = command_line(spec(maxmem=None, slots=0), CHANNELS)
    assert argv[argv.index("-m") + 1] == "size=1G"


def test_commas_in_paths_are_doubled() -> None:
    assert escape(Path("/a,b")) == "/a,,b"
    machine = spec(firmware=Firmware(Path("/f,1/code"), Path("/f/vars")), kernel=Path("/k,1/Image"))
    argv = command_line(machine, CHANNELS)
    assert "if=pflash,format=raw,unit=0,readonly=on,file=/f,,1/code" in argv
    assert "/k,1/Image" in argv


def test_firmware_needs_its_own_variables() -> None:
    with pytest.raises(ValueError, match="its own copy of the variables"):
        command_line(spec(), PLAIN)


def test_a_restored_machine_brings_its_flash_along() -> None:
    argv = command_line(spec(), dataclasses.replace(PLAIN, incoming=True))
    drives = [value for option, value in itertools.pairwise(argv) if option == "-drive"]
    assert drives == [
        "if=pflash,driver=null-co,read-zeroes=on,size=67108864,unit=0,readonly=on",
        "if=pflash,driver=null-co,read-zeroes=on,size=67108864,unit=1",
    ]
    assert argv[-2:] == ["-incoming", "defer"]


def test_a_seed_makes_all_random_numbers_the_same() -> None:
    seeded = command_line(spec(random_seed=7), CHANNELS)
    assert seeded[seeded.index("-seed") + 1] == "7"
    assert "rng-builtin,id=random0" in seeded, "random numbers of the host would differ each time"
    plain = command_line(spec(), CHANNELS)
    assert "-seed" not in plain and "rng-random,id=random0,filename=/dev/urandom" in plain


def test_memory_of_ours_and_a_machine_that_waits_to_be_restored() -> None:
    channels = Channels(qmp=5, console=6, console_log=Path("/w/console.log"), memory={"ram0": 7}, incoming=True)
    argv = command_line(spec(boot="dt", firmware=None), channels)
    backend = "memory-backend-file,id=ram0,size=1G,share=on,mem-path=/proc/self/fd/7"
    assert argv[argv.index("-object") + 1] == backend
    assert argv[-2:] == ["-incoming", "defer"]


def test_each_node_with_memory_has_a_file_of_its_own() -> None:
    nodes = (NodeSpec(512 * MIB, (0,)), NodeSpec(0, (1,)), NodeSpec(512 * MIB))
    channels = Channels(qmp=5, console=6, console_log=Path("/w/console.log"), memory={"ram0": 7, "ram2": 8})
    argv = command_line(spec(boot="dt", firmware=None, nodes=nodes), channels)
    files = [word.rpartition("/")[2] for word in argv if word.startswith("memory-backend-file")]
    assert files == ["7", "8"]
