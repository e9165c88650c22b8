"""Parting the legs of raid1 volumes at device-mapper level, and giving them back.

Sources: dm_suspend and dm_resume in drivers/md/dm.c, drivers/md/dm-raid.c; see system/dmraid.py for
why a leg is marked.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from splitmirror.errors import DeviceFailed, LegError, MirrorError, UnsafeMirror
from splitmirror.system import blockdev, dmraid, lvm
from splitmirror.system.deadline import uninterrupted
from splitmirror.system.devicemapper import DeviceMapper
from splitmirror.system.dmraid import Array, ArrayStatus
from splitmirror.system.lvm import Image, RaidVolume
from splitmirror.system.partedrecord import PartedRecord, PartedVolume
from splitmirror.system.process import boot_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A volume of the record, and its array as it is now."""

    volume: PartedVolume
    devno: int
    array: Array

    @property
    def parted(self) -> bool:
        """Whether the leg has left the array."""
        return not self.array.present(self.volume.position)


def device_of(dm: DeviceMapper, volume: PartedVolume) -> Device:
    """Raises DeviceFailed when it is not there, or is another one."""
    devno = blockdev.devno_of(volume.path)
    if dm.info(devno).uuid != volume.uuid:
        raise DeviceFailed(f"{volume.path} is another device now", hint="It was made anew.")
    return Device(volume=volume, devno=devno, array=Array.of(dm.table(devno)))


def parted(dm: DeviceMapper, record: PartedRecord) -> list[Device]:
    """Those volumes of a record whose legs have left their arrays."""
    devices = []
    for volume in record.volumes:
        with contextlib.suppress(DeviceFailed, UnsafeMirror):
            devices.append(device_of(dm, volume))
    return [device for device in devices if device.parted]


# --- the split


def part_all(dm: DeviceMapper, devices: Sequence[Device], enough: int | None) -> None:
    """Suspend all, look once more, resume all with the tables that were loaded for them: one
    instant. `enough`: so many legs in sync suffice; None: all must be. Whatever happens, none stays
    suspended; on an error none is parted, or (a table that does not take) some are. Raises
    MirrorError, DeviceFailed. The caller has a guard."""
    with uninterrupted(), contextlib.ExitStack() as resumed:
        try:
            for device in devices:
                resumed.callback(_resume, dm, device)
                dm.suspend(device.devno)
            for device in devices:
                _check_suspended(dm, device, enough)
        except BaseException:
            for device in devices:
                with contextlib.suppress(DeviceFailed):
                    dm.clear(device.devno)  # so that it goes on with the table that it had
            raise


def _check_suspended(dm: DeviceMapper, device: Device, enough: int | None) -> None:
    """At the very instant: it stands still, and its legs were in sync until then."""
    health = ArrayStatus.of(dm.status(device.devno)).health
    in_sync = health[device.volume.position] == dmraid.IN_SYNC
    in_sync = in_sync and health.count(dmraid.IN_SYNC) >= (enough or len(health))
    if in_sync and dm.info(device.devno).suspended:
        return
    what = "someone resumed it" if in_sync else f"its legs are {health}"
    raise MirrorError(
        f"{device.volume.name} was not split: {what} at that moment",
        hint="Look for a failed disk (`lvs -a -o+devices`, dmesg); then run the backup again.",
    )


def _resume(dm: DeviceMapper, device: Device) -> None:
    """Resume; where the new table does not take, with the old one."""
    try:
        dm.resume(device.devno)
    except DeviceFailed:
        dm.load(device.devno, [device.array.target])
        dm.resume(device.devno)
        raise


def mark(dm: DeviceMapper, volume: PartedVolume) -> None:
    """Have the array note, durably, that the leg has left. A second call is harmless. The caller
    has a guard. Raises MirrorError when it has not left, or cannot be marked."""
    device = device_of(dm, volume)
    meta = blockdev.devno_of(volume.meta_path)
    pause = partial(dmraid.pause_under_guard, dm, device.devno)
    if not device.parted or not dmraid.mark(device.array, volume.position, meta, pause):
        raise MirrorError(
            f"{volume.name} did not part from its leg {volume.image}",
            hint="The kernel log may tell why. Run `splitmirror resync`.",
        )


# --- the leg


def seen(dm: DeviceMapper, volume: PartedVolume, record: PartedRecord) -> PartedVolume:
    """Prove that the leg is parted and is the one that was split, and drop what is cached of it.
    Gives the volume with what the next look is compared with. Raises LegError."""
    try:
        device = device_of(dm, volume)
        if not device.parted:
            raise _was_put_back(volume, record)
        if dm.info(blockdev.devno_of(volume.image_path)).uuid != volume.image_uuid:
            raise DeviceFailed(f"{volume.image_path} is another device now", hint="Look at it.")
        events = volume.events
        if Path(volume.meta_path).exists():  # not after a reboot, when no table has a use for it
            events = dmraid.superblock(blockdev.devno_of(volume.meta_path)).events
        _flush(volume)
    except (DeviceFailed, UnsafeMirror, OSError) as error:
        raise LegError(
            f"the leg {volume.image} cannot be read: {error}",
            hint="Is its disk gone (`pvs`, dmesg)? The primary is unharmed. Run `splitmirror "
            "recover` if the backup was cut off, then back up again.",
        ) from error
    if volume.events not in (None, events):  # it was put back, and parted again
        raise _was_put_back(volume, record)
    return replace(volume, events=events)


def _flush(volume: PartedVolume) -> None:
    """Drop what is cached of the leg, which was written below its cache; and read from it."""
    fd = os.open(volume.image_path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if blockdev.size(fd) != volume.size:
            raise DeviceFailed(f"{volume.image_path} has another size", hint="Look at it.")
        blockdev.flush_buffers(fd)
        os.pread(fd, 4096, 0)
    finally:
        os.close(fd)


def _was_put_back(volume: PartedVolume, record: PartedRecord) -> LegError:
    how = "by `lvchange --refresh`, `lvconvert --merge` or the like"
    if record.boot != boot_id():
        how = "when this host was started again"
    return LegError(
        f"the leg {volume.image} of split {record.split_id} is not parted: it was put back {how}, "
        "or was never split",
        hint="What it held at the split is gone. Run the backup again.",
        split_id=record.split_id,
    )


# --- giving it back


def put_back(dm: DeviceMapper, volume: RaidVolume, array: Array, absent: Sequence[Image]) -> None:
    """Have LVM take the legs that are absent, and those that failed and came back, into the array
    again; the kernel then brings them up to date. A leg of which that is not sure is copied anew.
    Raises MirrorError."""
    pause = partial(dmraid.pause_alone, dm, volume.devno)
    anew = [
        image for image in absent if not dmraid.mark(array, image.position, image.meta_devno, pause)
    ]
    tracked = [image for image in absent if image.tracked]
    for image in tracked:
        lvm.merge(image.name)
    if not tracked:
        lvm.refresh(volume.name)
    if dmraid.FAILED in ArrayStatus.of(dm.status(volume.devno)).health:
        # A disk that came back as another device: the array was given the leg while the leg's own
        # table was still of the old one. Now that it is of the new one, the kernel tries again.
        lvm.refresh(volume.name)
    for image in anew:
        lvm.rebuild(volume.name, image.pvs)
