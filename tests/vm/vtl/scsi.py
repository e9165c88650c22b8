"""What every SCSI device of the library answers alike (SPC-4)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Protocol

from tests.vm.vtl.sense import illegal

VENDOR = "SPLITMIR"

# Commands whose data come from the initiator: MODE SELECT, WRITE, LOG SELECT, WRITE ATTRIBUTE.
DATA_OUT = frozenset({0x0A, 0x15, 0x4C, 0x55, 0x8D})

_VPD_PAGES = bytes([0x00, 0x80, 0x83])


class Device(Protocol):
    """A logical unit. `command` gives the data for the initiator, or raises Check or
    ReservationConflict; `delay_s` is how long the command takes before."""

    serial: str

    def command(self, cdb: bytes, data: bytes) -> bytes: ...

    def delay_s(self, cdb: bytes) -> float: ...


def inquiry(cdb: bytes, *, kind: int, product: str, serial: str) -> bytes:
    """INQUIRY, its vital product data among it: serial number and a T10 vendor identification."""
    if not cdb[1] & 1:
        head = bytes([kind, 0x80, 5, 2, 31, 0, 0, 2])
        return head + VENDOR.encode() + product.ljust(16).encode() + b"0001"
    name = VENDOR.encode() + serial.encode()
    pages = {
        0x00: _VPD_PAGES,
        0x80: serial.encode(),
        0x83: bytes([2, 1, 0, len(name)]) + name,
    }
    if cdb[2] not in pages:
        raise illegal()
    page = pages[cdb[2]]
    return struct.pack(">BBH", kind, cdb[2], len(page)) + page


def mode_sense(
    cdb: bytes, pages: Mapping[int, bytes], *, specific: int = 0, descriptor: bytes = b""
) -> bytes:
    """MODE SENSE of 6 or 10 bytes. `pages`: by number, without their two first bytes."""
    wanted = cdb[2] & 0x3F
    if wanted not in (0x00, 0x3F) and wanted not in pages:
        raise illegal()
    chosen = [number for number in pages if wanted in (number, 0x3F)]
    body = b"".join(bytes([n, len(pages[n])]) + pages[n] for n in chosen)
    if cdb[1] & 0x08:
        descriptor = b""
    if cdb[0] == 0x1A:
        length = 3 + len(descriptor) + len(body)
        return bytes([length, 0, specific, len(descriptor)]) + descriptor + body
    length = 6 + len(descriptor) + len(body)
    return struct.pack(">HBB2xH", length, 0, specific, len(descriptor)) + descriptor + body


def mode_selected(cdb: bytes, data: bytes) -> tuple[bytes, dict[int, bytes]]:
    """The block descriptor (or nothing) and the pages of a MODE SELECT of 6 or 10 bytes."""
    head, at = (4, 3) if cdb[0] == 0x15 else (8, 7)
    if len(data) < head:
        return b"", {}
    descriptor = data[head : head + data[at]]
    pages: dict[int, bytes] = {}
    rest = data[head + len(descriptor) :]
    while len(rest) > 2:
        pages[rest[0] & 0x3F] = rest[2 : 2 + rest[1]]
        rest = rest[2 + rest[1] :]
    return descriptor, pages


def log_page(number: int, parameters: Iterable[tuple[int, bytes]]) -> bytes:
    """A page of LOG SENSE from (code, value)."""
    body = b"".join(struct.pack(">HBB", code, 0, len(value)) + value for code, value in parameters)
    return struct.pack(">BBH", number, 0, len(body)) + body
