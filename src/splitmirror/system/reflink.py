"""Copies of files that share their blocks with the original, and appear under a name only whole.

Sources: ioctl_ficlone(2), O_TMPFILE in open(2), ioctl_iflags(2), linux/fs.h. A clone that a signal
cuts short leaves a part behind (xfs_reflink_remap_blocks and btrfs_clone look for one between two
extents). So it is made in a file without a name, which the kernel takes away with its last
descriptor, and gets its name when it is complete.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

FICLONE = 0x40049409  # _IOW(0x94, 9, int)
FS_IOC_GETFLAGS = 0x80086601  # _IOR('f', 1, long); the kernel reads and writes an int
FS_IOC_SETFLAGS = 0x40086602
_NOCOW = 0x00800000  # FS_NOCOW_FL: chattr +C on btrfs, with which files have no checksums

_FLAGS = struct.Struct("=i4x")
_PROBED = 64 << 10  # a block of any filesystem; xfs has them up to 64 KiB


def nameless(directory_fd: int, like: int) -> int:
    """A new empty file in a directory, without a name, to be a clone of the file `like`: on btrfs
    only files that both have checksums, or both have none, can share blocks. Raises OSError
    (EOPNOTSUPP where there are no such files)."""
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    fd = os.open(".", flags, 0o400, dir_fd=directory_fd)
    try:
        if nocow(like) and not nocow(fd):
            _set_flags(fd, _flags(fd) | _NOCOW)
    except BaseException:
        os.close(fd)
        raise
    return fd


def clone(source: int, into: int) -> None:
    """Make the file `into` share all blocks of the file `source`, whose dirty pages are written
    back first. Writers of the source wait meanwhile: microseconds for each of its extents.

    Raises OSError: EOPNOTSUPP, EINVAL or EXDEV where it cannot be, ENOSPC, EINTR.
    """
    fcntl.ioctl(into, FICLONE, source)


def publish(fd: int, directory_fd: int, name: str) -> None:
    """Give a nameless file its name, at once and whole. Raises OSError (EEXIST)."""
    # With a directory's descriptor Python calls linkat(2), which alone can follow the link.
    os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory_fd, follow_symlinks=True)


def probe(source_directory: Path, directory: Path, like: int) -> None:
    """Clone a little from a file in one directory into one in another; nothing is left, even when
    this process is killed. Raises OSError where that cannot be."""
    source_dir_fd = os.open(source_directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    opened = [source_dir_fd, directory_fd]
    try:
        opened.append(source := nameless(source_dir_fd, like))
        opened.append(target := nameless(directory_fd, like))
        os.pwrite(source, b"splitmirror".ljust(_PROBED, b"."), 0)
        clone(source, target)
    finally:
        for fd in opened:
            os.close(fd)


def nocow(fd: int) -> bool:
    """Whether a file on btrfs is overwritten in place, without checksums. False where files have no
    such flags."""
    try:
        return bool(_flags(fd) & _NOCOW)
    except OSError:
        return False


def _flags(fd: int) -> int:
    answer = fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(_FLAGS.size))
    return int(_FLAGS.unpack(answer)[0])


def _set_flags(fd: int, flags: int) -> None:
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, _FLAGS.pack(flags))
