"""The ioctls of Linux's SCSI tape driver.

Sources: st(4), linux/mtio.h, Documentation/scsi/st.rst; where they are silent, drivers/scsi/st.c:

- Whoever moves the tape backward, or closes it, straight after a write makes the driver write a
  filemark first, wherever the tape may stand by then. Any MTIOCTOP but a few resets that, so
  `Op.WRITE_FILEMARKS` with count 0, which writes nothing, goes before.
- MTIOCGET tells what the driver believes; no command goes to the drive. MTIOCPOS asks the drive.

Errors are OSErrors: EIO says next to nothing, `scsitape` asks for more.
"""

from __future__ import annotations

import enum
import errno
import os
import re
import stat
import struct
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path
from typing import Final

_MTIOCTOP: Final = 0x40086D01  # _IOW('m', 1, struct mtop)
_MTIOCGET: Final = 0x80306D02  # _IOR('m', 2, struct mtget)
_MTIOCPOS: Final = 0x80086D03  # _IOR('m', 3, struct mtpos)
_BLKSECTGET: Final = 0x1267  # linux/fs.h; sg answers in bytes
_MTOP: Final = struct.Struct("@hi")
_MTGET: Final = struct.Struct("@lllllii")
_MTPOS: Final = struct.Struct("@l")

_MAJOR: Final = 9  # of st, in the kernel's devices.txt
_NO_REWIND: Final = 0x80  # in the minor number
_BLOCK_SIZE_MASK: Final = 0xFFFFFF  # in mt_dsreg; the density code stands above it
_DENSITY_SHIFT: Final = 24
_SET_BOOLEANS: Final = 0x3000_0000  # MT_ST_SETBOOLEANS, with Op.SET_OPTIONS
_CLEAR_BOOLEANS: Final = 0x4000_0000


class Op(enum.IntEnum):
    """MTIOCTOP's operations, MT... in mtio.h."""

    FORWARD_FILEMARKS = 1
    BACKWARD_FILEMARKS = 2
    FORWARD_RECORDS = 3
    BACKWARD_RECORDS = 4
    WRITE_FILEMARKS = 5  # and sync
    REWIND = 6
    EJECT = 7  # MTOFFL
    END_OF_DATA = 12
    SET_BLOCK_SIZE = 20  # 0: variable
    SEEK = 22
    SET_OPTIONS = 24  # MTSETDRVBUFFER
    UNLOCK = 29  # the door
    LOAD = 30
    SET_COMPRESSION = 32
    WRITE_FILEMARKS_AT_ONCE = 35  # MTWEOFI: without a sync


class Flag(enum.IntFlag):
    """GMT_... in mtio.h."""

    FILEMARK = 0x8000_0000
    BEGINNING = 0x4000_0000
    END_OF_MEDIUM = 0x2000_0000
    END_OF_DATA = 0x0800_0000
    WRITE_PROTECTED = 0x0400_0000
    ONLINE = 0x0100_0000
    DOOR_OPEN = 0x0004_0000  # no cartridge


class Option(enum.IntFlag):
    """MT_ST_... in mtio.h."""

    BUFFER_WRITES = 0x1
    ASYNC_WRITES = 0x2
    READ_AHEAD = 0x4
    TWO_FILEMARKS = 0x10
    FAST_END_OF_DATA = 0x20
    LOCK_DOOR = 0x40
    BACKWARD_RECORDS = 0x100
    LOGICAL_BLOCKS = 0x800
    SYSTEM_V = 0x1000
    NO_WAIT = 0x2000
    NO_WAIT_AT_FILEMARKS = 0x8000


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """MTIOCGET. `block_size` 0: variable; `density` is SSC's code."""

    flags: Flag
    block_size: int
    density: int


def operate(fd: int, op: Op, count: int = 1) -> None:
    """MTIOCTOP. Raises OSError."""
    ioctl(fd, _MTIOCTOP, _MTOP.pack(op, count))


def forget(fd: int) -> None:
    """Let the driver forget what it believes of where the tape stands. Raises OSError."""
    operate(fd, Op.FORWARD_RECORDS, 0)


def set_options(fd: int, on: Option, off: Option) -> None:
    """Set and clear what the driver does by itself with this device file, until the next boot.
    Raises OSError: EPERM but for root."""
    operate(fd, Op.SET_OPTIONS, _SET_BOOLEANS | on)
    operate(fd, Op.SET_OPTIONS, _CLEAR_BOOLEANS | off)


def status(fd: int) -> Status:
    """What the driver believes. Raises OSError."""
    _, _, settings, flags, _, _, _ = _MTGET.unpack(ioctl(fd, _MTIOCGET, bytes(_MTGET.size)))
    return Status(
        flags=Flag(flags & 0xFFFF_FFFF),
        block_size=settings & _BLOCK_SIZE_MASK,
        density=settings >> _DENSITY_SHIFT & 0xFF,
    )


def position(fd: int) -> int:
    """The number of the next object, asked of the drive. Raises OSError: EIO where it has none."""
    number: int = _MTPOS.unpack(ioctl(fd, _MTIOCPOS, bytes(_MTPOS.size)))[0]
    return number


def is_tape(fd: int) -> bool:
    """Whether this is a device file of st."""
    found = os.fstat(fd)
    return stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) == _MAJOR


def rewinds(fd: int) -> bool:
    """Whether the tape is rewound when this device file is closed."""
    return not os.minor(os.fstat(fd).st_rdev) & _NO_REWIND


def generic_device(device: str) -> str:
    """The /dev/sgN of a tape drive. Raises FileNotFoundError where the module sg is not loaded."""
    name = Path(os.path.realpath(device)).name
    for generic in Path("/sys/class/scsi_tape", name, "device/scsi_generic").iterdir():
        return f"/dev/{generic.name}"
    raise FileNotFoundError(errno.ENOENT, "no generic SCSI device", device)


def transfer_limit(device: str) -> int | None:
    """Bytes that the host adapter of a drive takes in one record, as far as it tells. None: not
    known, for want of the module sg."""
    try:
        fd = os.open(generic_device(device), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        told: int = struct.unpack("@i", ioctl(fd, _BLKSECTGET, bytes(4)))[0]
        return told or None
    except OSError:
        return None
    finally:
        os.close(fd)


def not_rewinding(path: str) -> str | None:
    """The device file beside this one that does not rewind on close; None when the name is not
    that of a file that does."""
    name = Path(path).name
    if re.fullmatch(r"st\d+[lma]?", name):
        return str(Path(path).with_name("n" + name))
    if "/tape/by-id/" in path and not name.endswith("-nst"):
        return f"{path}-nst"
    return None
