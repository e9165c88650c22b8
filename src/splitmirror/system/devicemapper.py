"""Device-mapper devices by ioctl: their tables, loading a new one, suspending and resuming.

No program is run, so all of it may be done while filesystems are frozen. A device is named by its
number. Sources: linux/dm-ioctl.h; dev_suspend, do_resume and table_load in drivers/md/dm-ioctl.c.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from splitmirror.errors import DeviceFailed, PrivilegeError

CONTROL = "/dev/mapper/control"
SECTOR = 512  # tables count in these, whatever the device's own sectors are

# struct dm_ioctl: version, data_size, data_start, target_count, open_count, flags, event_nr,
# padding, dev, name, uuid, data. struct dm_target_spec: sector_start, length, status, next, type.
_HEADER = struct.Struct("=3IIIIiIIIQ128s129s7x")
_TARGET = struct.Struct("=QQiI16s")
_VERSION = (4, 0, 0)
_DEV_SUSPEND, _DEV_STATUS, _TABLE_LOAD, _TABLE_CLEAR, _TABLE_STATUS = (
    0xC000FD00 | _HEADER.size << 16 | number for number in (6, 7, 9, 10, 12)
)
_SUSPEND = 1 << 1  # DM_*_FLAG
_STATUS_TABLE = 1 << 4
_INACTIVE_PRESENT = 1 << 6
_BUFFER_FULL = 1 << 8
_SKIP_LOCKFS = 1 << 10
_ROOM = 64 << 10  # bytes for a table; a raid1 line of 253 images has 6 KiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A line of a table, or of a status: `arguments` mean what the target `kind` says. `start` and
    `length` in sectors."""

    start: int
    length: int
    kind: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """A device as it is now. `users`: open descriptors, mounts and devices on top of it."""

    name: str
    uuid: str
    users: int
    suspended: bool
    prepared: bool  # a table is loaded that the next resume takes


class DeviceMapper:
    """The kernel's device-mapper, through one descriptor of its control node. A context manager;
    threads may share it. Each call raises DeviceFailed; to open it may raise PrivilegeError."""

    def __init__(self) -> None:
        try:
            self.fd = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
        except PermissionError:
            raise PrivilegeError("device-mapper needs root", hint="Run it with sudo.") from None
        except OSError as error:
            raise DeviceFailed(
                f"{CONTROL}: {error.strerror}", hint="Load the module: modprobe dm-mod"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        os.close(self.fd)

    def info(self, devno: int) -> Info:
        flags, users, name, uuid, _ = _call(self.fd, _DEV_STATUS, devno, 0, "looked at")
        return Info(
            name=name,
            uuid=uuid,
            users=users,
            suspended=bool(flags & _SUSPEND),
            prepared=bool(flags & _INACTIVE_PRESENT),
        )

    def table(self, devno: int) -> tuple[Target, ...]:
        """The table in use."""
        return self._targets(devno, _STATUS_TABLE)

    def status(self, devno: int) -> tuple[Target, ...]:
        """What the targets say of themselves."""
        return self._targets(devno, 0)

    def load(self, devno: int, targets: Sequence[Target]) -> None:
        """Prepare a table: the next resume takes it. It replaces one that was prepared before."""
        _call(self.fd, _TABLE_LOAD, devno, 0, "given a table", packed(targets), len(targets))

    def clear(self, devno: int) -> None:
        """Forget a prepared table. There is none: harmless."""
        _call(self.fd, _TABLE_CLEAR, devno, 0, "rid of a prepared table")

    def suspend(self, devno: int) -> None:
        """Let what is being written reach the device, and hold up what comes. Filesystems are not
        frozen first: the caller has done that (freeze_bdev would wait for their thaw). Outlives
        this process: whoever calls this has a guard."""
        _call(self.fd, _DEV_SUSPEND, devno, _SUSPEND | _SKIP_LOCKFS, "suspended")

    def resume(self, devno: int) -> None:
        """Go on, with the prepared table if there is one. Not suspended, with a prepared table: it
        is suspended, given that table and resumed in this one call; else harmless."""
        _call(self.fd, _DEV_SUSPEND, devno, _SKIP_LOCKFS, "resumed")

    def _targets(self, devno: int, flags: int) -> tuple[Target, ...]:
        said, _, _, _, payload = _call(self.fd, _TABLE_STATUS, devno, flags, "looked at")
        if said & _BUFFER_FULL:
            raise DeviceFailed("a table of over 64 KiB", hint="Look at it with `dmsetup table`.")
        return tuple(payload)


def resume_suspended(control_fd: int, devno: int) -> bool:
    """Resume a device that is suspended; False: it was not, and nothing was done (a resume would
    take a prepared table). For the guard. Raises DeviceFailed."""
    flags, *_ = _call(control_fd, _DEV_STATUS, devno, 0, "looked at")
    if not flags & _SUSPEND:
        return False
    _call(control_fd, _DEV_SUSPEND, devno, 0, "resumed")
    return True


def _call(
    fd: int, request: int, devno: int, flags: int, done: str, payload: bytes = b"", targets: int = 0
) -> tuple[int, int, str, str, list[Target]]:
    """One ioctl: the flags, the users, name and uuid, and the targets that came back."""
    room = _HEADER.size + max(len(payload), _ROOM if request == _TABLE_STATUS else 0)
    head = _HEADER.pack(
        *_VERSION, room, _HEADER.size, targets, 0, flags, 0, 0, _encoded(devno), b"", b""
    )
    buffer = bytearray((head + payload).ljust(room, b"\0"))
    try:
        fcntl.ioctl(fd, request, buffer)
    except OSError as error:
        name = f"device {os.major(devno)}:{os.minor(devno)}"
        if error.errno == errno.ENXIO:
            raise DeviceFailed(f"{name} is gone", hint="`dmsetup info -c` lists them.") from None
        raise DeviceFailed(
            f"{name} cannot be {done}: {error.strerror}", hint="The kernel log tells more."
        ) from None
    fields = _HEADER.unpack_from(buffer)
    data_start, count, users, flags = fields[4:8]
    name, uuid = (os.fsdecode(text.partition(b"\0")[0]) for text in fields[11:13])
    wanted = count if request == _TABLE_STATUS and not flags & _BUFFER_FULL else 0
    return flags, users, name, uuid, _unpacked(bytes(buffer[data_start:]), wanted)


def _unpacked(data: bytes, count: int) -> list[Target]:
    targets, at = [], 0
    for _ in range(count):
        start, length, _status, behind, kind = _TARGET.unpack_from(data, at)
        text = data[at + _TARGET.size :].partition(b"\0")[0].decode()
        targets.append(
            Target(
                start=start,
                length=length,
                kind=kind.partition(b"\0")[0].decode(),
                arguments=tuple(text.split()),
            )
        )
        at = behind  # counted from the first target
    return targets


def packed(targets: Sequence[Target]) -> bytes:
    """A table as DM_TABLE_LOAD takes it."""
    packed = b""
    for target in targets:
        text = " ".join(target.arguments).encode() + b"\0"
        size = -(-(_TARGET.size + len(text)) // 8) * 8  # the kernel wants them aligned
        head = _TARGET.pack(target.start, target.length, 0, size, target.kind.encode())
        packed += (head + text).ljust(size, b"\0")
    return packed


def _encoded(devno: int) -> int:
    """As new_encode_dev in linux/kdev_t.h has it."""
    major, minor = os.major(devno), os.minor(devno)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
