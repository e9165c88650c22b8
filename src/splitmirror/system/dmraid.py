"""A raid1 array of device-mapper: who is in it, how it is, and what its superblocks say.

Sources: Documentation/admin-guide/device-mapper/dm-raid.rst (table and status), struct
dm_raid_superblock, super_load and super_validate in drivers/md/dm-raid.c, md_update_sb in md.c.

An image that is put back is brought up to date only if the superblock of the images that stayed
says that it had left, and is newer than its own. The kernel writes that only at the array's next
pause in writing. A volume that is written without a pause of 0.2 s and gets its image back has no
such superblock: the image counts as level, nothing is copied, and the legs differ for good, in
silence (kernel 6.1, lvm2 2.03.16; `lvconvert --merge` too). Therefore `is_marked`, and the suspend
and resume that makes it true.
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
_PAUSES = 6  # two or three suffice: each writes a newer superblock
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


def is_marked(array: Array, position: int, leg_meta: int) -> bool:
    """Whether all that stayed know that the image at `position` has left, so that it is brought up
    to date when it comes back. Raises DeviceFailed when a superblock cannot be read."""
    leg = superblock(leg_meta)
    stayed = [superblock(parse_devno(meta)) for meta, _ in array.pairs if meta != ABSENT]
    return bool(stayed) and all(
        one.failed & 1 << position and one.events > leg.events for one in stayed
    )


def mark(array: Array, position: int, leg_meta: int, pause: Callable[[], None]) -> bool:
    """Have all that stayed note that the image has left: each `pause` of the array makes the kernel
    write its superblock. False: it does not come about, so that the image must be copied anew."""
    for _ in range(_PAUSES):
        if is_marked(array, position, leg_meta):
            return True
        pause()
    return is_marked(array, position, leg_meta)


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
