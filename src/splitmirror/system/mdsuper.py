"""What an md member carries on itself: its superblock, versions 1.1 and 1.2, and its bitmap.

Read from the device directly, past its page cache, which md writes below. Sources:
linux/raid/md_p.h (struct mdp_superblock_1), drivers/md/md-bitmap.h (bitmap_super_t), md(4).
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from typing import Final

_SECTOR: Final = 512
_MAGIC: Final = 0xA92B4EFC
_PLACES: Final = {"1.1": 0, "1.2": 4096}  # bytes from the member's beginning
_AREA: Final = 8192  # holds both places
_BITMAP_OFFSET: Final = 1  # MD_FEATURE_BITMAP_OFFSET: there is an internal bitmap

# magic, major version, features, pad; set_uuid; name, ctime, level, layout, size, chunk, disks;
# bitmap offset; reshape; data_offset, data_size; super_offset, recovery_offset; dev_number,
# corrected reads; device_uuid; flags and bad block log; utime; events.
_SUPER: Final = struct.Struct("<4I16s32sQiIQIIi28xQQQQII16s8xQQ")

_BITMAP: Final = struct.Struct("<II16sQQQII")  # magic … events, cleared, sync_size, state, chunk
_BITMAP_HEAD: Final = 256
_BITMAP_MAGIC: Final = 0x6D746962
_LARGEST_BITMAP: Final = 64 << 20  # far above what mdadm makes


@dataclass(frozen=True, slots=True, kw_only=True)
class Superblock:
    """`events`: the array's count of changes when this was written: a member that was out of the
    array and came back has a higher one. `bitmap`: where its copy of the bitmap begins, in bytes;
    None without one. `data_offset`: where its data begin, in bytes."""

    version: str
    array_uuid: str
    device_uuid: str
    events: int
    data_offset: int
    bitmap: int | None


def superblock(path: str) -> Superblock | None:
    """The superblock of a device or partition; None when it has none of these versions, or is so
    small that it cannot. Raises OSError when it is gone or cannot be read."""
    area = _read(path, 0, _AREA)
    for version, place in _PLACES.items():
        if found := parse(area[place:], version, place):
            return found
    return None


def parse(data: bytes, version: str, place: int) -> Superblock | None:
    """A superblock that was read from the byte `place` of its device."""
    if len(data) < _SUPER.size:
        return None
    magic, major, features, _, array, *rest = _SUPER.unpack_from(data)
    bitmap, data_offset, super_offset = rest[7], rest[8], rest[10]
    if magic != _MAGIC or major != 1 or super_offset * _SECTOR != place:
        return None
    return Superblock(
        version=version,
        array_uuid=array.hex(),
        device_uuid=rest[14].hex(),
        events=rest[16],
        data_offset=data_offset * _SECTOR,
        bitmap=place + bitmap * _SECTOR if features & _BITMAP_OFFSET else None,
    )


def dirty_bytes(path: str) -> int:
    """How much of the array the bitmap on this member marks as to be copied: 0 without a bitmap.
    A member of a level array still has marks for some seconds. Raises OSError."""
    member = superblock(path)
    if member is None or member.bitmap is None:
        return 0
    begin = member.bitmap
    head = _read(path, begin, _BITMAP_HEAD)
    magic, _, _, _, _, sync_size, _, chunk = _BITMAP.unpack_from(head)
    if magic != _BITMAP_MAGIC or not chunk:
        return 0
    chunks = -(-sync_size * _SECTOR // chunk)
    length = min(-(-chunks // 8), _LARGEST_BITMAP)
    bits = _read(path, begin + _BITMAP_HEAD, length)
    marked = int.from_bytes(bits, "little") & ((1 << chunks) - 1)
    return int(min(marked.bit_count() * chunk, sync_size * _SECTOR))


def _read(path: str, offset: int, length: int) -> bytes:
    """What lies on the device itself. O_DIRECT wants whole pages, in memory and on the device."""
    page = mmap.PAGESIZE
    begin = offset // page * page
    room = -(-(offset + length - begin) // page) * page
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    try:
        with mmap.mmap(-1, room) as buffer:
            got = os.preadv(fd, [buffer], begin)
            return bytes(buffer[offset - begin : min(got, offset - begin + length)])
    finally:
        os.close(fd)
