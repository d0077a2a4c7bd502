# SPDX-License-Identifier: GPL-2.0-or-later
"""Selectors of Debian's kernels and packages, and of kernel options: valid and invalid ones."""

from __future__ import annotations

import pytest

from harness.config.guest import GuestSpec, problems
from harness.config.own_build import KernelOption, OwnBuild, parse_kernel_option
from harness.config.selector import DebianName, is_debian_name, parse_kernel_name, parse_qemu_name
from harness.errors import UsageError

IMAGE = "linux-image-6.12.117+deb13-arm64"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("debian", DebianName("debian", "debian")),
        ("debian:trixie-backports", DebianName("debian", "debian:trixie-backports", suite="trixie-backports")),
        ("debian@bookworm", DebianName("debian", "debian@bookworm", suite="bookworm")),
        ("debian:7.2", DebianName("debian", "debian:7.2", version="7.2")),
        ("debian:7.2@sid", DebianName("debian", "debian:7.2@sid", version="7.2", suite="sid")),
        (IMAGE, DebianName("debian", IMAGE, package=IMAGE)),
        (f"{IMAGE}@trixie", DebianName("debian", f"{IMAGE}@trixie", package=IMAGE, suite="trixie")),
        (f"debian:{IMAGE}", DebianName("debian", f"debian:{IMAGE}", package=IMAGE)),
        ("purpose", DebianName("purpose", "purpose")),
        ("purpose+16k+debug", DebianName("purpose", "purpose+16k+debug", flavours=("16k", "debug"))),
        ("purpose:bookworm", DebianName("purpose", "purpose:bookworm", suite="bookworm")),
        (
            "purpose:linux-source-6.1@bookworm+debug",
            DebianName(
                "purpose",
                "purpose:linux-source-6.1@bookworm+debug",
                package="linux-source-6.1",
                suite="bookworm",
                flavours=("debug",),
            ),
        ),
        ("purpose:7.3+16k", DebianName("purpose", "purpose:7.3+16k", version="7.3", flavours=("16k",))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_names(text: str, wanted: DebianName) -> None:
    assert is_debian_name(text)
    assert parse_kernel_name(text) == wanted


def test_what_is_a_path() -> None:
    assert not any(map(is_debian_name, ("Image", "path/to/Image", "./debian", "debian-image", "purposeful")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("debian:", "debian:: '' is not the name of a Debian suite"),
        ("debian:Trixie", "'Trixie' is not the name of a Debian suite"),
        ("purpose:bash_5", "'bash_5' is not the name of a Debian suite"),
        ("purpose:bash@trixie", "'bash' is neither a version nor a linux-source-… package"),
        ("debian:linux-source-6.1@trixie", "'linux-source-6.1' is neither a version nor a linux-image-… package"),
        ("linux-image-", "'linux-image-' is not the name of a Debian package"),
        (f"{IMAGE}@", "'' is not the name of a Debian suite"),
        ("purpose:linux-source-x y", "'linux-source-x y' is not the name of a Debian package"),
    ],
)
def test_names_with_mistakes(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_kernel_name(text)
    assert message in caught.value.message
    assert "purpose:6.1@bookworm" in str(caught.value.hint)


def test_qemu_has_a_suite_and_nothing_else() -> None:
    assert parse_qemu_name("debian:trixie-backports").suite == "trixie-backports"
    assert parse_qemu_name("debian").suite is None
    for text in ("purpose", "debian:7.2", "linux-image-arm64"):
        with pytest.raises(UsageError, match=f"{text} does not name a QEMU"):
            parse_qemu_name(text)


def test_a_guest_with_such_mistakes_names_the_field() -> None:
    spec = GuestSpec.default("arm64").with_fields(
        {"kernel": "debian:X", "qemu": "debian:7.2", "kernel_options": ("a-b",)}
    )
    assert [problem.field for problem in problems(spec)] == ["kernel", "qemu", "kernel_options"]


@pytest.mark.parametrize(
    ("text", "wanted", "line"),
    [
        ("DEBUG_VM", KernelOption("DEBUG_VM", "y"), "CONFIG_DEBUG_VM=y"),
        ("CONFIG_DEBUG_VM=n", KernelOption("DEBUG_VM", "n"), "CONFIG_DEBUG_VM=n"),
        ("VIRTIO_MEM=m", KernelOption("VIRTIO_MEM", "m"), "CONFIG_VIRTIO_MEM=m"),
        ("NR_CPUS=8", KernelOption("NR_CPUS", "8"), "CONFIG_NR_CPUS=8"),
        ("START=0x1F", KernelOption("START", "0x1F"), "CONFIG_START=0x1F"),
        ("LOCALVERSION=-mine", KernelOption("LOCALVERSION", "-mine", True), 'CONFIG_LOCALVERSION="-mine"'),
        ('LOCALVERSION="7"', KernelOption("LOCALVERSION", "7", True), 'CONFIG_LOCALVERSION="7"'),
        ("CMDLINE=", KernelOption("CMDLINE", "", True), 'CONFIG_CMDLINE=""'),
        ('CMDLINE=a="b c"', KernelOption("CMDLINE", 'a="b c"', True), 'CONFIG_CMDLINE="a=\\"b c\\""'),
    ],
)
def test_kernel_options(text: str, wanted: KernelOption, line: str) -> None:
    option = parse_kernel_option(text)
    assert (option, option.line) == (wanted, line)


@pytest.mark.parametrize("text", ["", "=y", "A B", "A-B=y", "A=x\ny"])
def test_what_is_no_kernel_option(text: str) -> None:
    with pytest.raises(UsageError, match="is not a kernel option") as caught:
        parse_kernel_option(text)
    assert "-K VIRTIO_MEM=m" in str(caught.value.hint)


def test_whether_an_option_was_taken() -> None:
    taken = parse_kernel_option
    assert taken("A").is_in("y") and not taken("A").is_in("m") and not taken("A").is_in(None)
    assert taken("A=n").is_in(None) and not taken("A=n").is_in("y")
    assert taken("A=0x10").is_in("16") and not taken("A=0x10").is_in("17")
    assert taken("A=text").is_in("text") and not taken("A=text").is_in("Text")
    assert taken("A=").is_in(None) and taken("A=").is_in("")
    assert not taken('A="0x10"').is_in("16")


def test_which_options_were_used() -> None:
    assert OwnBuild().said == []
    assert OwnBuild((KernelOption("A", "y"),), llvm=True).said == ["-K", "--llvm"]
