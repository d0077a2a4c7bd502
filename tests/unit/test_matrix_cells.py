# SPDX-License-Identifier: GPL-2.0-or-later
"""Matrix files: their meaning, their errors, and how they are split."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import yaml

from harness.arch import ARCHES
from harness.arch.modes import PAGING_CHOICES, VA_BITS
from harness.artifacts.kernel_build import known_flavours
from harness.check.bugs import bugs_file
from harness.check.required import Demand
from harness.config.guest import load_guest
from harness.config.places import configs_dir
from harness.errors import ConfigError, UsageError
from harness.matrix.cells import MatrixPlan, expected_seconds, make_plan, shard_of
from harness.matrix.matrix_file import load_matrix
from harness.matrix.workers import command

TWO = """
name: two
grids:
  - axes:
      arch: [arm64, riscv64]
      scenario: [dimm-cycle, virtio-mem-resize]
"""


def plan_of(tmp_path: Path, text: str) -> MatrixPlan:
    path = tmp_path / "matrix.yaml"
    path.write_text(text)
    return make_plan(load_matrix(str(path)))


def grid(*lines: str, name: str = "m") -> str:
    return f"name: {name}\ngrids:\n  - axes:\n" + "".join(f"      {line}\n" for line in lines)


def test_a_grid_is_a_full_cross_product(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TWO)
    assert [cell.id for cell in plan.cells] == [
        "arm64/dimm-cycle",
        "arm64/virtio-mem-resize",
        "riscv64/dimm-cycle",
        "riscv64/virtio-mem-resize",
    ]
    assert all(cell.steps > 10 for cell in plan.cells)


def test_every_axis_reaches_the_guest(tmp_path: Path) -> None:
    text = grid(
        "arch: arm64",
        "kernel: purpose+debug",
        "paging: 16k-47",
        "boot: dt",
        "memmap_on_memory: force",
        "online: online_movable",
        "kaslr: 7",
        "cpus: 3",
        "cmdline: {full: rodata=full}",
        "scenario: virtio-mem-resize",
    )
    [cell] = plan_of(tmp_path, text).cells
    name = "arm64.purpose-debug.16k-47.dt.memmap-force.online-movable.seed-7.3cpus.full"
    assert cell.id == f"{name}/virtio-mem-resize"
    spec = cell.guest
    assert (spec.kernel, spec.cpu, spec.boot, spec.cpus, spec.random_seed) == (
        "purpose+debug+16k",
        PAGING_CHOICES["arm64"]["16k-47"].cpu,
        "dt",
        3,
        7,
    )
    assert spec.cmdline == ("memory_hotplug.memmap_on_memory=force memhp_default_state=online_movable rodata=full")
    assert (cell.page_size, cell.va_bits) == (16384, 47)


def test_names_of_debians_are_readable_in_a_cells_name(tmp_path: Path) -> None:
    text = grid(
        "arch: arm64",
        "kernel: [purpose:7.3, debian:trixie-backports, 'purpose:6.1@bookworm']",
        "qemu: debian:trixie-backports",
        "scenario: dimm-cycle",
    )
    cells = plan_of(tmp_path, text).cells
    assert [cell.id for cell in cells] == [
        "arm64.purpose-7.3.qemu-debian-trixie-backports/dimm-cycle",
        "arm64.debian-trixie-backports.qemu-debian-trixie-backports/dimm-cycle",
        "arm64.purpose-6.1-bookworm.qemu-debian-trixie-backports/dimm-cycle",
    ]
    assert {cell.guest.qemu for cell in cells} == {"debian:trixie-backports"}
    (tmp_path / "guest.yaml").write_text(cells[0].guest_text())
    assert load_guest(tmp_path / "guest.yaml") == cells[0].guest


def test_a_qemu_of_ones_own_is_known_by_its_content(tmp_path: Path) -> None:
    program = tmp_path / "qemu-system-aarch64"
    text = grid("arch: arm64", "qemu: ./qemu-system-aarch64", "scenario: dimm-cycle")
    program.write_text("one")
    [cell] = plan_of(tmp_path, text).cells
    assert (cell.id, cell.guest.qemu) == ("arm64.qemu-qemu-system-aarch64/dimm-cycle", str(program))
    program.write_text("two")
    assert plan_of(tmp_path, text).cells[0].digest != cell.digest


def test_what_is_known_of_kernels_is_part_of_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = grid("arch: arm64", "scenario: dimm-cycle")
    [before] = plan_of(tmp_path, text).cells
    known = tmp_path / "known-bugs.yaml"
    known.write_text(bugs_file().read_text() + "# one that was found since\n")
    monkeypatch.setattr("harness.matrix.cells.bugs_file", lambda: known)
    assert plan_of(tmp_path, text).cells[0].digest != before.digest


def test_kaslr_off_is_a_word_on_the_command_line(tmp_path: Path) -> None:
    [cell] = plan_of(tmp_path, grid("arch: arm64", "kaslr: 'off'", "scenario: dimm-cycle")).cells
    assert (cell.guest.cmdline, cell.guest.random_seed) == ("nokaslr", None)


def test_the_guest_file_of_a_cell_says_what_the_cell_decides_and_no_more(tmp_path: Path) -> None:
    [cell] = plan_of(tmp_path, grid("arch: riscv64", "paging: sv39", "kaslr: 3", "scenario: dimm-cycle")).cells
    path = tmp_path / "guest.yaml"
    path.write_text(cell.guest_text())
    assert set(yaml.safe_load(path.read_text())) == {"arch", "name", "cpu", "random_seed"}
    spec = load_guest(path)
    assert (spec, spec.explicit - {"arch"}) == (cell.guest, cell.guest.explicit)
    assert "memory" not in spec.explicit, "the scenario's own settings must apply"


def test_exclusions(tmp_path: Path) -> None:
    text = TWO + "    exclude:\n      - {arch: riscv64, scenario: [virtio-mem-resize]}\n"
    assert [cell.id for cell in plan_of(tmp_path, text).cells] == [
        "arm64/dimm-cycle",
        "arm64/virtio-mem-resize",
        "riscv64/dimm-cycle",
    ]


def test_a_cell_of_two_grids_is_there_once(tmp_path: Path) -> None:
    other = (
        TWO.partition("grids:\n")[2].replace("- axes", "- name: again\n    axes").replace("[arm64, riscv64]", "arm64")
    )
    assert len(plan_of(tmp_path, TWO + other).cells) == 4
    with pytest.raises(ConfigError, match="another grid has arm64/dimm-cycle with other settings"):
        plan_of(tmp_path, TWO + other + "    timeout: 77\n")


def test_all_scenarios_and_rounds(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, grid("arch: arm64", "scenario: all") + "    rounds: 4\n")
    soak = next((cell for cell in plan.cells if cell.id == "arm64/add-remove-soak"), None)
    assert soak is not None and soak.steps < 60
    assert command(soak, Path("x"))[-2:] == ["--rounds", "4"]
    assert "--boot" not in command(soak, Path("x")) and "--boot cold" in " ".join(command(soak, Path("x"), "cold"))
    demand = Demand(frozenset({"XCK-1", "LIN-1"}), frozenset({"MEM-3"}))
    assert "--look" not in command(soak, Path("x")) and "--look fast" in " ".join(command(soak, Path("x"), look="fast"))
    words = " ".join(command(soak, Path("x"), demand=demand))
    assert "--require LIN-1,XCK-1 --allow-unobserved MEM-3" in words and "--require" not in command(soak, Path("x"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (grid("arch: arm64", "kernel: Image", "scenario: dimm-cycle"), "kernel: no such file or directory: "),
        (grid("arch: arm64", "kernel: debian:X", "scenario: dimm-cycle"), "'X' is not the name of a Debian suite"),
        (grid("arch: arm64", "qemu: nope", "scenario: dimm-cycle"), "qemu: no such file: "),
        (grid("arch: arm64", "qemu: debian:7.2", "scenario: dimm-cycle"), "debian:7.2 does not name a QEMU"),
        (grid("arch: riscv64", "paging: 16k-47", "scenario: dimm-cycle"), "riscv64 has no paging mode 16k-47"),
        (
            grid("arch: riscv64", "kernel: purpose+16k", "scenario: dimm-cycle"),
            "unknown flavour of the riscv64 kernel: '16k'",
        ),
        (grid("arch: [arm64, riscv64]", "paging: [sv39, 4k-48]", "scenario: dimm-cycle"), "arm64 has no paging mode"),
        (grid("arch: arm64", "paging: 12k", "scenario: dimm-cycle"), "'12k' is not one of"),
        (grid("arch: []", "scenario: dimm-cycle"), "the matrix is empty"),
        ("name: m\ngrids: []\n", "the matrix is empty"),
        (TWO + "    exclude: [{arch: [arm64, riscv64]}]\n", "everything is excluded"),
        (TWO + "    exclude: [{arch: mips}]\n", "'mips' is not a value of this grid's axis arch"),
        (TWO + "    exclude: [{boot: dt}]\n", "unknown key 'boot'"),
        (TWO + "    exclude: [{}]\n", "this excludes everything"),
        (grid("scenario: dimm-cycle"), "a grid needs the axis 'arch'"),
        (grid("arch: arm64"), "a grid needs the axis 'scenario'"),
        (grid("arch: arm64", "scenario: nonsense"), "unknown scenario 'nonsense'"),
        (grid("arch: arm64", "scenario: ./none.yaml"), "no such file"),
        (grid("arch: arm64", "kernel: no/such/Image", "scenario: dimm-cycle"), "no such file or directory"),
        (grid("arch: arm64", "page_size: 4K", "scenario: dimm-cycle"), "unknown key 'page_size'"),
        (grid("arch: [arm64, arm64]", "scenario: dimm-cycle"), "duplicate value 'arm64'"),
        (grid("arch: arm64", "cmdline: {'a b': x}", "scenario: dimm-cycle"), "invalid name 'a b'"),
        (grid("arch: arm64", 'cmdline: {a: "x\\ny"}', "scenario: dimm-cycle"), "control characters"),
        (grid("arch: arm64", "kaslr: random", "scenario: dimm-cycle"), "expected a whole number"),
        (grid("arch: arm64", "scenario: dimm-cycle", name="a/b"), "invalid name"),
        (TWO + "  - name: grid-1\n    axes: {arch: arm64, scenario: dimm-cycle}\n", "duplicate grid name 'grid-1'"),
    ],
)
def test_what_a_matrix_must_not_ask_for(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of(tmp_path, text)
    assert message in caught.value.message and caught.value.exit_status == 2
    assert caught.value.hint or "matrix.yaml" in caught.value.message


def test_a_scenario_that_does_not_fit_the_guest_is_named_with_its_cell(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text("name: big\nguest: {memory: 1G, cpus: 1}\nsteps:\n  - check: {}\n")
    text = grid("arch: arm64", "cmdline: {odd: 'x'}", "scenario: ./big.yaml")
    assert len(plan_of(tmp_path, text).cells) == 1
    (tmp_path / "big.yaml").write_text("name: big\nsteps:\n  - plug-dimm: {id: a, size: 1T}\n")
    with pytest.raises(UsageError, match="does not fit"):
        plan_of(tmp_path, text)


def test_a_matrix_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="--matrix: no such file: nothing-like-this"):
        load_matrix("nothing-like-this")


def test_a_directory_of_images_is_an_axis(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    arm = bytearray(4096)
    arm[56:60] = b"ARM\x64"
    (folder / "Image-6.1").write_bytes(arm)
    (folder / "Image-6.2.gz").write_bytes(gzip.compress(bytes(arm)))
    riscv = bytearray(4096)
    riscv[56:60] = b"RSC\x05"
    (folder / "Image-rv").write_bytes(riscv)
    (folder / "config-6.1.config").write_text("CONFIG_X=y\n")
    (folder / "notes").write_text("no image")
    text = grid("arch: [arm64, riscv64]", "kernel: [./images, debian]", "scenario: dimm-cycle")
    ids = [cell.id for cell in plan_of(tmp_path, text).cells]
    assert ids == [
        "arm64.Image-6.1/dimm-cycle",
        "arm64.Image-6.2.gz/dimm-cycle",
        "arm64.debian/dimm-cycle",
        "riscv64.Image-rv/dimm-cycle",
        "riscv64.debian/dimm-cycle",
    ]
    (folder / "Image-rv").unlink()
    with pytest.raises(ConfigError, match="holds no kernel for riscv64"):
        plan_of(tmp_path, text)


def test_another_kernel_under_the_same_name_is_another_cell(tmp_path: Path) -> None:
    image = tmp_path / "Image"
    image.write_bytes(b"one")
    text = grid("arch: arm64", "kernel: ./Image", "scenario: dimm-cycle")
    one = plan_of(tmp_path, text)
    image.write_bytes(b"two")
    two = plan_of(tmp_path, text)
    assert one.cells[0].id == two.cells[0].id and one.digest != two.digest


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_a_partition(tmp_path: Path, count: int) -> None:
    plan = plan_of(tmp_path, grid("arch: [arm64, riscv64]", "scenario: all"))
    parts = [shard_of(plan, number, count) for number in range(1, count + 1)]
    assert sorted(cell.id for part in parts for cell in part) == sorted(cell.id for cell in plan.cells)
    loads = [sum(cell.weight for cell in part) for part in parts]
    assert max(loads) - min(loads) <= max(cell.weight for cell in plan.cells)


@pytest.mark.parametrize(("number", "count"), [(0, 2), (3, 2), (1, 0)])
def test_a_shard_that_there_is_not(tmp_path: Path, number: int, count: int) -> None:
    with pytest.raises(UsageError, match=f"--shard {number}/{count}: no such part"):
        shard_of(plan_of(tmp_path, TWO), number, count)


def test_expected_time() -> None:
    assert expected_seconds([10, 10, 20], 2) == 20
    assert expected_seconds([10, 10, 20], 1) == 40
    assert expected_seconds([5], 8) == 5


def test_paging_choices_are_of_their_architecture() -> None:
    assert set(PAGING_CHOICES) == set(VA_BITS) == set(ARCHES)
    for arch, choices in PAGING_CHOICES.items():
        for choice in choices.values():
            assert choice.page_size in ARCHES[arch].paging
            assert choice.flavour is None or choice.flavour in known_flavours(ARCHES[arch], configs_dir() / "kernels")


def test_the_nightly_matrix_of_the_checkout() -> None:
    plan = make_plan(load_matrix("nightly"))
    axes = {axis for cell in plan.cells for axis in cell.axes}
    assert axes >= {"arch", "paging", "boot", "memmap_on_memory", "online", "kaslr", "kernel", "scenario"}
    assert {cell.guest.arch for cell in plan.cells} == set(ARCHES)
    assert json.dumps([dict(cell.axes) for cell in plan.cells])
