# SPDX-License-Identifier: GPL-2.0-or-later
"""What the harness trusts: the guest whose host key it generated, and no guest output."""

from __future__ import annotations

import dataclasses

import pytest

from harness.deadline import Deadline
from harness.errors import GuestError
from harness.guest.identity import KeyPair
from harness.guest.ssh import GuestShell
from harness.scenarios.session import Session
from harness.units import MIB

pytestmark = [pytest.mark.memhp_guest, pytest.mark.either_arch, pytest.mark.shared_guest]


@pytest.mark.parametrize("wrong", ["host", "client"])
def test_another_key_is_refused_on_either_side(memhp_guest: Session, wrong: str) -> None:
    guest = memhp_guest.guest
    other = dataclasses.replace(guest.shell.identity, **{wrong: KeyPair.fresh()})
    limit = Deadline(60)
    with pytest.raises(GuestError, match="cannot log into the guest"):
        GuestShell.connect(guest.machine.ssh_port(limit), other, limit, guest.console)


def test_a_command_that_prints_without_end_is_cut_off(memhp_guest: Session) -> None:
    with pytest.raises(GuestError, match=rf"printed more than {MIB} bytes"):
        memhp_guest.guest.shell.run("cat /dev/zero", deadline=Deadline(120), limit=MIB)
    assert memhp_guest.guest.shell.run("echo still here", deadline=Deadline(120)).stdout == b"still here\n"


def test_what_a_guest_prints_is_no_word_of_a_host_shell(memhp_guest: Session) -> None:
    text = "$(touch /tmp/memhp-owned); `id` \x1b[2J"
    done = memhp_guest.guest.shell.run("cat", stdin=text.encode(), deadline=Deadline(120))
    assert done.stdout == text.encode()
