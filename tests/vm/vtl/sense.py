"""What a command ended with other than well: SCSI status and sense data (SPC-4, 4.5)."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

SENSE_SIZE = 18  # fixed format


class Status(enum.IntEnum):
    """SAM-5, 5.3.1."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    RESERVATION_CONFLICT = 0x18


class Key(enum.IntEnum):
    NO_SENSE = 0x0
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    BLANK_CHECK = 0x8
    VOLUME_OVERFLOW = 0xD


class Bit(enum.IntFlag):
    """Of byte 2, beside the key (SSC-3, 4.3)."""

    NONE = 0
    INCORRECT_LENGTH = 0x20
    END_OF_MEDIUM = 0x40
    FILEMARK = 0x80


Code = tuple[int, int]
"""Additional sense code and its qualifier."""

NOTHING_ADDED: Code = (0x00, 0x00)
FILEMARK_FOUND: Code = (0x00, 0x01)
END_OF_MEDIUM: Code = (0x00, 0x02)
DOOR_IS_OPEN: Code = (0x04, 0x18)
BEGINNING_OF_MEDIUM: Code = (0x00, 0x04)
END_OF_DATA: Code = (0x00, 0x05)
WRITE_ERROR: Code = (0x0C, 0x00)
READ_ERROR: Code = (0x11, 0x00)
MECHANICAL: Code = (0x15, 0x01)
UNKNOWN_COMMAND: Code = (0x20, 0x00)
UNKNOWN_ELEMENT: Code = (0x21, 0x01)
WRONG_FIELD: Code = (0x24, 0x00)
WRONG_PARAMETER: Code = (0x26, 0x00)
WRITE_PROTECTED: Code = (0x27, 0x00)
MEDIUM_CHANGED: Code = (0x28, 0x00)
DOOR_OPENED: Code = (0x28, 0x01)
POWER_ON: Code = (0x29, 0x00)
CLEANING_CARTRIDGE: Code = (0x30, 0x03)
OVERWRITE_OF_WRITE_ONCE: Code = (0x30, 0x0C)
NO_MEDIUM: Code = (0x3A, 0x00)
DESTINATION_FULL: Code = (0x3B, 0x0D)
SOURCE_EMPTY: Code = (0x3B, 0x0E)
INTERNAL: Code = (0x44, 0x00)
REMOVAL_PREVENTED: Code = (0x53, 0x02)


@dataclass(slots=True)
class Check(Exception):
    """CHECK CONDITION. `information`: what was not done, in the command's own count. `data` is
    what was read before."""

    key: Key
    code: Code
    information: int | None = None
    bits: Bit = Bit.NONE
    data: bytes = b""

    def sense(self) -> bytes:
        valid = 0x80 if self.information is not None else 0
        return struct.pack(
            ">BxBiB4xBB4x",
            0x70 | valid,
            self.key | self.bits,
            self.information or 0,
            SENSE_SIZE - 8,
            *self.code,
        )


class ReservationConflict(Exception):
    """Another initiator has the drive for itself."""


def illegal(code: Code = WRONG_FIELD) -> Check:
    return Check(Key.ILLEGAL_REQUEST, code)
