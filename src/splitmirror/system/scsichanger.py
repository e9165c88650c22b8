"""The commands of a SCSI medium changer: SMC-3, by `sgio`. Raises what that raises."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from splitmirror.system import sgio

MEDIUM_CHANGER: Final = 8  # peripheral device type (SPC-4, 6.6.2)
CLEANING_MEDIUM: Final = 2  # medium type of an element (SMC-3, 6.11)

_STATUS_TIMEOUT_S = 300.0
_MOVE_TIMEOUT_S = 900.0  # the kernel's own ch driver gives up after 300 s
_LOOK_TIMEOUT_S = 3600.0  # as ch; a library of thousands of slots looks for that long
_OTHER_TIMEOUT_S = 60.0

_PLAIN, _TAG = 12, 36  # bytes of an element descriptor, and of each volume tag in it
_TAG_TEXT = 32
_AT_ONCE = 128  # elements asked for in one command
_ROOM = 8 + 8 + _AT_ONCE * (_PLAIN + 2 * _TAG + 4 + 255)


class ElementKind(enum.IntEnum):
    """Element type codes (SMC-3, 6.11)."""

    ARM = 1
    STORAGE = 2
    DOOR = 3
    DRIVE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """An element's status. `exception`: its additional sense code and qualifier, when something is
    wrong with it. `label`: its primary volume tag. `device`: what identifies its drive."""

    address: int
    kind: ElementKind
    full: bool
    accessible: bool
    exception: tuple[int, int] | None = None
    medium_type: int = 0
    source: int | None = None
    label: str = ""
    device: str = ""


def device_type(fd: int) -> int:
    """INQUIRY: the peripheral device type."""
    return sgio.command(fd, bytes([0x12, 0, 0, 0, 36, 0]), read=36, timeout_s=60.0)[0] & 0x1F


def addresses(fd: int) -> Mapping[ElementKind, range]:
    """MODE SENSE, page 1Dh: the elements' addresses, by their kind."""
    cdb = bytes([0x1A, 0x08, 0x1D, 0, 0xFF, 0])  # without block descriptors
    data = sgio.command(fd, cdb, read=0xFF, timeout_s=_OTHER_TIMEOUT_S)
    arm, arms, first, slots, door, doors, drive, drives = struct.unpack_from(
        ">8H", data, 4 + data[3] + 2
    )
    return {
        ElementKind.ARM: range(arm, arm + arms),
        ElementKind.STORAGE: range(first, first + slots),
        ElementKind.DOOR: range(door, door + doors),
        ElementKind.DRIVE: range(drive, drive + drives),
    }


def elements(
    fd: int, kind: ElementKind, where: range, *, labels: bool, devices: bool
) -> Iterator[Element]:
    """READ ELEMENT STATUS of elements of one kind. Not every changer can tell `labels` (barcodes)
    and `devices` (of drives); one that cannot may refuse the whole command."""
    for first in range(where.start, where.stop, _AT_ONCE):
        count = min(_AT_ONCE, where.stop - first)
        asked = struct.pack(
            ">BBHHB3sxx",
            0xB8,
            kind | (0x10 if labels else 0),
            first,
            count,
            0x01 if devices else 0,
            _ROOM.to_bytes(3, "big"),
        )
        yield from parse(sgio.command(fd, asked, read=_ROOM, timeout_s=_STATUS_TIMEOUT_S))


def initialize(fd: int) -> None:
    """INITIALIZE ELEMENT STATUS: the changer looks into every element."""
    sgio.command(fd, bytes([0x07, 0, 0, 0, 0, 0]), timeout_s=_LOOK_TIMEOUT_S)


def move(fd: int, arm: int, source: int, destination: int) -> None:
    """MOVE MEDIUM."""
    cdb = struct.pack(">BBHHHxxBx", 0xA5, 0, arm, source, destination, 0)
    sgio.command(fd, cdb, timeout_s=_MOVE_TIMEOUT_S)


def parse(data: bytes) -> Iterator[Element]:
    """What READ ELEMENT STATUS sends (SMC-3, 6.11). Raises CommandFailed when it is cut short."""
    end = 8 + int.from_bytes(data[5:8], "big")
    at = 8
    try:
        while at < end:
            kind, tags, size = struct.unpack_from(">BBH", data, at)
            page_end = at + 8 + int.from_bytes(data[at + 5 : at + 8], "big")
            for begin in range(at + 8, page_end, size):
                yield _element(ElementKind(kind), data[begin : begin + size], tags)
            at = page_end
    except (struct.error, IndexError, ValueError) as error:
        raise sgio.CommandFailed(f"its element status makes no sense: {error}") from error


def _element(kind: ElementKind, data: bytes, tags: int) -> Element:
    address, flags, asc, ascq, more, source = struct.unpack_from(">HBxBB3xBH", data)
    primary, alternate = bool(tags & 0x80), bool(tags & 0x40)
    return Element(
        address=address,
        kind=kind,
        full=bool(flags & 0x01),
        accessible=bool(flags & 0x08),
        exception=(asc, ascq) if flags & 0x04 else None,
        medium_type=more & 0x07,
        source=source if more & 0x80 else None,
        label=_label(data[_PLAIN : _PLAIN + _TAG_TEXT]) if primary else "",
        device=_device(data[_PLAIN + _TAG * (primary + alternate) :]),
    )


def _label(text: bytes) -> str:
    """Blanks or NULs fill it up. What is not printable is no barcode."""
    label = text.rstrip(b"\0 ").decode("ascii", errors="replace").strip()
    return label if label.isprintable() and "\ufffd" not in label else ""


def _device(data: bytes) -> str:
    """The identification of a drive: code set, type, and so many bytes (SMC-3, 6.11.6)."""
    if len(data) < 4 or not data[3]:
        return ""
    value = data[4 : 4 + data[3]]
    if data[0] & 0x0F == 1:  # binary
        return value.hex()
    return value.decode("ascii", errors="replace").strip("\0 ")
