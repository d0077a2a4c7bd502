# SPDX-License-Identifier: GPL-2.0-or-later
"""The README's statements about scenarios are true."""

from __future__ import annotations

import re
from pathlib import Path

from harness.config.guest import GuestSpec
from harness.scenarios.file import known_scenarios, load_scenario, read_scenario

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
SECTION = README[README.index("\n## Scenarios\n") : README.index("\n## Look closer\n")]


def test_the_readme_lists_every_family_once_in_order() -> None:
    told = re.findall(r"^\| ([a-z][a-z-]+) \| [^|]+ \|$", SECTION, re.MULTILINE)[1:]
    assert told == sorted({load_scenario(name).family for name in known_scenarios()})


def test_the_readmes_scenario_can_be_run(tmp_path: Path) -> None:
    [text] = re.findall(r"```yaml\n(.*?)```", SECTION, re.DOTALL)
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    scenario = read_scenario(path)
    for arch in ("arm64", "riscv64"):
        scenario.apply_to(GuestSpec.default(arch))
    assert scenario.name == "mine"
