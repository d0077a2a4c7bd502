# SPDX-License-Identifier: GPL-2.0-or-later
"""The layouts of a kernel's types as BTF, for kernels that are built without debug info, which would take minutes.

``configs/kernels/layouts.c`` names the types. It is compiled as one of the kernel's own objects: by the same command,
which kbuild keeps beside every object (scripts/Kbuild.include, cmd_and_savecmd).
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.arch import ArchSpec
from harness.artifacts.building import run_step
from harness.config.places import configs_dir
from harness.deadline import Deadline
from harness.errors import ArtefactError
from harness.qemu.machine_spec import LAYOUTS

#: an object of every kernel, and the command that made it; ``savedcmd_`` since v6.2, ``cmd_`` before
_OBJECT = "init/main.o"
_COMMAND = re.compile(rf"(?:saved)?cmd_{_OBJECT} := (.*) -c -o {_OBJECT} ")
_FORMAT = "scripts/Kbuild.include of v6.1 to v7.3 writes it there"
#: magic number and version of little-endian BTF (struct btf_header, include/uapi/linux/btf.h)
_BTF = b"\x9f\xeb\x01"


def layouts_source() -> Path:
    """The C file that names the types."""
    return configs_dir() / "kernels" / "layouts.c"


@dataclass(frozen=True, slots=True)
class LayoutsBuild:
    """Makes the layouts of the kernel that was built in ``tree``; ``work`` is a scratch folder."""

    arch: ArchSpec
    tree: Path
    work: Path
    log: Path
    env: Mapping[str, str]

    def run(self, out: Path, deadline: Deadline) -> None:
        """Write LAYOUTS into the folder ``out``; raises ArtefactError, and then there is no such file."""
        command, made = _command(self.tree), self.work / LAYOUTS
        made.unlink(missing_ok=True)
        try:
            self._by_compiler(command, made, deadline)
        except ArtefactError as error:
            if shutil.which("pahole") is None:
                hint = "gcc can since version 12; with another compiler install pahole"
                raise ArtefactError(f"the compiler writes no BTF (-gbtf): {error.message}", hint=hint) from None
            self._by_pahole(command, made, deadline)
        if not made.is_file() or not made.read_bytes().startswith(_BTF):
            raise ArtefactError(f"no BTF came out of {layouts_source()}", hint=f"the whole log is {self.log}")
        shutil.move(made, out / LAYOUTS)

    def _by_compiler(self, command: list[str], made: Path, deadline: Deadline) -> None:
        built = self._compile(command, "-gbtf", deadline)
        copy = (f"{self.arch.triplet}-objcopy", "-O", "binary", "--only-section=.BTF", "--set-section-flags=.BTF=alloc")
        self._step((*copy, str(built), str(made)), deadline)

    def _by_pahole(self, command: list[str], made: Path, deadline: Deadline) -> None:
        built = self._compile(command, "-g", deadline)
        self._step(("pahole", f"--btf_encode_detached={made}", str(built)), deadline)

    def _compile(self, command: list[str], debug: str, deadline: Deadline) -> Path:
        built = self.work / "layouts.o"
        self._step((*command, debug, "-w", "-c", "-o", str(built), str(layouts_source())), deadline)
        return built

    def _step(self, command: tuple[str, ...], deadline: Deadline) -> None:
        run_step("the layouts of the kernel's types", command, self.log, deadline, cwd=self.tree, env=self.env)


def _command(tree: Path) -> list[str]:
    """The compiler's command without what it compiles. Raises ArtefactError."""
    place = tree / "init" / ".main.o.cmd"
    try:
        said = _COMMAND.match(place.read_text())
        # kbuild quotes these two characters for make.
        words = [] if said is None else shlex.split(said[1].replace("$(pound)", "#").replace("$$", "$"))
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{place} cannot be read: {error}", hint=_FORMAT) from None
    if not words:
        raise ArtefactError(f"{place} does not tell how {_OBJECT} was compiled", hint=_FORMAT)
    return [word for word in words if not word.startswith("-Wp,-MMD,")]
