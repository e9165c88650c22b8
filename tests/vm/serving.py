"""A guest that stays: a process that holds it and does what is asked of it over a unix socket.

One request a connection, one at a time, in the frames of frames.py: `run`, `put` and `get` as the
guest's agent has them, `hand_in`, `reset` and `off`. It ends with the guest, on `off`, on a
signal, and when nothing was asked for half an hour.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tests.vm.frames import Frame, Wire
from tests.vm.guest import CommandFailed, Guest, GuestDied

_IDLE_S = 1800.0  # a guest that was forgotten costs a processor's time now and then, and memory


def serve(guest: Guest, at: Path, ready: Callable[[], None]) -> None:
    """Answer at a socket until there is a reason to end; the socket's name is removed then."""
    signal.signal(signal.SIGTERM, _stop)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(at))
        at.chmod(0o600)
        try:
            listening.listen()
            listening.settimeout(_IDLE_S)
            ready()
            with contextlib.suppress(TimeoutError):
                while _one(guest, listening):
                    pass
        finally:
            at.unlink(missing_ok=True)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def _one(guest: Guest, listening: socket.socket) -> bool:
    """Answer one request; whether to go on."""
    connection, _ = listening.accept()
    connection.settimeout(None)
    with connection:
        wire = Wire(connection.recv, connection.sendall)
        with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
            return _answer(guest, wire.receive(), wire)
    return True


def _answer(guest: Guest, asked: Frame, wire: Wire) -> bool:
    try:
        payload, status = _do(guest, asked, wire)
    except CommandFailed as error:
        wire.send(Frame(kind="refused", facts={"why": str(error)}))
        return True
    except GuestDied as error:
        wire.send(Frame(kind="refused", facts={"why": str(error)}))
        return False
    wire.send(Frame(kind="done", facts={"status": status}, payload=payload))
    return asked.kind != "off"


def _do(guest: Guest, asked: Frame, wire: Wire) -> tuple[bytes, int]:
    facts = asked.facts
    payload, status = b"", 0
    if asked.kind == "run":
        hear = _Caller(wire)
        status = guest.run(
            facts["argv"],
            stdin=asked.payload,
            cwd=facts["cwd"],
            timeout_s=facts["timeout_s"],
            check=False,
            hear=hear,
        ).status
    elif asked.kind == "put":
        guest.put(facts["path"], asked.payload, facts["mode"])
    elif asked.kind == "get":
        payload = guest.get(facts["path"])
    else:
        {"hand_in": guest.hand_in, "reset": guest.reset, "off": guest.power_off}[asked.kind]()
    return payload, status


class _Caller:
    """Whoever asked, for as long as he listens; the command goes on without him."""

    def __init__(self, wire: Wire) -> None:
        self._wire: Wire | None = wire

    def __call__(self, kind: str, data: bytes) -> None:
        if self._wire is not None:
            try:
                self._wire.send(Frame(kind=kind, payload=data))
            except OSError:
                self._wire = None
