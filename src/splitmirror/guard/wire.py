"""The messages between backup and guard: JSON arrays over a SOCK_SEQPACKET pair (unix(7)).

The first goes to the guard: [holder's pid, its start ticks, its pidfd, [[mount point, descriptor],
...], record, [device-mapper's control descriptor or -1, [device number, ...]]]. It answers [0,
"ready", its cgroup or "", [protections that were refused]] or [0, "failed", why]. Then the backup
asks [number, verb, arguments...], and the guard answers [number, "ok"] or [number, "gone"].
"""

from __future__ import annotations

import enum
import json
import select
import socket
from collections.abc import Sequence
from typing import Any

_LARGEST = 1 << 16  # a greeting with hundreds of mount points; the others have 200 bytes


class Nothing(enum.Enum):
    """Why there is no message."""

    CLOSED = "the other end is closed"
    LATE = "none came in time"


def pair() -> tuple[socket.socket, socket.socket]:
    """Two close-on-exec ends that keep messages apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(end: socket.socket, message: Sequence[object]) -> None:
    """Send one message. Raises OSError when the other end is closed."""
    end.send(json.dumps(message).encode())


def receive(end: socket.socket, wait_s: float) -> list[Any] | Nothing:
    """The next message, waiting for it at most `wait_s` seconds."""
    poll = select.poll()
    poll.register(end, select.POLLIN)
    if not poll.poll(wait_s * 1000):
        return Nothing.LATE
    try:
        raw = end.recv(_LARGEST)
    except ConnectionError:
        return Nothing.CLOSED
    message: list[Any] | Nothing = json.loads(raw) if raw else Nothing.CLOSED
    return message
