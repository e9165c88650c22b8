"""Loop devices. Sources: loop(4), linux/loop.h.

A device is made in one step (LOOP_CONFIGURE, Linux 5.8), so none is ever visible half set up.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from splitmirror.errors import DeviceFailed, PrivilegeError
from splitmirror.system import blockdev

_LOOP_CLR_FD = 0x4C01
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82

_READ_ONLY = 1  # LO_FLAGS_*
_AUTOCLEAR = 4
_DIRECT_IO = 16

# struct loop_info64: 3 u64 of identity, offset, sizelimit; number, 2 of encryption, flags; the
# name shown by losetup; the rest unused.
_INFO = struct.Struct("<QQQQQIIII64s64s32sQQ")
_CONFIG = struct.Struct(f"<II{_INFO.size}s64x")  # fd, block size, info, reserved

# Between asking for a free number and taking it somebody else may take it.
_ATTEMPTS = 100
_RETRY_S = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopDevice:
    """A loop device and the close-on-exec descriptor that it was made through.

    With `autoclear` it is gone once `fd` and every mount on it are closed. `detach` closes both.
    """

    path: str
    fd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopInfo:
    """What a loop device is over: a file by its st_dev and st_ino, from `offset` on, `limit` bytes
    of it (0: to its end)."""

    devno: int
    inode: int
    offset: int
    limit: int


def attach(
    path: str | os.PathLike[str],
    *,
    offset: int = 0,
    length: int = 0,
    read_only: bool = False,
    direct: bool = False,
    sector_size: int = 0,
    autoclear: bool = False,
) -> LoopDevice:
    """A loop device over `length` bytes (0: all) from `offset` of a file or block device.

    `direct`: its reads and writes pass by the page cache of what lies below; raises DeviceFailed
    where that cannot be had, instead of the kernel's silent fallback. `sector_size` 0: 512.
    Raises DeviceFailed, PrivilegeError.
    """
    backing_fd = _open_backing(path, os.O_RDONLY if read_only else os.O_RDWR)
    flags = read_only * _READ_ONLY | autoclear * _AUTOCLEAR | direct * _DIRECT_IO
    name = os.fsencode(path)[:63]
    settings = _INFO.pack(0, 0, 0, offset, length, 0, 0, 0, flags, name, b"", b"", 0, 0)
    try:
        device = _configure(_CONFIG.pack(backing_fd, sector_size, settings), read_only, path)
    finally:
        os.close(backing_fd)
    if direct and not _flags(device.fd) & _DIRECT_IO:
        detach(device)
        raise DeviceFailed(
            f"no direct I/O on {path}",
            hint="Its filesystem or sector size does not allow it; use an image on ext4 or xfs.",
        )
    return device


@contextlib.contextmanager
def attached(path: str | os.PathLike[str], *, read_only: bool) -> Iterator[LoopDevice]:
    """A loop device for as long as the block lasts; it also goes when this process dies."""
    device = attach(path, read_only=read_only, autoclear=True)
    try:
        yield device
    finally:
        detach(device)


def detach(device: LoopDevice | str) -> None:
    """Take a loop device away and close its descriptor. Not attached: harmless.

    One that is still mounted goes when it is unmounted.
    """
    if isinstance(device, str):
        try:
            device = LoopDevice(path=device, fd=os.open(device, os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:
            return
    try:
        fcntl.ioctl(device.fd, _LOOP_CLR_FD, 0)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise DeviceFailed(
                f"cannot detach {device.path}: {error.strerror}",
                hint=f"See what holds it: losetup -l {device.path}",
            ) from None
    finally:
        os.close(device.fd)


def backing(device: str) -> str | None:
    """The file below a loop device; None when it has none. A file that was deleted keeps its old
    path, followed by " (deleted)"."""
    number = os.stat(device).st_rdev
    sysfs = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/loop/backing_file")
    try:
        return os.fsdecode(sysfs.read_bytes().rstrip(b"\n"))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):  # detached, or just now
            return None
        raise


def info(device: str) -> LoopInfo | None:
    """What a loop device is over; None when it has nothing below, or is no loop device. Raises
    OSError when it cannot be opened."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        answer = _status(fd)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOTTY, errno.EINVAL):
            return None
        raise
    finally:
        os.close(fd)
    devno, inode, _, offset, limit, *_ = answer
    return LoopInfo(devno=devno, inode=inode, offset=offset, limit=limit)


def find(path: str | os.PathLike[str]) -> list[str]:
    """The loop devices over a file, in the order of their numbers."""
    wanted = os.path.realpath(path)
    devices = [f"/dev/{entry.name}" for entry in Path("/sys/block").glob("loop*")]
    devices.sort(key=lambda device: (len(device), device))
    return [device for device in devices if Path(device).exists() and backing(device) == wanted]


def flush(device_fd: int) -> None:
    """Drop the device's cached pages (BLKFLSBUF), so that what changed below it is seen."""
    blockdev.flush_buffers(device_fd)


def _open_backing(path: str | os.PathLike[str], mode: int) -> int:
    try:
        fd = os.open(path, mode | os.O_CLOEXEC)
    except OSError as error:
        raise DeviceFailed(f"cannot open {path}: {error.strerror}", hint="Look at it.") from None
    kind = os.fstat(fd).st_mode
    if stat.S_ISREG(kind) or stat.S_ISBLK(kind):
        return fd
    os.close(fd)
    raise DeviceFailed(f"{path} is neither a file nor a block device", hint="Name an image file.")


def _configure(config: bytes, read_only: bool, path: str | os.PathLike[str]) -> LoopDevice:
    for _ in range(_ATTEMPTS):
        number = _free_number()
        device = f"/dev/loop{number}"
        try:
            fd = os.open(device, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENODEV):  # its last user is just leaving it
                time.sleep(_RETRY_S)
                continue
            raise DeviceFailed(
                f"cannot open {device}: {error.strerror}",
                hint=f"Is /dev a devtmpfs? Else: mknod {device} b 7 {number}",
            ) from None
        try:
            fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EBUSY:
                raise DeviceFailed(
                    f"cannot make a loop device over {path}: {error.strerror}",
                    hint="Offset, length and sector size must fit the file; the kernel log tells.",
                ) from None
        else:
            return LoopDevice(path=device, fd=fd)
    raise DeviceFailed("no free loop device could be had", hint="losetup -l shows who has them.")


def _free_number() -> int:
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise DeviceFailed("no /dev/loop-control", hint="Load the module: modprobe loop") from None
    except PermissionError:
        raise PrivilegeError("loop devices need root", hint="Run as root.") from None
    try:
        return fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    except OSError as error:
        raise DeviceFailed(
            f"no free loop device: {error.strerror}", hint="losetup -l shows who has them."
        ) from None
    finally:
        os.close(control)


def _flags(fd: int) -> int:
    flags: int = _status(fd)[8]
    return flags


def _status(fd: int) -> tuple[int, ...]:
    answer = bytearray(_INFO.size)
    fcntl.ioctl(fd, _LOOP_GET_STATUS64, answer)
    return _INFO.unpack(answer)
