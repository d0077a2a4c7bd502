# SPDX-License-Identifier: GPL-2.0-or-later
"""How the guest's answers about files are interpreted."""

from __future__ import annotations

import pytest
from guest_peer import CannedShell, said

from harness.deadline import Deadline
from harness.errors import GuestError, UsageError
from harness.guest.kernel_files import Content, Written, error_name, parse_written, read_files, write_files

LIMIT = Deadline(60)


def test_error_names() -> None:
    assert error_name("/lib/x: line 3: write error: Invalid argument") == "EINVAL"
    assert error_name("No such file or directory") == "ENOENT"
    assert error_name("never heard of") == "never heard of"


def test_writes() -> None:
    shell = CannedShell(said("1500000 ok\n- ok\n7 failed Device or resource busy\n- failed odd\n"))
    values = [("/sys/a", "1"), ("/sys/b", ""), ("/sys/c", "two words"), ("/sys/d", "-12")]
    assert write_files(shell, values, deadline=LIMIT) == (
        Written(None, 0.0015),
        Written(None, None),
        Written("EBUSY", 7e-9),
        Written("odd", None),
    )
    assert shell.asked == [("/usr/lib/memhp/files write", b"/sys/a 1\n/sys/b \n/sys/c two words\n/sys/d -12\n")]


@pytest.mark.parametrize("line", ["ok", "1 2 ok", "-1 ok", "1 ok ", "12345678901234567890 ok", "1 failed", "x ok", ""])
def test_what_is_no_result_of_a_write(line: str) -> None:
    assert parse_written(line) is None


@pytest.mark.parametrize("text", ["", "1 ok\n", "1 ok\n1 ok\n1 ok\n", "1 ok\nwhat\n"])
def test_writes_without_an_answer(text: str) -> None:
    with pytest.raises(GuestError, match="asked for 2 writes, the guest's files script printed "):
        write_files(CannedShell(said(text)), [("/a", "1"), ("/b", "1")], deadline=LIMIT)
    with pytest.raises(GuestError, match=r"the guest's files script failed \(status 127\): not found"):
        write_files(CannedShell(said("", 127, "not found")), [("/a", "1")], deadline=LIMIT)


@pytest.mark.parametrize(("path", "value"), [("sys/a", "1"), ("/sys/a b", "1"), ("/a\n/b", "1"), ("/a", "1\n/b 2")])
def test_what_cannot_be_written(path: str, value: str) -> None:
    with pytest.raises(UsageError, match="a value is one line of ASCII, a path is absolute"):
        write_files(CannedShell(), [(path, value)], deadline=LIMIT)


def test_reads() -> None:
    text = "file 9 /a/1\nfile 3 /b\nfailed 25 /a/2\nNo such file or directory\nfile 0 /a/3\n\n"
    shell = CannedShell(said(text), said("link 3 /a\n../\n"))
    assert read_files(shell, ["/a/*"], deadline=LIMIT) == {
        "/a/1": Content(b"file 3 /b"),
        "/a/2": Content(b"", "ENOENT"),
        "/a/3": Content(b""),
    }
    assert read_files(shell, ["/a"], links=True, deadline=LIMIT) == {"/a": Content(b"../")}
    assert [stdin for _, stdin in shell.asked] == [b"file /a/*\n", b"link /a\n"]
    with pytest.raises(UsageError, match="cannot read '/a b': a path is absolute, and has no spaces"):
        read_files(shell, ["/a b"], deadline=LIMIT)


@pytest.mark.parametrize(
    "text", ["file 3 /a\nab", "file 3 /a\nabcd\n", "file 99999999999 /a\n", "file 1", "what 1 /a\nx\n", "file 1 a\nx\n"]
)
def test_reads_without_an_answer(text: str) -> None:
    with pytest.raises(GuestError, match="the guest's files script printed b'"):
        read_files(CannedShell(said(text)), ["/a"], deadline=LIMIT)
    with pytest.raises(GuestError, match=r"the guest's files script failed \(status 2\): neither"):
        read_files(CannedShell(said("", 2, "neither")), ["/a"], deadline=LIMIT)
