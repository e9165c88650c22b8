"""Copies of files that share their blocks with the original, and appear under a name only whole.

Sources: ioctl_ficlone(2), O_TMPFILE in open(2), ioctl_iflags(2), ioctl_xfs_fsgetxattr(2),
linux/fs.h. A clone that a signal
cuts short leaves a part behind (xfs_reflink_remap_blocks and btrfs_clone look for one between two
extents). So it is made in a file without a name, which the kernel takes away with its last
descriptor, and gets its name when it is complete.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from splitmirror.model import NOT_PLAIN, ExtentFlag
from splitmirror.system import fiemap

FICLONE = 0x40049409  # _IOW(0x94, 9, int)
FICLONERANGE = 0x4020940D  # _IOW(0x94, 13, struct file_clone_range)
FS_IOC_GETFLAGS = 0x80086601  # _IOR('f', 1, long); the kernel reads and writes an int
FS_IOC_SETFLAGS = 0x40086602
FS_IOC_FSGETXATTR = 0x801C581F  # _IOR('X', 31, struct fsxattr)
FS_IOC_FSSETXATTR = 0x401C5820  # _IOW('X', 32, struct fsxattr)
_NODEFRAG = 0x2000  # FS_XFLAG_NODEFRAG
_NOCOW = 0x00800000  # FS_NOCOW_FL: chattr +C on btrfs, with which files have no checksums

# Extents of which equal places do not show that they are the same bytes.
_NEVER_KNOWN = NOT_PLAIN | ExtentFlag.UNWRITTEN

_FLAGS = struct.Struct("=i4x")
_FSXATTR = struct.Struct("=I24s")  # flags, and the rest
_RANGE = struct.Struct("=qQQQ")  # source's descriptor, its offset, length, the clone's offset
_EXTENTS_AT_ONCE = 64  # writers wait for one ioctl, about 1 ms on xfs; then it is their turn
_SHORT = 1 << 20  # bytes; a file up to this size is cloned at once
_SHRINKING = 5  # so often a file that shrinks is begun again, before writers have to wait for it
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


def clone_early(source: int, into: int) -> frozenset[bytes]:
    """A clone that is made while the source is written to, a little at a time, to be renewed when
    it stands still; gives what was cloned, for `renew`. Raises what `clone` does."""
    size = os.fstat(source).st_size
    for begin, end in _pieces(fiemap.records(source, sync=True)):
        _clone_range(source, into, begin, end, size)
    os.ftruncate(into, size)
    return frozenset(r for r in fiemap.records(into) if not fiemap.flags_of(r) & _NEVER_KNOWN)


def clone_live(source: int, into: int) -> None:
    """Clone a file that is written to, grows or shrinks meanwhile, a little at a time, so that no
    write waits long. Only what lies in one extent is of one instant. Raises what `clone` does."""
    for _ in range(_SHRINKING):
        size = os.fstat(source).st_size
        try:
            if size <= _SHORT:
                clone(source, into)
                return
            for begin, end in _pieces(fiemap.records(source, sync=True)):
                if begin < size:  # beyond it is what the filesystem has preallocated
                    _ioctl_range(source, into, begin, 0 if end >= size else end - begin)
            os.ftruncate(into, max(size, os.fstat(into).st_size))
            return
        except OSError as error:
            if error.errno != errno.EINVAL or os.fstat(source).st_size >= size:
                raise
        os.ftruncate(into, 0)
    clone(source, into)


def _pieces(records: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """(begin, end) of what is cloned at once of the extents of a file."""
    for at in range(0, len(records), _EXTENTS_AT_ONCE):
        first, last = records[at], records[min(at + _EXTENTS_AT_ONCE, len(records)) - 1]
        yield fiemap.range_of(first)[0], sum(fiemap.range_of(last))


def renew(source: int, into: int, known: frozenset[bytes]) -> None:
    """Make an early clone whole: what the source has otherwise by now is cloned again. The source
    stands still. Takes half a microsecond for each of its extents, beside those that changed.

    An extent that both files have at the same place is the same blocks. Neither filesystem
    overwrites a block in place that two files share, nor gives it to a third. Raises what `clone`
    does.
    """
    size = os.fstat(source).st_size
    if os.fstat(into).st_size != size:
        os.ftruncate(into, 0)
        clone(source, into)
        return
    now = fiemap.records(source, sync=True)
    changed = known.symmetric_difference(now)
    for begin, end in _merged(sorted(map(fiemap.range_of, changed))):
        _clone_range(source, into, begin, end, size)


def _merged(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(begin, end) of ranges that are given as (offset, length), in order; those that touch as
    one."""
    begin = end = 0
    for offset, length in ranges:
        if offset > end:
            if end > begin:
                yield begin, end
            begin = offset
        end = max(end, offset + length)
    if end > begin:
        yield begin, end


def _clone_range(source: int, into: int, begin: int, end: int, size: int) -> None:
    """Clone from `begin` to `end`, to the end of the file at most. Holes become holes."""
    end = min(end, size)
    if begin < end:
        _ioctl_range(source, into, begin, end - begin)


def _ioctl_range(source: int, into: int, begin: int, length: int) -> None:
    """Clone whole blocks; length 0: up to the end of the file, wherever that is by now."""
    fcntl.ioctl(into, FICLONERANGE, _RANGE.pack(source, begin, length, begin))


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


def keep_in_place(directory_fd: int) -> None:
    """Have the files that will be made in a directory on xfs, at any depth, left alone by its
    defragmenter: their blocks stay where they are. Raises OSError."""
    answer = bytearray(_FSXATTR.size)
    fcntl.ioctl(directory_fd, FS_IOC_FSGETXATTR, answer)
    flags, rest = _FSXATTR.unpack(answer)
    fcntl.ioctl(directory_fd, FS_IOC_FSSETXATTR, _FSXATTR.pack(flags | _NODEFRAG, rest))


def _flags(fd: int) -> int:
    answer = fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(_FLAGS.size))
    return int(_FLAGS.unpack(answer)[0])


def _set_flags(fd: int, flags: int) -> None:
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, _FLAGS.pack(flags))
