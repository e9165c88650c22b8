"""btrfs: which devices a mounted one uses and the kernel remembers; its subvolumes and snapshots.

btrfs finds its devices by UUID, and a leg has its primary's: only the kernel's own answer tells
which of the two a mount is really of. Sources: linux/btrfs.h, the BTRFS_IOC_ named here;
fs/btrfs/volumes.c, ioctl.c and transaction.c.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from typing import NamedTuple

from splitmirror.errors import DeviceFailed

BTRFS_IOC_FS_INFO = 0x8400941F  # _IOR(0x94, 31, struct btrfs_ioctl_fs_info_args)
BTRFS_IOC_DEV_INFO = 0xD000941E  # _IOWR(0x94, 30, struct btrfs_ioctl_dev_info_args)
BTRFS_IOC_FORGET_DEV = 0x50009405  # _IOW(0x94, 5, struct btrfs_ioctl_vol_args)

BTRFS_IOC_SNAP_CREATE_V2 = 0x50009417  # _IOW(0x94, 23, struct btrfs_ioctl_vol_args_v2)
BTRFS_IOC_SNAP_DESTROY = 0x5000940F  # _IOW(0x94, 15, struct btrfs_ioctl_vol_args)
BTRFS_IOC_GET_SUBVOL_INFO = 0x81F8943C  # _IOR(0x94, 60, struct btrfs_ioctl_get_subvol_info_args)

ROOT_INODE = 256  # BTRFS_FIRST_FREE_OBJECTID: of a subvolume's root directory, and of nothing else

_CONTROL = "/dev/btrfs-control"
_READ_ONLY = 1 << 1  # BTRFS_SUBVOL_RDONLY, asked for
_ROOT_READ_ONLY = 1 << 0  # BTRFS_ROOT_SUBVOL_RDONLY, told

_FS_INFO = struct.Struct("<QQ1008x")  # max_id, num_devices
_DEV_INFO = struct.Struct("<Q3064x1024s")  # devid, path
_VOL_ARGS = struct.Struct("<8x4088s")  # path
_VOL_ARGS_V2 = struct.Struct("<qQQ32x4040s")  # source's descriptor, 0, flags, name
_SUBVOL_INFO = struct.Struct("<288xQ16s16s176x")  # flags, uuid, parent's uuid


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


# --- subvolumes


class Subvolume(NamedTuple):
    """`parent_uuid`: of the subvolume that it is a snapshot of; zeros where it is none."""

    read_only: bool
    uuid: bytes
    parent_uuid: bytes


def subvolume(fd: int) -> Subvolume:
    """The subvolume that an open file or directory is in (Linux 4.18). Raises OSError."""
    answer = bytearray(_SUBVOL_INFO.size)
    fcntl.ioctl(fd, BTRFS_IOC_GET_SUBVOL_INFO, answer)
    flags, uuid, parent_uuid = _SUBVOL_INFO.unpack(answer)
    return Subvolume(bool(flags & _ROOT_READ_ONLY), uuid, parent_uuid)


def snapshot(source_fd: int, directory_fd: int, name: str) -> None:
    """Make a read-only snapshot of the subvolume whose root directory is open as `source_fd`.

    All its files are in it as they were at one instant, and what was written or synced before the
    call; subvolumes in it are not, but for an empty directory. Durable when it returns: the kernel
    commits a transaction for it. Raises OSError: EXDEV on another filesystem, EEXIST, ENOSPC.
    """
    asked = bytearray(_VOL_ARGS_V2.pack(source_fd, 0, _READ_ONLY, os.fsencode(name)))
    fcntl.ioctl(directory_fd, BTRFS_IOC_SNAP_CREATE_V2, asked)


def destroy(directory_fd: int, name: str) -> None:
    """Delete a subvolume. Its room is free some time later. Raises OSError: ENOENT, EBUSY."""
    fcntl.ioctl(directory_fd, BTRFS_IOC_SNAP_DESTROY, bytearray(_VOL_ARGS.pack(os.fsencode(name))))
