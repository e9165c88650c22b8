"""A raid1 array of device-mapper: who is in it, how it is, and what its superblocks say.

Sources: Documentation/admin-guide/device-mapper/dm-raid.rst (table and status), struct
dm_raid_superblock, super_load and super_validate in drivers/md/dm-raid.c, md_update_sb in md.c.

An image that is put back is brought up to date only if the superblock of the images that stayed
says that it had left, and is newer than its own. The kernel writes that only at the array's next
pause in writing. A volume that is written without a pause of 0.2 s and gets its image back has no
such superblock: the image counts as level, nothing is copied, and the legs differ for good, in
silence (kernel 6.1, lvm2 2.03.16; `lvconvert --merge` too). Therefore `mark`.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from splitmirror.errors import DeviceFailed, UnsafeMirror
from splitmirror.system import blockdev
from splitmirror.system.devicemapper import SECTOR, DeviceMapper, Target

IN_SYNC, BEHIND, FAILED, ABSENT = "A", "a", "D", "-"  # of an image, in `health`
_SUPERBLOCK = struct.Struct("<4sIIIQQ")  # magic, features, devices, position, events, failed
_MAGIC = b"DmRd"
_PAUSES = 8  # two or three suffice: each, or every other one, writes a newer superblock
_NONE = ("-", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Array:
    """An array's table. `pairs`: for each position (metadata, data) as "major:minor", or "-"."""

    target: Target
    pairs: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, targets: Sequence[Target]) -> Array:
        """Raises UnsafeMirror when the table is not one raid1 array from begin to end."""
        if len(targets) != 1 or (targets[0].kind, targets[0].arguments[:1]) != ("raid", ("raid1",)):
            kinds = " and ".join(target.kind for target in targets) or "nothing"
            raise UnsafeMirror(
                f"a mirrored volume is {kinds} to device-mapper, not one raid1 array",
                hint="Snapshots, caches and thin pools on it are not supported: `dmsetup table`.",
            )
        words = targets[0].arguments
        begin = 2 + int(words[1])
        pairs = words[begin + 1 : begin + 1 + 2 * int(words[begin])]
        return cls(target=targets[0], pairs=tuple(zip(pairs[::2], pairs[1::2], strict=True)))

    def present(self, position: int) -> bool:
        return self.pairs[position] != _NONE

    def without(self, position: int) -> Target:
        """The table in which that image is not there. The kernel keeps track of what changes."""
        words = list(self.target.arguments)
        at = len(words) - 2 * (len(self.pairs) - position)
        words[at : at + 2] = _NONE
        return dataclasses.replace(self.target, arguments=tuple(words))


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayStatus:
    """How an array is. `health`: a letter for each position. `done` of `total` bytes are in sync,
    or have been read by the check. `mismatched`: bytes that the last check found to differ."""

    health: str
    done: int
    total: int
    action: str
    mismatched: int

    @classmethod
    def of(cls, targets: Sequence[Target]) -> ArrayStatus:
        _kind, _count, health, ratio, action, mismatches, *_ = targets[0].arguments
        done, total = (int(sectors) * SECTOR for sectors in ratio.split("/"))
        return cls(
            health=health,
            done=done,
            total=total,
            action=action,
            mismatched=int(mismatches) * SECTOR,
        )

    @property
    def level(self) -> bool:
        """Every image that is there is in sync, and nothing is being copied."""
        copied = self.action == "check" or (self.action == "idle" and self.done >= self.total)
        return copied and set(self.health) <= {IN_SYNC}


@dataclass(frozen=True, slots=True, kw_only=True)
class Superblock:
    """What an image's metadata says: how new it is, and the positions that had left (bits)."""

    events: int
    failed: int


def superblock(meta_devno: int) -> Superblock:
    """The superblock of an image, from its metadata device. Raises DeviceFailed."""
    path = blockdev.devno_path(meta_devno)
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as page:  # O_DIRECT wants aligned memory
            fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
            try:
                os.preadv(fd, [page], 0)
            finally:
                os.close(fd)
            magic, _, _, _, events, failed = _SUPERBLOCK.unpack_from(page)
    except OSError as error:
        raise DeviceFailed(f"{path} cannot be read: {error.strerror}", hint="dmesg") from None
    if magic != _MAGIC:
        raise DeviceFailed(f"{path} has no superblock of dm-raid", hint="Is it the right device?")
    return Superblock(events=events, failed=failed)


def mark(array: Array, position: int, leg_meta: int, pause: Callable[[], None]) -> bool:
    """Have all that stayed note that the image at `position` has left, and be newer than it, so
    that it is brought up to date when it comes back: each `pause` of the array makes the kernel
    write their superblocks. Noted already: nothing is done. False: it does not come about, and the
    image must be copied anew. Raises DeviceFailed when one that stayed cannot be read.

    Where the leg cannot be read (its disk came back as another device, and its table is of the old
    one) theirs must have been written anew twice: a leg that left is ahead by one at the most.
    """
    stayed = [parse_devno(meta) for meta, _ in array.pairs if meta != ABSENT]
    try:
        newer_than = superblock(leg_meta).events
    except DeviceFailed:
        newer_than = 1 + max(superblock(meta).events for meta in stayed)
    for pauses in range(_PAUSES + 1):
        if pauses:
            pause()
        if stayed and all(_notes(meta, position, newer_than) for meta in stayed):
            return True
    return False


def _notes(meta: int, position: int, newer_than: int) -> bool:
    one = superblock(meta)
    return bool(one.failed & 1 << position) and one.events > newer_than


def pause_under_guard(dm: DeviceMapper, devno: int) -> None:
    """Suspend and resume: quick, but a process that dies between them leaves it suspended."""
    try:
        dm.suspend(devno)
    finally:
        dm.resume(devno)


def pause_alone(dm: DeviceMapper, devno: int) -> None:
    """The same in one call to the kernel, for which no guard is needed: the table that is in use is
    loaded once more and taken."""
    dm.load(devno, dm.table(devno))
    dm.resume(devno)


def parse_devno(text: str) -> int:
    major, _, minor = text.partition(":")
    return os.makedev(int(major), int(minor))
