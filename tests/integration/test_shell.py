# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp shell`` at a real pseudo-terminal, on a real guest; scenarios that it saves, replayed; and kept guests."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path

import pytest
from leftovers import MEMHP, World
from typist import Typist

pytestmark = [pytest.mark.memhp_guest, pytest.mark.either_arch]

SHOWN = 600.0

#: the second plug is expected to be refused, but succeeds: the verdict is FAIL
BROKEN = """
name: broken
steps:
  - plug-dimm: {id: dimm0, size: 256M}
  - plug-dimm: {id: dimm1, size: 128M}
    expect: refused
    says: does not fit
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def memhp(world: World, *words: str, status: int | None = 0, stdin: str = "") -> str:
    done = subprocess.run(
        [*MEMHP, *words],
        env=world.environment,
        cwd=world.root,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert status is None or done.returncode == status, done.stdout + done.stderr
    return done.stdout


def shell_on(world: World, guest: list[str], *words: str) -> Typist:
    argv = [*MEMHP, "shell", *guest, "--bundle-dir", "bundles", *words]
    return Typist(argv, world.environment, str(world.root))


def test_a_person_at_a_prompt(world: World, guest: list[str]) -> None:
    arch = guest[1]
    with shell_on(world, guest) as person:
        person.expect(f"memhp {arch}>", SHOWN)
        assert "pass  boot" in person.screen
        person.line("plug dimm 512M", r"memory\d+-\d+ \[[0-9a-f]+-[0-9a-f]+\] absent → offline", SHOWN)
        assert b"\x1b[32m" in person.raw
        person.expect(">")
        for typed, completed in (("onl\t", "ine"), (" dim\t", "m0"), (" mova\t", "ble")):
            person.type(typed)
            person.expect(completed)
        person.type("\r")
        person.expect(r"pass  online dimm0 movable", SHOWN)
        person.line("map", r"▓▓▓▓·+", SHOWN)
        person.line("blcks", "did you mean 'blocks'")
        person.line("iomem", r"[0-9a-f]+ : System RAM \(512M\)")
        person.line("help online", "bring memory blocks online")
        person.line("unplug dimm7", "no device 'dimm7' is plugged here")
        person.line("ssh", r"a shell in the guest", SHOWN)
        person.expect("# ")
        person.line("echo $((6 * 7)) >/dev/kmsg; stty size", "40 120", SHOWN)
        # Input typed before the shell reads again may be lost: the shell changes the terminal's mode for each line.
        person.expect("# ")
        person.type("\x04")
        person.expect("pass  after ssh", SHOWN)
        person.line("qmp query-status", '"running": true')
        person.line("offline dimm0", r"online Movable → offline", SHOWN)
        person.line("unplug dimm0", r"pass  unplug dimm0", SHOWN)
        person.line("diff", "no difference", SHOWN)
        person.line("events", "DEVICE_DELETED", SHOWN)
        person.line("save story.yaml", "4 steps in story.yaml")
        person.expect(">")
        person.type("\x04")
        assert person.end(SHOWN) == 0
    history = world.state / "memhp" / "history"
    assert "plug dimm 512M" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600 and stat.S_IMODE(history.parent.stat().st_mode) == 0o700
    world.assert_clean()
    memhp(world, "run", "story.yaml", *guest, "--json", "out.json")
    [run] = json.loads((world.root / "out.json").read_text())["runs"]
    assert [(step["title"], step["verdict"]) for step in run["steps"]] == [
        ("boot", "pass"),
        ("plug-dimm dimm0 512M", "pass"),
        ("online dimm0 movable", "pass"),
        ("offline dimm0", "pass"),
        ("unplug dimm0", "pass"),
    ]
    world.assert_clean()


def test_lines_of_a_script_are_refused_or_replayed_with_the_same_verdicts(world: World, guest: list[str]) -> None:
    script = "plug dimm 64M expect=refused says=multiple; plug vmem 1G requested=256M; online vmem0 movable; "
    script += "unplug vmem0 expect=qemu-refused says=unplugged; snapshot full; resize vmem0 0; restore full; devices; "
    script += "resize vmem0 128M; save s.yaml"
    output = memhp(world, "shell", *guest, "--bundle-dir", "bundles", "-c", script)
    assert "refused  plug-dimm dimm0 64M" in output and "256M of 1G, 256M requested" in output
    [bundle] = (world.root / "bundles").iterdir()
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o700
    world.assert_clean()
    saved = (world.root / "s.yaml").read_text()
    assert "resize: {id: vmem0, to: 0}" not in saved and "resize: {id: vmem0, to: 128M}" in saved
    memhp(world, "replay", str(bundle))
    memhp(world, "check", str(bundle))
    world.assert_clean()


def test_a_guest_that_failed_is_kept_for_a_prompt(world: World, guest: list[str]) -> None:
    (world.root / "broken.yaml").write_text(BROKEN)
    output = memhp(world, "run", "broken.yaml", *guest, "--bundle-dir", "bundles", "--keep", status=1)
    assert "the guest is kept until" in output
    assert "FAIL" in output
    assert any(name.startswith(("qemu", "ld-linux")) for name in world.processes().values())
    output = memhp(world, "attach", "-c", "devices; detach", status=None)
    assert "dimm0" in output and "dimm1" in output
    with Typist([*MEMHP, "attach"], world.environment, str(world.root)) as person:
        person.expect(">", SHOWN)
        person.line("unplug dimm1", "pass  unplug dimm1", SHOWN)
        person.type("quit\r")
        assert person.end(SHOWN) == 0
    world.assert_clean()
    memhp(world, "attach", status=2)


def test_a_kept_guest_ends_with_its_time(world: World, guest: list[str]) -> None:
    (world.root / "broken.yaml").write_text(BROKEN)
    memhp(world, "run", "broken.yaml", *guest, "--bundle-dir", "bundles", "--keep", "--keep-for", "1", status=1)
    world.assert_clean()
