# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys, cpio archives and the initrd of a run."""

from __future__ import annotations

import base64
import io
import stat
import subprocess
from pathlib import Path

import paramiko
import pytest

from harness.cpio import CpioEntry, character_device, directory, pack, regular, symlink
from harness.errors import UsageError
from harness.guest.identity import Identity, KeyPair
from harness.guest.overlay import overlay, write_initrd

SCRIPTS = Path(__file__).parents[2] / "guest-scripts"
SHELL_SCRIPTS = sorted(path for path in SCRIPTS.iterdir() if not path.suffix)


def unpack(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Path to (mode, content) of the concatenated archives in ``data``, read like the kernel does."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while at < len(data):
        if data[at] == 0:
            at += 1
            continue
        assert at % 4 == 0 and data[at : at + 6] == b"070701", at
        mode, size, name_size = (int(data[at + i : at + i + 8], 16) for i in (14, 54, 94))
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        start = at + 110 + name_size + -(110 + name_size) % 4
        if name != "TRAILER!!!":
            found[name] = (mode, data[start : start + size])
        at = start + size + -size % 4
    return found


def test_cpio_round_trip() -> None:
    entries = [
        directory("etc", 0o700),
        regular("etc/a", b"12345", 0o600),
        symlink("b", "etc/a"),
        character_device("console", 5, 1),
    ]
    data = pack(entries)
    assert data == pack(entries) and len(data) % 4 == 0
    assert unpack(data) == {
        "etc": (stat.S_IFDIR | 0o700, b""),
        "etc/a": (stat.S_IFREG | 0o600, b"12345"),
        "b": (stat.S_IFLNK | 0o777, b"etc/a"),
        "console": (stat.S_IFCHR | 0o600, b""),
    }
    assert b"0000000500000001" in data


@pytest.mark.parametrize("path", ["/etc", "a//b", "../x", "a/./b", "", "a\0b"])
def test_cpio_refuses_paths_that_lead_elsewhere(path: str) -> None:
    with pytest.raises(ValueError, match="not a plain relative path"):
        regular(path, b"")


def test_cpio_refuses_what_the_format_cannot_hold() -> None:
    with pytest.raises(ValueError, match="too long or too large"):
        regular("x" * 5000, b"")
    with pytest.raises(ValueError, match="no file type"):
        CpioEntry("x", 0o644)
    with pytest.raises(ValueError, match="duplicate path 'a'"):
        pack([regular("a", b""), regular("a", b"")])


def test_keys_are_fresh_and_fit_together() -> None:
    pair, other = KeyPair.fresh(), KeyPair.fresh()
    assert pair.public != other.public
    assert "PRIVATE" not in repr(pair)
    key = paramiko.Ed25519Key(file_obj=io.StringIO(pair.openssh))
    assert f"ssh-ed25519 {key.get_base64()}" == pair.public
    # dropbear: string "ssh-ed25519", string secret || public
    assert pair.dropbear[:15] == b"\0\0\0\x0bssh-ed25519" and pair.dropbear[15:19] == b"\0\0\0\x40"
    assert len(pair.dropbear) == 15 + 4 + 64
    assert pair.dropbear[-32:] == base64.b64decode(pair.public.split()[1])[-32:]


def test_overlay_has_the_keys_and_the_scripts() -> None:
    identity = Identity.fresh()
    files = unpack(overlay(identity, SCRIPTS, {"etc/extra": b"more"}))
    assert files["init"] == (stat.S_IFREG | 0o755, (SCRIPTS / "init").read_bytes())
    assert files["usr/lib/memhp/collect"][1] == (SCRIPTS / "collect").read_bytes()
    assert files["etc/dropbear/host_key"] == (stat.S_IFREG | 0o600, identity.host.dropbear)
    assert files["root/.ssh/authorized_keys"] == (stat.S_IFREG | 0o600, f"{identity.client.public}\n".encode())
    assert files["root/.ssh"][0] == stat.S_IFDIR | 0o700
    assert files["etc/extra"][1] == b"more"
    assert not any(name.endswith(".c") for name in files)
    # A symlink of the guest root must not be a directory here: the kernel would replace the link.
    assert not {"lib", "bin", "sbin"} & files.keys()
    secret = identity.client.openssh.encode()
    assert not any(secret in content for _, content in files.values())


def test_overlay_without_scripts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"no guest-scripts in {tmp_path}"):
        overlay(Identity.fresh(), tmp_path)


def test_initrd_is_padded_and_private(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(b"x" * 5)
    (tmp_path / "plain").write_bytes(pack([regular("a", b"1")]))
    out = tmp_path / "initrd"
    write_initrd([tmp_path / "odd", tmp_path / "plain"], pack([regular("a", b"2")]), out)
    data = out.read_bytes()
    assert data[:8] == b"xxxxx\0\0\0"
    assert unpack(data[8:])["a"][1] == b"2"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["initrd", "odd", "plain"]


def test_initrd_with_a_missing_part_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the initrd .*/gone: No such file"):
        write_initrd([tmp_path / "gone"], b"", tmp_path / "initrd")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script: Path) -> None:
    assert script.read_text().startswith("#!/usr/bin/busybox sh\n# SPDX-License-Identifier: GPL-2.0-or-later\n")
    subprocess.run(["sh", "-n", str(script)], check=True)
