# SPDX-License-Identifier: GPL-2.0-or-later
"""A world of plain files for the guest's agent."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from harness.config.places import guest_scripts_dir

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


class World:
    """Plain files and folders in place of sysfs, debugfs and /proc, and an agent compiled to use them."""

    def __init__(self, root: Path) -> None:
        self.blocks = root / "memory"
        self.dump = root / "kernel_page_tables"
        self.program = root / "agent"
        self.proc = root / "proc"
        self.bus = root / "bus"
        self.loads = root / "loads"
        places = {"RUN": root / "run", "BLOCKS": self.blocks, "DUMP": self.dump, "PROC": self.proc}
        places |= {"BUS": self.bus, "DEV": root / "dev", "FAULTS": root / "faults", "FOLDER": self.loads}
        source = guest_scripts_dir() / "agent.c"
        defines = [f'-D{name}="{path}"' for name, path in places.items()]
        flags = ["-std=gnu11", "-g", "-pthread", "-fsanitize=address,undefined", "-Wall", "-Wextra", "-Werror"]
        subprocess.run(["cc", *flags, *defines, "-o", str(self.program), str(source)], check=True)

    def add_block(self, number: int, state: str, zones: str) -> Path:
        block = self.blocks / f"memory{number}"
        block.mkdir()
        (block / "state").write_text(f"{state}\n")
        (block / "valid_zones").write_text(f"{zones}\n")
        return block

    def add_device(self, bus: str, name: str, driver: str = "", **files: str) -> Path:
        device = self.bus / bus / "devices" / name
        device.mkdir(parents=True)
        for file, text in files.items():
            (device / file).write_text(f"{text}\n")
        if driver:
            (device / "driver").symlink_to(self.add_driver(bus, driver))
            (device / "driver" / name).symlink_to(device)
        return device

    def add_driver(self, bus: str, name: str, *files: str) -> Path:
        driver = self.bus / bus / "drivers" / name
        driver.mkdir(parents=True, exist_ok=True)
        for file in ("bind", "unbind", *files):
            (driver / file).touch()
        return driver

    def add_process(self, number: int, name: str) -> Path:
        comm = self.proc / str(number) / "comm"
        comm.parent.mkdir(parents=True)
        comm.write_text(f"{name}\n")
        return comm

    def clear(self) -> None:
        """Make the world empty again, but for the program."""
        for path in self.program.parent.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != self.program:
                path.unlink()
        self.blocks.mkdir()
