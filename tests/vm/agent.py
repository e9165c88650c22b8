"""What answers in the guest: runs a command, takes a file, gives a file. See frames.py.

One command at a time, in a session of its own, from the guest's process 1. Ends on `off`, and
then the guest powers off. Debian's Python and its standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

# The guest has the project's files and not its tests' path: this file's own folder is there.
sys.path.insert(0, str(Path(__file__).parent))
from frames import Frame, Wire  # type: ignore[import-not-found,unused-ignore]

_NOT_CONNECTED_S = 0.02  # between two looks whether the host has its end open
_LEFT_BEHIND_S = 0.3  # a daemon keeps its parent's pipes: they are not waited for longer
_OUT_OF_TIME = 124  # as timeout(1) has it
_PORT_DEADLINE_S = 30
_READ_SIZE = 1 << 16  # what a pipe holds


class Port:
    """The virtio-serial port as a wire wants it."""

    def __init__(self, path: str) -> None:
        limit = time.monotonic() + _PORT_DEADLINE_S
        while not os.path.exists(path) and time.monotonic() < limit:
            time.sleep(_NOT_CONNECTED_S)
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def read(self, length: int) -> bytes:
        while not (data := os.read(self._fd, length)):
            time.sleep(_NOT_CONNECTED_S)
        return data

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view[: 1 << 16]) :]


def serve(wire: Wire) -> None:
    wire.send(Frame(kind="hello"))
    while True:
        asked = wire.receive()
        if asked.kind == "off":
            return
        try:
            answer = {"run": _run, "put": _put, "get": _get}[asked.kind](asked, wire)
        except (OSError, KeyError) as error:
            answer = Frame(kind="refused", facts={"why": f"{type(error).__name__}: {error}"})
        wire.send(answer)


def _put(asked: Frame, _wire: Wire) -> Frame:
    path = Path(asked.facts["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(asked.payload)
    path.chmod(asked.facts["mode"])
    return Frame(kind="done", facts={"status": 0, "took_s": 0})


def _get(asked: Frame, _wire: Wire) -> Frame:
    data = Path(asked.facts["path"]).read_bytes()
    return Frame(kind="done", facts={"status": 0, "took_s": 0}, payload=data)


def _run(asked: Frame, wire: Wire) -> Frame:
    started = time.monotonic()
    process = subprocess.Popen(
        asked.facts["argv"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=asked.facts["cwd"],
        env={**os.environ, **asked.facts["env"]},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    words = _Words(wire)
    threading.Thread(target=_feed, args=(process.stdin, asked.payload), daemon=True).start()
    words.carry("out", process.stdout)
    words.carry("err", process.stderr)
    try:
        status = process.wait(asked.facts["timeout_s"])
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        status = _OUT_OF_TIME
    words.end()
    took_s = time.monotonic() - started
    return Frame(kind="done", facts={"status": status, "took_s": took_s})


def _feed(stdin: IO[bytes], data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), stdin:
        stdin.write(data)


class _Words:
    """What a command says, carried to the host as it is said, until `end`."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._ended = False

    def carry(self, kind: str, stream: IO[bytes]) -> None:
        thread = threading.Thread(target=self._carry, args=(kind, stream), daemon=True)
        thread.start()
        self._threads.append(thread)

    def end(self) -> None:
        """Wait for the rest; not for what a daemon that the command left behind may say yet."""
        limit = time.monotonic() + _LEFT_BEHIND_S
        for thread in self._threads:
            thread.join(max(0.0, limit - time.monotonic()))
        with self._lock:
            self._ended = True

    def _carry(self, kind: str, stream: IO[bytes]) -> None:
        with stream:
            while data := os.read(stream.fileno(), _READ_SIZE):
                with self._lock:
                    if not self._ended:
                        self._wire.send(Frame(kind=kind, payload=data))


if __name__ == "__main__":
    _port = Port(sys.argv[1])
    serve(Wire(_port.read, _port.write))
