"""What Linux's st does not tell of a tape drive, asked of the drive itself, by `sgio`.

Sources: SSC-3 for READ BLOCK LIMITS, READ POSITION, SPACE, TapeAlert and the pages of a tape drive;
SPC-4 for LOG SENSE and MODE SENSE. Raises what `sgio` raises. A question that a drive does not know
is no error: the answer is None, or nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from splitmirror.system import sgio
from splitmirror.system.sgio import CommandFailed, Sense

NOT_READY, ILLEGAL_REQUEST, UNIT_ATTENTION, BLANK_CHECK = 0x2, 0x5, 0x6, 0x8  # sense keys

_NO_MEDIUM: Final = 0x3A  # an additional sense code; with those below go their qualifiers
_CLEANING: Final = (0x30, 0x03)
_BEGINNING: Final = (0x00, 0x04)

_TAPE_ALERT, _CAPACITY = 0x2E, 0x31  # log pages
_MEDIUM_CONFIGURATION: Final = 0x1D  # mode page
_LOG_ROOM: Final = 8192
_MIB: Final = 1 << 20

_TIMEOUT_S: Final = 60.0
_SPACE_TIMEOUT_S: Final = 14000.0  # st's own


def is_attention(error: Exception) -> bool:
    """Whether the drive was reset, or its cartridge changed, since the command before: where the
    tape stands is not where it stood. It is told to one command only."""
    sense = error.sense if isinstance(error, CommandFailed) else None
    return sense is not None and sense.key == UNIT_ATTENTION


def is_empty(sense: Sense | None) -> bool:
    """No cartridge is in the drive, or none that is threaded."""
    return sense is not None and sense.key == NOT_READY and sense.asc == _NO_MEDIUM


def is_cleaning(sense: Sense | None) -> bool:
    """The cartridge in the drive is one that cleans it."""
    return sense is not None and sense.code == _CLEANING


def is_end_of_data(sense: Sense | None) -> bool:
    return sense is not None and sense.key == BLANK_CHECK


def is_beginning(sense: Sense | None) -> bool:
    """The tape was to go back beyond its beginning, and stands there."""
    return sense is not None and sense.code == _BEGINNING


def ready(fd: int) -> None:
    """TEST UNIT READY."""
    sgio.command(fd, bytes(6), timeout_s=_TIMEOUT_S)


def block_limits(fd: int) -> tuple[int, int] | None:
    """The smallest and the largest record in bytes."""
    data = _ask(fd, bytes([0x05, 0, 0, 0, 0, 0]), 6)
    if len(data) < 6:
        return None
    largest, smallest = struct.unpack(">IH", data)
    return smallest, largest & 0xFFFFFF


def knows_position(fd: int) -> bool:
    """Whether READ POSITION is answered."""
    return bool(_ask(fd, bytes([0x34, *bytes(9)]), 20))


def space(fd: int, count: int, *, filemarks: bool = False) -> None:
    """SPACE over records, or over filemarks; back where `count` is negative.

    Raises CommandFailed also where the tape stopped before: at the end of data, at the beginning,
    or, over records, behind a filemark (before it, on the way back); `information` is how many were
    left, the filemark not counted. st does not see it: see `st.forget`.
    """
    cdb = bytes([0x11, int(filemarks)]) + count.to_bytes(3, "big", signed=True) + bytes(1)
    sgio.command(fd, cdb, timeout_s=_SPACE_TIMEOUT_S)


def alerts(fd: int) -> list[int]:
    """The numbers of the TapeAlert flags that are set; drives clear them when they are read."""
    return [code for code, value in _log_page(fd, _TAPE_ALERT) if any(value)]


def capacity(fd: int) -> tuple[int | None, int | None]:
    """Bytes that the cartridge has room for in all, and that are left, to the MiB."""
    told = {code: int.from_bytes(value, "big") * _MIB for code, value in _log_page(fd, _CAPACITY)}
    return told.get(3), told.get(1)


def write_once(fd: int) -> bool:
    """Whether the cartridge is one on which nothing can be written over."""
    cdb = struct.pack(">BBBxxxxHx", 0x5A, 0x08, _MEDIUM_CONFIGURATION, 64)
    page = _ask(fd, cdb, 64)[8:]
    return len(page) > 2 and page[0] & 0x3F == _MEDIUM_CONFIGURATION and bool(page[2] & 1)


def _log_page(fd: int, page: int) -> Iterator[tuple[int, bytes]]:
    """(code, value) of the parameters of a log page, current values."""
    data = _ask(fd, struct.pack(">BxBxxxxHx", 0x4D, 0x40 | page, _LOG_ROOM), _LOG_ROOM)
    if len(data) < 4 or data[0] & 0x3F != page:
        return
    rest = data[4 : 4 + int.from_bytes(data[2:4], "big")]
    while len(rest) >= 4:
        code, length = int.from_bytes(rest[:2], "big"), rest[3]
        yield code, rest[4 : 4 + length]
        rest = rest[4 + length :]


def _ask(fd: int, cdb: bytes, size: int) -> bytes:
    """The answer; b"" where the drive does not know the question."""
    try:
        return sgio.command(fd, cdb, read=size, timeout_s=_TIMEOUT_S)
    except CommandFailed as error:
        if error.sense is None or error.sense.key != ILLEGAL_REQUEST:
            raise
        return b""
