# SPDX-License-Identifier: GPL-2.0-or-later
"""What an architecture or host does not support is named, with a next step."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UnsupportedError
from harness.scenarios import requirements
from harness.scenarios.requirements import require_arch, require_host, require_paging, require_words
from harness.state import DmesgLine, NotObserved


def test_what_one_architecture_cannot_have() -> None:
    require_arch(("node-without-cpu", "acpi-dimm"), "arm64")
    with pytest.raises(UnsupportedError, match=r"a node without a CPU.*riscv64 requires a CPU.*\n  hint: run it with"):
        require_arch(("acpi-dimm", "node-without-cpu"), "riscv64")


@pytest.mark.parametrize(
    ("modes", "has"), [("always within_size [advise] never", True), ("always advise [never]", False), ("", False)]
)
def test_transparent_huge_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modes: str, has: bool) -> None:
    file = tmp_path / "shmem_enabled"
    file.write_text(modes + "\n")
    monkeypatch.setattr(requirements, "_SHMEM_THP", str(file))
    if has:
        require_host(("host-thp", "acpi-dimm"))
        return
    with pytest.raises(
        UnsupportedError, match=r"lacks transparent huge pages for shared memory\n  hint: echo advise >/sys"
    ):
        require_host(("host-thp",))


@pytest.mark.parametrize(
    ("name", "directory", "enough"), [("2M", "hugepages-2048kB", 256), ("1G", "hugepages-1048576kB", 2)]
)
def test_huge_pages(name: str, directory: str, enough: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / directory / "free_hugepages"
    monkeypatch.setattr(requirements, "_HUGE", f"{tmp_path}/hugepages-{{}}kB")
    with pytest.raises(UnsupportedError):
        require_host((f"host-hugetlb-{name}",))
    file.parent.mkdir()
    for text in ("", f"{enough - 1}\n"):
        file.write_text(text)
        hint = rf"{enough} free huge pages of {name}\n  hint: echo {enough} >.*/{directory}/nr_hugepages"
        with pytest.raises(UnsupportedError, match=hint):
            require_host((f"host-hugetlb-{name}",))
    file.write_text(f"{enough}\n")
    require_host((f"host-hugetlb-{name}",))


@pytest.mark.parametrize(
    ("cmdline", "text"),
    [
        ("quiet rodata=full", "Invalid option string for rodata: 'full'"),
        ("debug-pagealloc=maybe", "Malformed early option 'debug_pagealloc'"),
        ("memhp_default_state=offline", 'Unknown kernel command line parameters "x memhp_default_state=offline", '),
    ],
)
def test_a_word_that_the_kernel_ignores_is_no_silent_success(cmdline: str, text: str) -> None:
    text += "will be passed to user space." if text.endswith(", ") else ""
    lines = (DmesgLine(0.0, 4, text),)
    with pytest.raises(UnsupportedError, match="the kernel does not take") as caught:
        require_words(cmdline, lines, "the kernel")
    assert caught.value.hint and text in caught.value.message
    # No error: parameters that memhp added itself, another message, or no log.
    require_words("", lines, "the kernel")
    require_words(cmdline, (DmesgLine(0.0, 4, f"{text} too"),), "the kernel")
    require_words(cmdline, NotObserved("no log"), "the kernel")


@pytest.mark.parametrize(("bits", "told"), [(57, "this guest 57 bits"), (None, "this guest an unknown number of bits")])
def test_a_paging_mode_may_be_needed(bits: int | None, told: str) -> None:
    require_paging(["sv39", "acpi-dimm"], 39)
    require_paging(["acpi-dimm"], bits)
    with pytest.raises(UnsupportedError, match=told) as caught:
        require_paging(["sv39"], bits)
    assert (caught.value.requirement, caught.value.hint) == ("sv39", "--cpu rv64,sv57=off,sv48=off")
