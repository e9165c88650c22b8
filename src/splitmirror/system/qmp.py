"""A client of the QEMU Monitor Protocol, as small as the mirror needs it.

Source: docs/interop/qmp-spec of QEMU 7.2: one JSON document a line over a unix socket; answers
carry the command's id, events come in between. A monitor serves one client at a time and lets
the next one wait without a word, so a daemon is given several, each with a lock file beside its
socket: whoever holds the lock may talk.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from splitmirror.errors import Busy, DeadlineExceeded, MirrorError, MirrorNotReady

ANSWER_DEADLINE_S = 30.0  # any command but a job's own work is done in milliseconds
_KEPT_EVENTS = 1000  # a waiter looks at the newest; older ones tell nothing that a query does not
_READ_SIZE = 65536

T = TypeVar("T")


class Refused(MirrorError):
    """The daemon answered a command with an error; `str()` has its own words."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something the daemon tells unasked, such as JOB_STATUS_CHANGE."""

    event: str
    data: Mapping[str, Any] = {}


class _Error(msgspec.Struct, frozen=True):
    desc: str


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """Any line the daemon may send; which one it is shows in what is set."""

    id: int | None = None
    returned: msgspec.Raw = msgspec.field(name="return", default_factory=msgspec.Raw)
    error: _Error | None = None
    event: str | None = None
    data: Mapping[str, Any] = {}


class Monitor:
    """A connection to one of a daemon's monitors. Not thread-safe. Closed by `close`."""

    def __init__(self, connection: socket.socket, lock_fd: int = -1) -> None:
        self._socket = connection
        self._lock_fd = lock_fd
        self._buffer = bytearray()
        self._events: deque[Event] = deque(maxlen=_KEPT_EVENTS)
        self._last_id = 0
        self._answer(None, time.monotonic() + ANSWER_DEADLINE_S)  # the greeting
        self.execute("qmp_capabilities")

    @classmethod
    def connect(cls, paths: Sequence[Path]) -> Monitor:
        """Talk through the first of these monitors that nobody else talks through.

        Raises MirrorNotReady when no daemon answers, Busy when all monitors are taken.
        """
        for path in paths:
            lock_fd = _take(path)
            if lock_fd is None:
                continue
            try:
                return cls(_connected(path), lock_fd)
            except BaseException:
                os.close(lock_fd)
                raise
        raise Busy(
            f"all {len(paths)} monitors of the mirror's daemon are in use",
            hint="Wait for the other splitmirror processes to end.",
        )

    @property
    def peer_pid(self) -> int:
        """The process that listens at the other end (SO_PEERCRED, unix(7))."""
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], "little")

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> msgspec.Raw:
        """Send a command and give what it returned, undecoded.

        Raises Refused with the daemon's words, MirrorNotReady when it is gone, DeadlineExceeded.
        """
        self._last_id += 1
        message: dict[str, Any] = {"execute": command, "id": self._last_id}
        if arguments:
            message["arguments"] = arguments
        limit = time.monotonic() + ANSWER_DEADLINE_S
        self._send(msgspec.json.encode(message) + b"\n")
        line = self._answer(self._last_id, limit)
        if line.error is not None:
            raise Refused(
                f"{command}: {line.error.desc}",
                hint="These are qemu-storage-daemon's own words; its log lies beside its sockets.",
                command=command,
            )
        return line.returned

    def ask(self, command: str, into: type[T], arguments: Mapping[str, Any] | None = None) -> T:
        """`execute`, with what it returned decoded into a type; unknown fields are ignored.
        Raises MirrorError as well when it does not fit."""
        answer = self.execute(command, arguments)
        try:
            return msgspec.json.decode(answer, type=into)
        except msgspec.ValidationError as error:
            raise MirrorError(
                f"{command}: an answer that is not understood: {error}",
                hint="This version of qemu-storage-daemon is too new or too old; 7.2 is known.",
            ) from error

    def wait_event(self, limit_s: float) -> Event | None:
        """The next event, or None when none comes within `limit_s` seconds."""
        limit = time.monotonic() + limit_s
        while not self._events:
            if (line := self._next_line(limit)) is None:
                return None
            self._note(line)
        return self._events.popleft()

    def forget_events(self) -> None:
        """Drop the events that came so far."""
        self._events.clear()

    def close(self) -> None:
        """Hang up. A second call is harmless."""
        self._socket.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _note(self, line: _Line) -> None:
        if line.event is not None:
            self._events.append(Event(event=line.event, data=line.data))

    def _send(self, message: bytes) -> None:
        try:
            self._socket.sendall(message)
        except OSError as error:
            raise _gone(error.strerror) from error

    def _answer(self, wanted: int | None, limit: float) -> _Line:
        """The line with this id (None: the greeting), events and stale answers put aside."""
        while (line := self._next_line(limit)) is not None:
            if line.id == wanted and line.event is None:
                return line
            self._note(line)  # an event, or the answer to a command that was given up
        raise DeadlineExceeded(
            "the mirror's daemon does not answer",
            hint="Look at its log, and whether the disk with the images answers.",
        )

    def _next_line(self, limit: float) -> _Line | None:
        """The next line, or None when none is complete at `limit` (monotonic)."""
        while (end := self._buffer.find(b"\n")) < 0:
            if not self._wait_readable(limit):
                return None
            self._buffer += self._receive()
        line = msgspec.json.decode(self._buffer[:end], type=_Line)
        del self._buffer[: end + 1]
        return line

    def _wait_readable(self, limit: float) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(max(0.0, limit - time.monotonic()) * 1000))

    def _receive(self) -> bytes:
        try:
            received = self._socket.recv(_READ_SIZE)
        except OSError as error:
            raise _gone(error.strerror) from error
        if not received:
            raise _gone("it closed the connection")
        return received


def _take(path: Path) -> int | None:
    """The lock of a monitor, or None when another process holds it."""
    try:
        lock_fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _gone(error.strerror) from error
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock_fd)
        return None
    return lock_fd


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise _gone(error.strerror) from error
    return connection


def _gone(why: str | None) -> MirrorNotReady:
    return MirrorNotReady(
        f"the mirror's daemon does not answer: {why}",
        hint="Run `splitmirror resync`: it cleans up, attaches the mirror again and copies all.",
    )
