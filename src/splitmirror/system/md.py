"""md arrays as the kernel shows and takes them in /sys/block/mdX/md.

Sources: Documentation/admin-guide/md.rst, drivers/md/md.c. No program is run here: what lies in the
write pause is one write to an open file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from splitmirror.errors import Busy, DeviceFailed, LegError, MirrorError, MirrorNotReady
from splitmirror.system import blockdev, mdsuper
from splitmirror.system.mdsuper import Superblock

_SECTOR: Final = 512
_POLL_S: Final = 0.005
_LETTING_GO_S: Final = 5.0
_BLOCK: Final = Path("/sys/class/block")
_SYNCING: Final = frozenset(("resync", "recover", "reshape"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A device in an array. `state`: as the kernel words it: in_sync, faulty, spare, write_mostly …
    `slot`: its place among the mirrors; None for one that has none (a spare, a faulty one).
    `bad_blocks`: it has blocks on which the mirror's data do not stand. `device`: its own UUID, by
    which it is found under whatever name; "" when its superblock cannot be read."""

    name: str  # of its directory in the array's, without "dev-"
    path: str
    devno: int
    state: frozenset[str]
    slot: int | None
    data_offset: int
    bad_blocks: bool
    device: str

    @property
    def in_sync(self) -> bool:
        return "in_sync" in self.state and "faulty" not in self.state and self.slot is not None

    @property
    def joining(self) -> bool:
        """It is none of the mirrors yet but will be, unless the array lacks none."""
        return not self.state & {"in_sync", "faulty", "journal"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Array:
    """An array at one moment. `uuid`: "" when no member has a superblock of version 1.1 or 1.2.
    `missing`: mirrors that it has too few. `syncing`: resync, recover or reshape goes on or waits;
    `done`, `total`: how far, in bytes. `bitmap`: "internal", "none", or where else it is."""

    name: str
    path: str
    devno: int
    uuid: str
    level: str
    metadata: str
    state: str
    disks: int
    size: int
    missing: int
    syncing: bool
    done: int
    total: int
    bitmap: str
    chunk: int
    write_behind: bool
    members: tuple[Member, ...]

    @property
    def sysfs(self) -> Path:
        return _md(self.name)

    @property
    def active(self) -> bool:
        return self.state not in ("", "clear", "inactive")

    @property
    def in_sync(self) -> tuple[Member, ...]:
        """The members that hold all data, by their slots."""
        found = [member for member in self.members if member.in_sync]
        return tuple(sorted(found, key=lambda member: member.slot or 0))

    def member(self, device: str) -> Member | None:
        """The member with that UUID of its own."""
        return next((member for member in self.members if member.device == device), None)


def array(device: str) -> Array:
    """The array of a device node such as /dev/md0 or /dev/md/data. Raises MirrorNotReady when there
    is no such array, assembled."""
    try:
        name = os.path.basename(os.path.realpath(device))
        devno = blockdev.devno_of(device)
    except DeviceFailed:
        raise MirrorNotReady(
            f"there is no array {device}",
            hint="Assemble it: mdadm --assemble --scan. `cat /proc/mdstat` shows what there is.",
        ) from None
    if not (_md(name) / "level").exists():
        raise MirrorNotReady(
            f"{device} is not an md array", hint="Name one that `cat /proc/mdstat` shows."
        )
    return _read_array(name, devno)


def arrays() -> Iterator[Array]:
    """Every array of this host, the inactive ones too."""
    for place in sorted(Path("/sys/block").glob("md*/md")):
        with contextlib.suppress(OSError, DeviceFailed, MirrorNotReady):
            yield array(f"/dev/{place.parent.name}")


def holding(path: str) -> tuple[Array, Member] | None:
    """The array that has a device as a member, and that member; None when none has."""
    devno = os.stat(path).st_rdev
    for found in arrays():
        for member in found.members:
            if member.devno == devno:
                return found, member
    return None


def device_of(array_uuid: str, device_uuid: str, last_seen: str) -> str | None:
    """The block device that carries that superblock, wherever it is now; None when none does."""
    others = sorted(f"/dev/{place.name.replace('!', '/')}" for place in _BLOCK.iterdir())
    for path in (last_seen, *others):
        carried = _superblock(path)
        ours = carried and (carried.array_uuid, carried.device_uuid) == (array_uuid, device_uuid)
        if ours and not _is_path_of_many(path):
            return path
    return None


def _is_path_of_many(path: str) -> bool:
    """One of the paths to a disk that device-mapper makes one of (multipath)."""
    holders = _BLOCK / os.path.basename(os.path.realpath(path)) / "holders"
    return holders.is_dir() and any(holder.name.startswith("dm-") for holder in holders.iterdir())


def _md(name: str) -> Path:
    return Path(f"/sys/block/{name}/md")


def _read_array(name: str, devno: int) -> Array:
    sysfs = _md(name)
    members, uuids = [], []
    for member, uuid in _members(sysfs):
        members.append(member)
        uuids.append(uuid)
    action, waits = text(sysfs / "sync_action"), text(sysfs / "resync_start")
    done, total = _done(text(sysfs / "sync_completed"))
    return Array(
        name=name,
        path=f"/dev/{name}",
        devno=devno,
        uuid=next(filter(None, uuids), ""),
        level=text(sysfs / "level"),
        metadata=text(sysfs / "metadata_version"),
        state=text(sysfs / "array_state"),
        disks=int(text(sysfs / "raid_disks") or 0),
        size=int(text(sysfs.parent / "size") or 0) * _SECTOR,
        missing=int(text(sysfs / "degraded") or 0),
        syncing=action in _SYNCING or waits not in ("", "none"),
        done=done,
        total=total,
        bitmap=_bitmap(sysfs),
        chunk=int(text(sysfs / "bitmap/chunksize") or 0),
        write_behind=text(sysfs / "bitmap/backlog") not in ("", "0"),
        members=tuple(members),
    )


def _members(sysfs: Path) -> Iterator[tuple[Member, str]]:
    """Each member, and the UUID of the array that its superblock names."""
    for place in sorted(sysfs.glob("dev-*")):
        with contextlib.suppress(OSError, DeviceFailed, ValueError):  # one that is just leaving
            devno = blockdev.parse_devno((place / "block/dev").read_text().strip())
            path, slot = blockdev.devno_path(devno), text(place / "slot")
            carried = _superblock(path)
            member = Member(
                name=place.name.removeprefix("dev-"),
                path=path,
                devno=devno,
                state=frozenset(text(place / "state").split(",")),
                slot=int(slot) if slot.isdecimal() else None,
                data_offset=int(text(place / "offset")) * _SECTOR,
                bad_blocks=any(
                    text(place / log) for log in ("bad_blocks", "unacknowledged_bad_blocks")
                ),
                device=carried.device_uuid if carried else "",
            )
            yield member, carried.array_uuid if carried else ""


def _superblock(path: str) -> Superblock | None:
    try:
        return mdsuper.superblock(path)
    except OSError:
        return None


def _bitmap(sysfs: Path) -> str:
    location = text(sysfs / "bitmap/location")
    if location.lstrip("+-").isdecimal():
        return "internal"
    return location or "none"


def _done(words: str) -> tuple[int, int]:
    """sync_completed: "none", "delayed", or "123 / 4567" in sectors."""
    done, slash, total = words.partition(" / ")
    return (int(done) * _SECTOR, int(total) * _SECTOR) if slash else (0, 0)


def text(path: Path) -> str:
    """What a file of sysfs says; "" when it is not there, or does not say."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


# --- what is told to an array


def open_state(found: Array, member: Member) -> int:
    """A descriptor through which `fail` parts that member. Raises MirrorError."""
    try:
        return os.open(_state(found, member), os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MirrorError(
            f"{member.path} of {found.path} cannot be told anything: {error.strerror}",
            hint="It needs root, and /sys writable.",
        ) from None


def fail(state_fd: int) -> None:
    """Part a member: when this returns the array writes nothing more to it.

    The array goes on as soon as the others' superblocks say so, some milliseconds after. Raises
    MirrorNotReady when it is not in sync, or holds the only copy.
    """
    try:
        said = os.pread(state_fd, 4096, 0).decode().strip()
        if "in_sync" in said.split(","):
            os.write(state_fd, b"faulty")
            return
    except OSError as error:
        said = "the only one in sync" if error.errno == errno.EBUSY else str(error.strerror)
    raise MirrorNotReady(
        f"the leg cannot be parted: it is {said}",
        hint="A disk of the array failed meanwhile: see /proc/mdstat and the kernel log.",
    )


def remove(found: Array, member: Member, limit_s: float) -> None:
    """Take a faulty member, or a spare, out of its array. It may take some ten milliseconds until
    nothing uses it any more. Raises LegError after `limit_s`."""
    until = time.monotonic() + limit_s
    while True:
        try:
            write(_state(found, member), "remove")
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > until:
                raise LegError(
                    f"{member.path} cannot be taken out of {found.path}: {error.strerror}",
                    hint="See /proc/mdstat and the kernel log.",
                ) from None
            time.sleep(_POLL_S)
        else:
            return


def go_on(found: Array) -> None:
    """Let an array that was assembled read-only until its first write do what it must: copy to a
    member that it lacks. Harmless for any other."""
    if found.state == "read-auto":
        with contextlib.suppress(OSError):  # then it waits for that write
            write(found.sysfs / "array_state", "clean")


def stop(found: Array) -> None:
    """Disassemble an array. Waits a moment for udev to let go of a new one. Raises Busy while
    something uses it."""
    until = time.monotonic() + _LETTING_GO_S
    while True:
        try:
            write(found.sysfs / "array_state", "clear")
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > until:
                raise Busy(
                    f"{found.path} cannot be stopped: {error.strerror}",
                    hint=f"Unmount what is on it, then: mdadm --stop {found.path}",
                ) from None
            time.sleep(_POLL_S)
        else:
            return


def _state(found: Array, member: Member) -> Path:
    return found.sysfs / f"dev-{member.name}" / "state"


def write(path: Path, words: str) -> None:
    """Tell something to a file of sysfs. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, words.encode())
    finally:
        os.close(fd)
