"""How host and guest talk over the virtio-serial port, in frames.

A frame is two 32-bit lengths, a JSON document and a payload of bytes. The standard library alone:
the guest's agent runs this too.

    host to guest             run (argv, cwd, env, timeout_s; stdin), put (path, mode; bytes),
                              get (path), off
    guest to host             hello, out (bytes), err (bytes),
                              done (status, took_s; a file's bytes), refused (why)
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_LENGTHS = struct.Struct(">II")
_READ_SIZE = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One message: what kind, its facts, and bytes that belong to it."""

    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    payload: bytes = b""

    def encode(self) -> bytes:
        document = json.dumps([self.kind, self.facts]).encode()
        return _LENGTHS.pack(len(document), len(self.payload)) + document + self.payload


class Wire:
    """Frames over two functions: `read` gives some bytes (none: the other side is gone), `write`
    takes all of them."""

    def __init__(self, read: Callable[[int], bytes], write: Callable[[bytes], None]) -> None:
        self._read = read
        self._write = write
        self._buffer = bytearray()

    def send(self, frame: Frame) -> None:
        self._write(frame.encode())

    def receive(self) -> Frame:
        """The next frame. Raises EOFError when the other side is gone."""
        document_length, payload_length = _LENGTHS.unpack(self._take(_LENGTHS.size))
        kind, facts = json.loads(self._take(document_length))
        return Frame(kind=kind, facts=facts, payload=self._take(payload_length))

    def _take(self, length: int) -> bytes:
        while len(self._buffer) < length:
            data = self._read(_READ_SIZE)
            if not data:
                raise EOFError
            self._buffer += data
        taken = bytes(self._buffer[:length])
        del self._buffer[:length]
        return taken
