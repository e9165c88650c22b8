"""SCSI commands to a device by the SG_IO ioctl: linux/scsi/sg.h (sg_io_hdr, version 3), SPC-4.

For what no driver of the kernel's tells. Any of a device's nodes will do: /dev/sgN, /dev/nstN, and
from Linux 5.15 on /dev/schN.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_SG_IO = 0x2285
_INTERFACE = ord("S")
_DXFER_NONE, _DXFER_TO_DEV, _DXFER_FROM_DEV = -1, -2, -3
_SENSE_SIZE: Final = 96

_GOOD, _CHECK_CONDITION, _BUSY, _RESERVATION_CONFLICT = 0x00, 0x02, 0x08, 0x18
_DRIVER_SENSE = 0x08  # of driver_status: there is sense data
_DRIVER_TIMEOUT, _HOST_TIME_OUT = 0x06, 0x03


class _Header(ctypes.Structure):
    _fields_ = (
        ("interface_id", ctypes.c_int),
        ("dxfer_direction", ctypes.c_int),
        ("cmd_len", ctypes.c_ubyte),
        ("mx_sb_len", ctypes.c_ubyte),
        ("iovec_count", ctypes.c_ushort),
        ("dxfer_len", ctypes.c_uint),
        ("dxferp", ctypes.c_void_p),
        ("cmdp", ctypes.c_void_p),
        ("sbp", ctypes.c_void_p),
        ("timeout", ctypes.c_uint),
        ("flags", ctypes.c_uint),
        ("pack_id", ctypes.c_int),
        ("usr_ptr", ctypes.c_void_p),
        ("status", ctypes.c_ubyte),
        ("masked_status", ctypes.c_ubyte),
        ("msg_status", ctypes.c_ubyte),
        ("sb_len_wr", ctypes.c_ubyte),
        ("host_status", ctypes.c_ushort),
        ("driver_status", ctypes.c_ushort),
        ("resid", ctypes.c_int),
        ("duration", ctypes.c_uint),
        ("info", ctypes.c_uint),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sense:
    """Why a command failed: sense key, additional sense code and qualifier (SPC-4, 4.5 and annex
    D). `filemark`, `end_of_medium`: what a tape met. `information`: what was not done, in the
    command's own count; None: not told. They do not make one sense another."""

    key: int
    asc: int
    ascq: int
    filemark: bool = field(default=False, compare=False)
    end_of_medium: bool = field(default=False, compare=False)
    information: int | None = field(default=None, compare=False)

    @property
    def code(self) -> tuple[int, int]:
        return self.asc, self.ascq

    def __str__(self) -> str:
        return f"sense {self.key:x}/{self.asc:02x}/{self.ascq:02x}"


class CommandFailed(Exception):
    """The device refused. `sense` is None when there is none: another host has `reserved` it, it is
    `busy`, it gave no answer in time, or could not be reached."""

    def __init__(
        self, why: str, *, sense: Sense | None = None, reserved: bool = False, busy: bool = False
    ) -> None:
        super().__init__(why)
        self.sense = sense
        self.reserved = reserved
        self.busy = busy


def command(fd: int, cdb: bytes, *, read: int = 0, write: bytes = b"", timeout_s: float) -> bytes:
    """Give a command, with data for the device or room for `read` bytes from it; what it sent.

    Raises CommandFailed, and OSError where the node cannot give commands (ENOTTY, EINVAL) or is
    gone (ENODEV, ENXIO). The kernel aborts what is not done after `timeout_s`.
    """
    block = ctypes.create_string_buffer(cdb, len(cdb))
    sense = ctypes.create_string_buffer(_SENSE_SIZE)
    data = ctypes.create_string_buffer(write, len(write)) if write else (ctypes.c_char * read)()
    direction = _DXFER_TO_DEV if write else _DXFER_FROM_DEV if read else _DXFER_NONE
    header = _Header(
        interface_id=_INTERFACE,
        dxfer_direction=direction,
        cmd_len=len(cdb),
        mx_sb_len=_SENSE_SIZE,
        dxfer_len=len(write) or read,
        dxferp=ctypes.addressof(data) if write or read else None,
        cmdp=ctypes.addressof(block),
        sbp=ctypes.addressof(sense),
        timeout=round(timeout_s * 1000),
    )
    fcntl.ioctl(fd, _SG_IO, header)
    _check(header, sense.raw[: header.sb_len_wr])
    return data.raw[: read - max(header.resid, 0)] if read else b""


def parse_sense(data: bytes) -> Sense | None:
    """Fixed (70h, 71h) or descriptor (72h, 73h) format; None: there is none."""
    kind = data[0] & 0x7F if data else 0
    if kind in (0x70, 0x71) and len(data) >= 14:
        return Sense(
            key=data[2] & 0x0F,
            asc=data[12],
            ascq=data[13],
            filemark=bool(data[2] & 0x80),
            end_of_medium=bool(data[2] & 0x40),
            information=int.from_bytes(data[3:7], "big", signed=True) if data[0] & 0x80 else None,
        )
    if kind in (0x72, 0x73) and len(data) >= 8:
        stream, information = _descriptor(data, 4), _descriptor(data, 0)
        valid = len(information) >= 12 and information[2] & 0x80
        return Sense(
            key=data[1] & 0x0F,
            asc=data[2],
            ascq=data[3],
            filemark=len(stream) > 3 and bool(stream[3] & 0x80),
            end_of_medium=len(stream) > 3 and bool(stream[3] & 0x40),
            information=int.from_bytes(information[4:12], "big", signed=True) if valid else None,
        )
    return None


def _descriptor(data: bytes, kind: int) -> bytes:
    """Of sense data in descriptor format; b"" where there is none of that kind."""
    at = 8
    while at + 2 <= len(data):
        end = at + 2 + data[at + 1]
        if data[at] == kind:
            return data[at:end]
        at = end
    return b""


def serial_number(node: str) -> str:
    """The serial number of the device behind a character device node, as the kernel has read it
    (vital product data page 80h); "" when it is not known."""
    try:
        devno = os.stat(node).st_rdev
        page = Path(f"/sys/dev/char/{os.major(devno)}:{os.minor(devno)}/device/vpd_pg80")
        return page.read_bytes()[4:].decode("ascii", errors="replace").strip("\0 ")
    except OSError:
        return ""


def _check(header: _Header, sense: bytes) -> None:
    status, host, driver = header.status, header.host_status, header.driver_status & 0x0F
    if host == _HOST_TIME_OUT or driver == _DRIVER_TIMEOUT:
        raise CommandFailed("it gave no answer in time")
    if host:
        raise CommandFailed(f"it could not be reached (host status {host:#04x})")
    if status == _RESERVATION_CONFLICT:
        raise CommandFailed("another host has reserved it", reserved=True)
    if status == _CHECK_CONDITION or (status == _GOOD and driver == _DRIVER_SENSE):
        found = parse_sense(sense)
        # No sense (0) and a recovered error (1) are well, unless a tape stopped before it was to.
        if found is None or found.key > 1 or found.filemark or found.end_of_medium:
            raise CommandFailed(f"it refused ({found or 'and did not say why'})", sense=found)
    elif status != _GOOD:
        raise CommandFailed(f"it answered with status {status:#04x}", busy=status == _BUSY)
