"""Which devices a mounted btrfs uses, and which the kernel remembers.

btrfs finds its devices by UUID, and a leg has its primary's: only the kernel's own answer tells
which of the two a mount is really of. Source: linux/btrfs.h, BTRFS_IOC_FS_INFO, BTRFS_IOC_DEV_INFO
and BTRFS_IOC_FORGET_DEV; fs/btrfs/volumes.c.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct

from splitmirror.errors import DeviceFailed

BTRFS_IOC_FS_INFO = 0x8400941F  # _IOR(0x94, 31, struct btrfs_ioctl_fs_info_args)
BTRFS_IOC_DEV_INFO = 0xD000941E  # _IOWR(0x94, 30, struct btrfs_ioctl_dev_info_args)
BTRFS_IOC_FORGET_DEV = 0x50009405  # _IOW(0x94, 5, struct btrfs_ioctl_vol_args)

_CONTROL = "/dev/btrfs-control"

_FS_INFO = struct.Struct("<QQ1008x")  # max_id, num_devices
_DEV_INFO = struct.Struct("<Q3064x1024s")  # devid, path
_VOL_ARGS = struct.Struct("<8x4088s")  # path


def devices(fd: int) -> list[str]:
    """The paths of all devices of the btrfs that `fd` lies on, as the kernel opened them.

    Raises DeviceFailed when it is no btrfs, or a device is missing.
    """
    try:
        answer = bytearray(_FS_INFO.size)
        fcntl.ioctl(fd, BTRFS_IOC_FS_INFO, answer)
        max_id, count = _FS_INFO.unpack(answer)
        found = [path for devid in range(1, max_id + 1) if (path := _path(fd, devid))]
    except OSError as error:
        raise DeviceFailed(
            f"btrfs does not tell its devices: {error.strerror}",
            hint="Is it a btrfs, and is this process root?",
        ) from error
    if len(found) != count:
        raise DeviceFailed(
            f"btrfs has {count} devices, but only {len(found)} can be seen",
            hint="A device is missing: see `btrfs filesystem show`.",
        )
    return found


def _path(fd: int, devid: int) -> str | None:
    """The device with this id; None: there is none (ids of removed devices stay free)."""
    answer = bytearray(_DEV_INFO.pack(devid, b""))
    try:
        fcntl.ioctl(fd, BTRFS_IOC_DEV_INFO, answer)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    _, path = _DEV_INFO.unpack(answer)
    return os.fsdecode(path.split(b"\0")[0])


def forget(device: str) -> None:
    """Let the kernel forget what btrfs it saw on a device number before.

    It remembers unmounted ones, and takes the next leg on the same loop number for the last (mount
    says EEXIST). A device it does not know, or that is mounted, is left as it is.
    """
    with contextlib.suppress(OSError):
        control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(
                control, BTRFS_IOC_FORGET_DEV, bytearray(_VOL_ARGS.pack(os.fsencode(device)))
            )
        finally:
            os.close(control)
