"""File extents from the kernel, normalized to `model.ExtentMap`; holes and data ranges.

Sources: Documentation/filesystems/fiemap.rst, linux/fiemap.h, fallocate(2), lseek(2). A map is
only valid after syncfs or a freeze of the whole filesystem: FIEMAP_FLAG_SYNC covers one file.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator
from fcntl import ioctl

from splitmirror.errors import DeviceFailed
from splitmirror.model import ExtentFlag, ExtentMap
from splitmirror.system import libc

FS_IOC_FIEMAP = 0xC020660B  # _IOWR('f', 11, struct fiemap)
FIEMAP_FLAG_SYNC = 0x1

_HEAD = struct.Struct("<QQIIII")  # start, length, flags, mapped, count, reserved
_EXTENT = struct.Struct("<QQQQQIIII")  # logical, physical, length, 2 reserved, flags, 3 reserved
_FIRST = struct.Struct("<20xI8xQQQ16xI12x")  # mapped, and the first extent's four values

# Enough for nearly every file in one call, and the most that fits into 1024 bytes: fcntl.ioctl
# keeps the interpreter locked while the kernel works on a longer buffer.
_BATCH = 17
_MANY = 4096  # for `records`, where the interpreter may be kept
_BUFFER_SIZE = _HEAD.size + _BATCH * _EXTENT.size

# How the extent was reported, not what it is: equal files must have equal maps.
_DROPPED = ExtentFlag.LAST | ExtentFlag.MERGED | ExtentFlag.SHARED
_DROP = int(_DROPPED)
_KEEP_MASK = ~_DROP & 0xFFFFFFFF
_LAST = int(ExtentFlag.LAST)
_WHOLE = 0xFFFFFFFFFFFFFFFF
_EMPTY = b""

_FALLOC_FL_KEEP_SIZE = 1  # linux/falloc.h
_FALLOC_FL_PUNCH_HOLE = 2

_local = threading.local()  # a mapper for each thread
_pack = ExtentMap.RECORD.pack


def fiemap(fd: int, size: int, *, sync: bool = False) -> ExtentMap:
    """The extents of an open file in its first `size` bytes.

    Two files that lie alike have equal maps: clipped to `size`, neighbours that continue one
    another merged, LAST, MERGED and SHARED dropped. `sync` writes this file's dirty pages first.
    Raises DeviceFailed where the filesystem has no extents to tell, OSError for an I/O error.
    """
    if size and sync:
        _ask(fd, _question(0, size, FIEMAP_FLAG_SYNC))
    return ExtentMap(packed_extents(fd, size))


def packed_extents(fd: int, size: int) -> bytes:
    """`fiemap` as ExtentMap.packed."""
    try:
        extents_of: Callable[[int, int], bytes] = _local.extents_of
    except AttributeError:
        extents_of = _local.extents_of = mapper()
    return extents_of(fd, size)


def count(fd: int) -> int:
    """How many extents an open file has; 0.1 to 0.3 microseconds each. Raises DeviceFailed where
    the filesystem has none to tell, OSError."""
    question = bytearray(_HEAD.pack(0, _WHOLE, 0, 0, 0, 0))  # with no room for an answer it counts
    _ask(fd, question)
    mapped: int = _HEAD.unpack(question)[3]
    return mapped


def records(fd: int, *, sync: bool = False) -> list[bytes]:
    """Every extent of an open file as the kernel tells it (struct fiemap_extent), in order; for
    files of many extents, 0.3 microseconds each. `sync` writes this file's dirty pages first.
    `range_of` reads one. Raises DeviceFailed, OSError."""
    found: list[bytes] = []
    start, flags = 0, FIEMAP_FLAG_SYNC if sync else 0
    while True:
        buffer = bytearray(_HEAD.pack(start, _WHOLE - start, flags, 0, _MANY, 0))
        buffer.extend(bytes(_MANY * _EXTENT.size))
        _ask(fd, buffer)
        mapped: int = _HEAD.unpack_from(buffer)[3]
        told = bytes(buffer[_HEAD.size : _HEAD.size + mapped * _EXTENT.size])
        found += [told[at : at + _EXTENT.size] for at in range(0, len(told), _EXTENT.size)]
        if mapped < _MANY or _EXTENT.unpack(found[-1])[5] & _LAST:
            return found
        start, flags = sum(range_of(found[-1])), 0


def range_of(record: bytes) -> tuple[int, int]:
    """(offset, length) of an extent of `records`; it may reach beyond the end of the file."""
    logical, _, length, *_ = _EXTENT.unpack(record)
    return logical, length


def flags_of(record: bytes) -> int:
    """ExtentFlag of an extent of `records`."""
    flags: int = _EXTENT.unpack(record)[5]
    return flags


def mapper() -> Callable[[int, int], bytes]:
    """`packed_extents` with a buffer of its own, for one thread and many files: half a microsecond
    beside the kernel's own time."""
    # The kernel leaves the question in it as it is: nothing is packed or allocated for a file.
    buffer = _question(0, _WHOLE, 0)

    def extents_of(fd: int, size: int) -> bytes:
        if not size:
            return _EMPTY
        try:
            ioctl(fd, FS_IOC_FIEMAP, buffer)
        except OSError as error:
            raise _failed(error) from None
        mapped, logical, physical, length, flags = _FIRST.unpack_from(buffer)
        if not mapped or logical >= size:
            return _EMPTY
        if logical + length >= size:
            return _pack(logical, physical, size - logical, flags & _KEEP_MASK)
        if mapped == 1 and flags & _LAST:
            return _pack(logical, physical, length, flags & _KEEP_MASK)
        return _normalize(_all(fd, buffer, size), size)

    return extents_of


def _question(start: int, length: int, flags: int) -> bytearray:
    return bytearray(_HEAD.pack(start, length, flags, 0, _BATCH, 0)).ljust(_BUFFER_SIZE, b"\0")


def _ask(fd: int, buffer: bytearray) -> None:
    try:
        ioctl(fd, FS_IOC_FIEMAP, buffer)
    except OSError as error:
        raise _failed(error) from None


def _failed(error: OSError) -> Exception:
    if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY):
        return error
    return DeviceFailed(
        "this filesystem does not tell its files' extents (FIEMAP)",
        hint="Keep the database on ext4 or xfs.",
    )


def _all(fd: int, buffer: bytearray, size: int) -> Iterator[tuple[int, int, int, int]]:
    """Every extent, asking on; `buffer` holds the first answer."""
    while True:
        (mapped,) = struct.unpack_from("<I", buffer, 20)
        if not mapped:
            return
        for at in range(_HEAD.size, _HEAD.size + mapped * _EXTENT.size, _EXTENT.size):
            logical, physical, length, _, _, flags, *_ = _EXTENT.unpack_from(buffer, at)
            yield logical, physical, length, flags
        reached = logical + length
        if flags & _LAST or reached >= size:
            return
        buffer = _question(reached, size - reached, 0)
        _ask(fd, buffer)


def _normalize(extents: Iterator[tuple[int, int, int, int]], size: int) -> bytes:
    packed: list[bytes] = []
    last: tuple[int, int, int, int] | None = None
    for logical, physical, length, flags in extents:
        length = min(length, size - logical)
        if length <= 0:  # xfs preallocates beyond the end of the file
            break
        flags &= _KEEP_MASK
        if last is not None:
            if logical < last[0] + last[2]:  # changed between two calls: told twice
                cut = last[0] + last[2] - logical
                logical, physical, length = logical + cut, physical + cut, length - cut
                if length <= 0:
                    continue
            ends = last[0] + last[2] == logical and last[1] + last[2] == physical
            if ends and last[3] == flags:
                last = (last[0], last[1], last[2] + length, flags)
                continue
            packed.append(_pack(*last))
        last = (logical, physical, length, flags)
    if last is not None:
        packed.append(_pack(*last))
    return b"".join(packed)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Make `length` bytes from `offset` a hole; the size stays. On a block device the range reads
    as zeros afterwards. Raises OSError (EOPNOTSUPP where it cannot)."""
    libc.fallocate(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length)


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what lseek(2) SEEK_DATA says is not a hole, in order, clipped to `size`.

    Moves the descriptor's position. Filesystems without the call give the whole file.
    """
    at = 0
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = min(os.lseek(fd, begin, os.SEEK_HOLE), size)
        if begin >= size:
            return
        yield begin, end - begin
        at = end
