# SPDX-License-Identifier: GPL-2.0-or-later
"""The other end of a QMP socket, without QEMU: it answers from a script."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.arch import ARM64
from harness.config.guest_parts import Firmware, QemuBinary
from harness.deadline import Deadline
from harness.qemu.machine import Machine
from harness.qemu.machine_spec import MachineSpec
from harness.qemu.qmp import QmpSession
from harness.units import GIB

BINARY = QemuBinary(argv=("/opt/qemu",), data_dir=None, origin="test", version="10.0.0")
GREETING = {"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 0}, "package": ""}, "capabilities": []}}

Answer = Callable[["Peer", dict[str, Any]], Any]


class Refuse(Exception):
    """Raised by an answer: QEMU replies with an error."""


class Peer:
    """Answers each command with the entry of its name in ``answers``, any other with {}."""

    def __init__(self, answers: dict[str, Answer] | None = None, *, greet: bool = True) -> None:
        self.answers = answers or {}
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self.ours, self.sock = socket.socketpair()
        self._lock = threading.Lock()
        self.thread = threading.Thread(target=self._serve, args=(greet,), daemon=True)
        self.thread.start()

    def send(self, message: dict[str, Any]) -> None:
        with self._lock:
            self.sock.sendall(json.dumps(message).encode() + b"\n")

    def event(self, name: str, **data: Any) -> None:
        self.send({"event": name, "data": data, "timestamp": {"seconds": 100, "microseconds": 500000}})

    def ost(self, device: str | None, source: int, status: int, slot: str = "0") -> None:
        info = {"source": source, "status": status, "slot": slot, "slot-type": "DIMM"}
        self.event("ACPI_DEVICE_OST", info=info if device is None else {"device": device, **info})

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.hang_up()
        self.thread.join(60)
        self.sock.close()
        self.ours.close()

    def _serve(self, greet: bool) -> None:
        decoder, text = json.JSONDecoder(), ""
        with contextlib.suppress(OSError):
            if greet:
                self.send(GREETING)
            while data := self.sock.recv(1 << 16):
                text += data.decode()
                # The library writes no separator between messages.
                while text.strip():
                    message, end = decoder.raw_decode(text)
                    text = text[end:].lstrip()
                    self._reply(message)

    def _reply(self, message: dict[str, Any]) -> None:
        name, arguments = message["execute"], message.get("arguments", {})
        tag = {"id": message["id"]} if "id" in message else {}
        if name != "qmp_capabilities":
            self.commands.append((name, arguments))
        try:
            answer = self.answers[name](self, arguments) if name in self.answers else {}
        except Refuse as refusal:
            self.send({"error": {"class": "GenericError", "desc": str(refusal)}, **tag})
            return
        self.send({"return": answer, **tag})


def spec(**changes: Any) -> MachineSpec:
    """A default machine for tests, with ``changes``."""
    given: dict[str, Any] = {
        "arch": ARM64,
        "qemu": BINARY,
        "kernel": Path("/k/Image"),
        "firmware": Firmware(Path("/f/code.fd"), Path("/f/vars.fd")),
        "memory": GIB,
        "maxmem": 8 * GIB,
        "slots": 4,
    }
    return MachineSpec(**(given | changes))


def session(peer: Peer, folder: Path, **options: Any) -> QmpSession:
    return QmpSession(peer.ours, log=folder / "qmp.jsonl", deadline=Deadline(60), **options)


def machine(peer: Peer, folder: Path, **changes: Any) -> Machine:
    """A machine whose QEMU is ``peer``; close its ``qmp`` afterwards."""
    made = Machine(spec(**changes), folder)
    made.qmp = session(peer, folder)
    return made
