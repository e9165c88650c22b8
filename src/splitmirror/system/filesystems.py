"""Mounted filesystems: which there are, flushing them, freezing and thawing them.

Sources: proc(5) (/proc/self/mountinfo, /proc/self/fdinfo), syncfs(2), FIFREEZE and FITHAW in
linux/fs.h, ioctl_fsfreeze in fs/super.c.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from dataclasses import dataclass
from pathlib import Path

from splitmirror.errors import DeviceFailed, FreezeFailed
from splitmirror.system import blockdev, libc

FIFREEZE = 0xC0045877  # _IOWR('X', 119, int)
FITHAW = 0xC0045878  # _IOWR('X', 120, int)

_MOUNTINFO = Path("/proc/self/mountinfo")
_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A line of mountinfo. `root` is the directory of the filesystem that is mounted: not "/" for
    a bind mount or a subvolume. `options` holds the mount's and the superblock's, so "ro" in it
    means that one of the two is read-only."""

    mount_id: int
    mountpoint: str
    devno: int  # of the superblock; st_dev is another one on btrfs
    root: str
    fstype: str
    options: frozenset[str]
    source: str


def _decode(field: bytes) -> str:
    """Undo mountinfo's octal escapes (space, tab, newline, backslash)."""
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))


def _parse(line: bytes) -> Mount:
    before, _, after = line.partition(b" - ")
    mount_id, _parent, device, root, mountpoint, options = before.split(b" ")[:6]
    fstype, source, super_options = after.split(b" ", 2)
    major, _, minor = device.partition(b":")
    return Mount(
        mount_id=int(mount_id),
        mountpoint=_decode(mountpoint),
        devno=os.makedev(int(major), int(minor)),
        root=_decode(root),
        fstype=_decode(fstype),
        options=frozenset(_decode(options).split(",") + _decode(super_options).split(",")),
        source=_decode(source),
    )


def mounts() -> list[Mount]:
    """Everything mounted in this process's namespace, in mountinfo's order (later ones on top)."""
    return [_parse(line) for line in _MOUNTINFO.read_bytes().splitlines()]


def mount_of_fd(fd: int) -> Mount:
    """The mount that an open descriptor was opened through; by the kernel's mount id, so bind
    mounts and mounts on top of one another cannot confuse it."""
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("mnt_id:"):
            wanted = int(line.split()[1])
            break
    else:  # pragma: no cover - every kernel since 3.15 has it
        raise DeviceFailed("the kernel gives no mount id", hint="A kernel of 3.15 or later.")
    for mount in mounts():
        if mount.mount_id == wanted:
            return mount
    raise DeviceFailed(
        f"mount {wanted} is not in this namespace's mount table",
        hint="The filesystem was unmounted, or belongs to another mount namespace.",
    )


def mount_of(path: str | bytes | os.PathLike[str]) -> Mount:
    """The mount on which `path` lies, symbolic links followed. Raises OSError when there is no
    such path, DeviceFailed when its mount is in no table."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return mount_of_fd(fd)
    finally:
        os.close(fd)


def device_of(mount: Mount) -> int:
    """The number of the device that a mounted filesystem lies on. btrfs has an anonymous one for
    itself: of what it was mounted from. Raises DeviceFailed."""
    return blockdev.devno_of(mount.source) if mount.fstype == "btrfs" else mount.devno


def inside(path: bytes, mount: Mount) -> bytes:
    """The path from a filesystem's own root to what its mount shows at `path`; b"" for the root."""
    root, mountpoint = os.fsencode(mount.root), os.fsencode(mount.mountpoint)
    below = b"" if path == mountpoint else os.path.relpath(path, mountpoint)
    return os.path.join(root, below).strip(b"/")


def superblocks_below(path: str | os.PathLike[str]) -> set[int]:
    """The device numbers (`Mount.devno`) of every filesystem that what is written to `path` goes
    through: its own, and where that lies on a loop device, those of the image. Raises OSError when
    there is no such path."""
    mount = mount_of(path)
    device = mount.devno
    if mount.source.startswith("/dev/") and os.path.exists(mount.source):
        device = os.stat(mount.source).st_rdev  # btrfs has a number of its own
    found = {mount.devno}
    for file in blockdev.files_below(device):
        if os.path.exists(file):  # in this mount namespace, and not deleted
            found |= superblocks_below(file)
    return found


def open_mountpoint(path: str) -> int:
    """A close-on-exec descriptor to the root of the filesystem mounted at `path`.

    It keeps the filesystem from being unmounted. Raises DeviceFailed when nothing is mounted
    there: a thaw or freeze through it would reach another filesystem.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DeviceFailed(f"cannot open {path}: {error.strerror}", hint="Is it mounted?") from None
    mount = mount_of_fd(fd)
    if mount.mountpoint != os.path.realpath(path):
        os.close(fd)
        raise DeviceFailed(
            f"{path} is not a mount point but part of {mount.mountpoint}",
            hint="Name the directory on which the filesystem is mounted.",
            mountpoint=mount.mountpoint,
        )
    return fd


def syncfs(fd: int) -> None:
    """Write back what is dirty on the filesystem of `fd`; returns when it is on the device. Raises
    DeviceFailed when some of it could not be written."""
    try:
        libc.syncfs(fd)
    except OSError as error:
        raise DeviceFailed(
            f"syncfs: {error.strerror}", hint="The kernel log tells which device failed."
        ) from error


def flush(mountpoint: str) -> None:
    """`syncfs` of the filesystem mounted there. Raises DeviceFailed."""
    fd = open_mountpoint(mountpoint)
    try:
        syncfs(fd)
    finally:
        os.close(fd)


def freeze(fd: int) -> None:
    """Freeze the filesystem of `fd`: returns when no write is going on and all is on the device.

    The freeze outlives this process: whoever calls this has a guard. Raises FreezeFailed, also
    when it was frozen already.
    """
    try:
        fcntl.ioctl(fd, FIFREEZE, 0)
    except OSError as error:
        raise FreezeFailed(_refused("frozen", error), hint=_freeze_hint(error)) from None


def thaw(fd: int) -> bool:
    """Thaw the filesystem of `fd`. False: it was not frozen (EINVAL). Raises FreezeFailed."""
    try:
        fcntl.ioctl(fd, FITHAW, 0)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise FreezeFailed(_refused("thawed", error), hint=_freeze_hint(error)) from None
    return True


def _refused(done: str, error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return "the filesystem is frozen already, by someone else"
    return f"the filesystem cannot be {done}: {error.strerror}"


def _freeze_hint(error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return "Find who froze it; `splitmirror release` or `fsfreeze -u` thaws it."
    if error.errno == errno.EPERM:
        return "Freezing needs CAP_SYS_ADMIN: run as root."
    if error.errno == errno.EOPNOTSUPP:
        return "This kind of filesystem cannot be frozen; ext4, xfs and btrfs can."
    return "The kernel log may tell more."
