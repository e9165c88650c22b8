"""The embedded mirror: two image files as primary and mirror disk behind a qemu-storage-daemon.

For hosts without device-mapper, and for trying splitmirror out. The daemon lies below the
filesystem and keeps, for each disk, a bitmap of what changed since the mirror was level. A split
is one transaction of copies of what is dirty, each as of that instant: before the database
overwrites a block that is not copied yet, the daemon copies the old one. docs/adr/0003 says why.

The bitmaps live in the daemon's memory: when it dies, the mirror is level no more and everything
is copied again. Nothing is written while filesystems may be frozen: a split is found by the ids of
its jobs until `leg` has recorded its end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from splitmirror.errors import (
    Busy,
    ConfigError,
    LegError,
    MirrorError,
    MirrorNotReady,
    NoRoom,
    NotOnMirror,
    PrivilegeError,
    SplitmirrorError,
    UnsafeMirror,
    WouldFreeze,
)
from splitmirror.mirrors import Feature, MirrorState, is_split, looked, no_such_split
from splitmirror.model import Filesystem, Finding, Leg, Run, Volume
from splitmirror.progress import Progress, silent
from splitmirror.system import blockjobs, images, levelling, selfprobe
from splitmirror.system.blockjobs import Copy
from splitmirror.system.filesystems import superblocks_below
from splitmirror.system.levelling import Pace
from splitmirror.system.nbdstack import Place
from splitmirror.system.openers import openers
from splitmirror.system.qmp import Monitor
from splitmirror.system.qsdstack import Stack, StackDisk, not_ready
from splitmirror.system.stackrecord import EndedSplit, StackRecord, SyncReport
from splitmirror.units import parse_size, show_size, size_setting

# Node names have 31 characters at most, of which the leg's node needs four for itself.
PROGRAMS = ("qemu-storage-daemon", "nbdfuse", "fusermount3", "setsid")  # what doctor looks for

_DISK_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,23}")
_SPLIT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SPLIT_JOB = re.compile(r"split\.(?P<disk>[^.]+)\.(?P<split_id>.+)")
# ext4 options with which it writes into fresh blocks in place instead of marking them unwritten
# first (ext4_should_dioread_nolock in fs/ext4/ext4_jbd2.h).
_ZEROES_OUT = frozenset({"nodioread_nolock", "dioread_lock", "nodelalloc", "data=journal"})


class Disk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One disk: the paths of its images. `size`: make them when they are not there yet."""

    name: str
    primary: str
    mirror: str
    size: str | int = 0

    def __post_init__(self) -> None:
        key = f"[mirror] size of the disk {self.name!r}"
        if size_setting(key, self.size) % images.SECTOR_SIZE:
            raise ConfigError(
                f"{key} = {self.size!r} is no multiple of {images.SECTOR_SIZE} bytes",
                hint="Take whole MiB or GiB.",
            )


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[mirror]` with driver = "qsd". `dir` holds sockets, logs and state.json, and must lie, as
    the images must, on nothing that will be frozen. `establish_speed`: bytes a second of every
    copy but the split's own, so that the database does not stall. `level_below`: as much may be
    left to copy at the split; `max_passes`: how often it is tried to get there."""

    dir: str
    disks: tuple[Disk, ...]
    granularity: str | int = "64KiB"
    establish_speed: str | int = "100MiB"
    level_below: str | int = "4MiB"
    max_passes: int = 8

    def __post_init__(self) -> None:
        names = [disk.name for disk in self.disks]
        wrong = [n for n in names if not _DISK_NAME.fullmatch(n) or n == selfprobe.NAME]
        if not names or wrong or len(set(names)) < len(names):
            raise ConfigError(
                f"[mirror] disks have the names {names}",
                hint="Give each of one or more disks its own name: a letter, then up to 23 "
                f"letters, digits, dashes and underscores; not {selfprobe.NAME!r}.",
            )
        paths = [self.dir, *(p for disk in self.disks for p in (disk.primary, disk.mirror))]
        if not all(Path(path).is_absolute() for path in paths):
            raise ConfigError("[mirror] has a relative path", hint="Begin each with a slash.")
        size_setting("[mirror] establish_speed", self.establish_speed, least=1)
        size_setting("[mirror] level_below", self.level_below)
        if self.max_passes < 1:
            raise ConfigError(
                f"[mirror] max_passes = {self.max_passes} copies nothing", hint="Take 1 or more."
            )
        granularity = size_setting("[mirror] granularity", self.granularity)
        if not 4096 <= granularity <= 1 << 20 or granularity & (granularity - 1):
            raise ConfigError(
                f"[mirror] granularity is {self.granularity}",
                hint="Take a power of two from 4KiB to 1MiB; 64KiB serves most.",
            )

    @property
    def pace(self) -> Pace:
        return Pace(
            speed=parse_size(self.establish_speed),
            level_below=parse_size(self.level_below),
            max_passes=self.max_passes,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A split that only has to be told to the daemon."""

    split_id: str
    monitor: Monitor
    actions: list[dict[str, Any]]


def open_mirror(settings: Settings, state_dir: Path) -> QsdMirror:
    """The mirror of these settings, connected to nothing yet."""
    return QsdMirror(settings)


class QsdMirror:
    """See `Mirror`, `Preparing` and `Attachable`. The daemon survives this object and this
    process."""

    features = frozenset({Feature.GROUP_SPLIT, Feature.ATTACHES, Feature.PREPARES})

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._disks = tuple(
            StackDisk(name=disk.name, primary=Path(disk.primary), mirror=Path(disk.mirror))
            for disk in settings.disks
        )
        place = Place(directory=Path(settings.dir))
        self._directory = place.directory
        self._stack = Stack(place, self._disks, parse_size(settings.granularity))
        self._file = self._stack.file
        self._prepared: _Prepared | None = None

    # --- what it is doing

    def volumes(self) -> tuple[Volume, ...]:
        record, _ = self._stack.talk()
        return record.volumes

    def state(self) -> MirrorState:
        record = None
        try:
            record = self._file.read()
            record, monitor = self._stack.talk()
            parted = _parted(record, monitor)
            dirty = self._stack.dirty_bytes(record, monitor)
        except SplitmirrorError as error:
            return MirrorState(
                attached=not isinstance(error, MirrorNotReady),
                level=False,
                dirty_bytes=0,
                split_id=record.split.split_id if record and record.split else None,
                why=str(error),
            )
        why = _why(record, parted)
        return MirrorState(
            attached=True, level=not why, dirty_bytes=dirty, split_id=parted, why=why
        )

    @property
    def last_sync(self) -> SyncReport | None:
        """What the last synchronization of this attachment did; None: there was none."""
        record = self._file.read()
        return record.last_sync if record else None

    def close(self) -> None:
        self._stack.close()

    # --- attach and detach

    def attach(self) -> tuple[Volume, ...]:
        if os.geteuid() != 0:
            raise PrivilegeError(
                "attaching a mirror makes block devices: it needs root", hint="Run it with sudo."
            )
        self._make_directory()
        with self._file.locked():
            with contextlib.suppress(MirrorNotReady):
                return self.volumes()
            self._stack.take_down()  # what a dead daemon or a cut-off attach left
            with ExitStack() as undo:
                sizes = self._make_images(undo)
                undo.callback(self._stack.take_down)
                record = self._stack.start(sizes)
                undo.pop_all()
            return record.volumes

    def detach(self) -> None:
        if self._directory.is_dir():
            with self._file.locked():
                self._stack.take_down()

    def _make_directory(self) -> None:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise MirrorError(
                f"{self._directory} cannot be made: {error.strerror}",
                hint="Correct `dir` in [mirror].",
            ) from error

    def _make_images(self, undo: ExitStack) -> dict[str, int]:
        """Make or grow the images; on an error those made here are taken away again."""
        paths = [path for disk in self._disks for path in (disk.primary, disk.mirror)]
        for path in paths:
            images.check_place(path)
            if path.exists():
                _check_free(path)
            else:
                undo.callback(path.unlink, missing_ok=True)
        sizes = {disk.name: _primary_size(disk) for disk in self._settings.disks}
        images.check_different([path for path in paths if path.exists()])
        for disk in self._disks:
            images.reserve(disk.mirror, sizes[disk.name])
        return sizes

    # --- level

    def synchronize(self, progress: Progress) -> None:
        record, monitor = self._stack.talk()
        with self._file.locked():
            record, monitor = self._stack.talk()
            if parted := _parted(record, monitor):
                raise is_split(parted)
            levelling.level(self._stack, record, monitor, self._settings.pace, progress)

    # --- split

    def prepare_split(self, split_id: str) -> None:
        with self._file.locked():
            record, monitor = self._stack.talk()
            if record.established and _parted(record, monitor) is None:
                levelling.level(self._stack, record, monitor, self._settings.pace, silent)
            self._prepared = self._prepare(split_id)

    def split(self, split_id: str) -> None:
        prepared, self._prepared = self._prepared, None
        if prepared is None or prepared.split_id != split_id:
            prepared = self._prepare(split_id)
        if prepared is not None:
            blockjobs.transaction(prepared.monitor, prepared.actions, grouped=True)

    def _prepare(self, split_id: str) -> _Prepared | None:
        """Everything but the split itself; None when the mirror is split so already. What changes
        until the split makes the daemon refuse its one transaction."""
        if not _SPLIT_ID.fullmatch(split_id):
            raise MirrorError(
                f"{split_id!r} cannot name a split",
                hint="Take at most 100 letters, digits, dots, dashes and underscores.",
            )
        record, monitor = self._stack.talk()
        parted = _parted(record, monitor)
        if parted == split_id:
            return None
        if parted is not None:
            raise is_split(parted)
        if not record.established:
            raise not_ready("the mirror was never synchronized since it was attached")
        self._stack.open_legs(record, monitor)
        copies = [_split_copy(disk, split_id, record.bitmap) for disk in self._disks]
        actions = [copy.action() for copy in copies]
        return _Prepared(split_id=split_id, monitor=monitor, actions=actions)

    def leg(self, split_id: str, deadline_s: float) -> Leg:
        record = self._file.read()
        if record is None:
            raise no_such_split(split_id)
        with self._file.locked():
            record = self._file.read()
            if record is None or record.split is None or record.split.split_id != split_id:
                record = self._conclude(split_id, deadline_s)
        if record.split and record.split.problem:
            raise LegError(
                f"the leg of split {split_id} is not complete: {record.split.problem}",
                hint="Rejoin it and back up again; the primary is unharmed.",
                split_id=split_id,
            )
        sizes = {disk.name: record.size(disk.name) for disk in self._disks}
        runs = {d.name: (_run(d.mirror, sizes[d.name]),) for d in self._disks}
        return Leg(split_id=split_id, volumes=runs)

    def _conclude(self, split_id: str, deadline_s: float) -> StackRecord:
        """Wait for the split's copies, part the leg for good, and record how they ended."""
        record, monitor = self._stack.talk()
        if _parted(record, monitor) != split_id:
            raise no_such_split(split_id)
        ids = [_split_job(disk, split_id) for disk in self._disks]
        ended = blockjobs.wait_concluded(monitor, ids, deadline_s=deadline_s)
        self._stack.close_legs(monitor)
        for disk in self._disks:
            images.settle(disk.mirror)
        split = EndedSplit(split_id=split_id, problem=blockjobs.problem(ended))
        record = dataclasses.replace(record, split=split)
        self._file.save(record)
        blockjobs.remove(monitor, _is_split_job)
        return record

    def rejoin(self, split_id: str) -> None:
        if self._file.read() is None:
            return
        with self._file.locked():
            record, monitor = self._file.read(), None
            with contextlib.suppress(MirrorNotReady):  # a dead daemon's leg is only forgotten
                record, monitor = self._stack.talk()
            if record is None or _parted(record, monitor) != split_id:
                return
            self._check_leg_unused(monitor)
            record = dataclasses.replace(record, split=None)
            self._file.save(record)  # before the first byte of the leg is overwritten
            if monitor is not None:
                self._follow_again(record, monitor)

    def _follow_again(self, record: StackRecord, monitor: Monitor) -> None:
        blockjobs.remove(monitor, _is_split_job)
        record = self._stack.renew_bitmaps(record, monitor)
        if record.established:  # else the next synchronize copies everything
            once = dataclasses.replace(self._settings.pace, level_below=0, max_passes=1)
            levelling.level(self._stack, record, monitor, once, silent)

    def _check_leg_unused(self, monitor: Monitor | None) -> None:
        """Raise Busy while somebody reads the leg: it would change under them."""
        for disk in self._disks:
            daemon = monitor.peer_pid if monitor else None
            _check_free(disk.mirror, but=daemon, patient=True)

    # --- what would make a split unsafe

    def preflight(self, filesystems: Sequence[Filesystem]) -> list[Finding]:
        findings = [looked("daemon of the mirror", self._check_ready)]
        for disk in self._disks:
            findings.append(looked(f"room of the mirror {disk.mirror}", partial(_check_leg, disk)))
            findings.append(_primary_room(disk))
        for filesystem in filesystems:
            where = filesystem.mountpoint
            findings.append(looked(f"disk below {where}", partial(self._check_place, filesystem)))
            findings.append(
                looked(f"mount options of {where}", partial(_check_options, filesystem))
            )
        return findings

    def _check_ready(self) -> None:
        record, monitor = self._stack.talk()
        if parted := _parted(record, monitor):
            raise is_split(parted)

    def _check_place(self, filesystem: Filesystem) -> None:
        """The filesystem lies on one of our disks, and we on nothing that it would freeze."""
        if filesystem.volume not in {disk.name for disk in self._disks}:
            raise NotOnMirror(
                f"{filesystem.mountpoint} is not on this mirror",
                hint="Move it onto a disk of the mirror.",
            )
        images_ours = (path for disk in self._disks for path in (disk.primary, disk.mirror))
        for path in (self._directory, *images_ours):
            if path.exists() and filesystem.devno in superblocks_below(path):
                raise WouldFreeze(
                    f"{path} lies on {filesystem.mountpoint}, which will be frozen",
                    hint="Move it to another filesystem.",
                )


def _check_leg(disk: StackDisk) -> None:
    if not (disk.primary.exists() and disk.mirror.exists()):
        raise not_ready(f"an image of the disk {disk.name} is missing")
    images.check_reserved(disk.mirror, images.size_of(disk.primary))


def _primary_room(disk: StackDisk) -> Finding:
    """A warning when the primary could not get all the blocks that it lacks."""
    what = f"room of the primary {disk.primary}"
    if not disk.primary.exists():
        return Finding(what=what, problem=not_ready(f"there is no primary {disk.primary}"))
    need, free = images.unallocated(disk.primary), images.free_room(disk.primary)
    if need <= free:
        return Finding(what=what)
    problem = NoRoom(
        f"the primary {disk.primary} may grow by {show_size(need)}, {show_size(free)} are free",
        hint="Make room there before the database's writes fail.",
    )
    return Finding(what=what, problem=problem, warning=True)


def _check_options(filesystem: Filesystem) -> None:
    unsafe = sorted(_ZEROES_OUT & filesystem.options)
    if filesystem.fstype == "ext4" and unsafe:
        raise UnsafeMirror(
            f"{filesystem.mountpoint} is mounted with {', '.join(unsafe)}: ext4 then has ranges "
            "zeroed below it, which the daemon may skip while it copies, and old bytes show",
            hint=f"Mount it without {unsafe[0]}; dioread_nolock is ext4's default since 5.6.",
        )


def _primary_size(disk: Disk) -> int:
    """The size of a disk; makes the primary when it is not there and the settings give a size."""
    path, wanted = Path(disk.primary), parse_size(disk.size)
    if not path.exists():
        if not wanted:
            raise MirrorError(
                f"there is no primary {path}",
                hint=f"Make it with `truncate -s SIZE {path}`, or give disk {disk.name} a `size`.",
            )
        images.create_sparse(path, wanted)
    size = images.size_of(path)
    if wanted and size != wanted:
        raise ConfigError(
            f"the primary {path} has {size} bytes, disk {disk.name} is to have {wanted}",
            hint="Take `size` out of its table; it is only for making images.",
        )
    return size


def _check_free(image: Path, but: int | None = None, *, patient: bool = False) -> None:
    """Raise Busy when an image is in use, other than by the process `but`. The daemon itself would
    not mind a second one on the same image."""
    if users := openers(image, but=but, patient=patient):
        raise Busy(
            f"{image} is in use: {', '.join(users)}",
            hint="Unmount it, detach its loop device, or end that process.",
        )


def _run(image: Path, size: int) -> Run:
    return Run(path=str(image), offset=0, length=size)


# --- splits


def _parted(record: StackRecord, monitor: Monitor | None) -> str | None:
    """The split whose leg is parted now: told by its jobs until its end is recorded."""
    if record.split is not None:
        return record.split.split_id
    present = blockjobs.jobs(monitor) if monitor is not None else {}
    found = [match["split_id"] for job_id in present if (match := _SPLIT_JOB.fullmatch(job_id))]
    return found[0] if found else None


def _why(record: StackRecord, parted: str | None) -> str:
    """Why the mirror is not level; empty when it is."""
    if parted is None:
        return "" if record.established else "full resync needed: it was just attached"
    if record.split and record.split.problem:
        return f"split as {parted}, and the copy failed: {record.split.problem}"
    return f"split as {parted}"


def _split_job(disk: StackDisk, split_id: str) -> str:
    return f"split.{disk.name}.{split_id}"


def _is_split_job(job_id: str) -> bool:
    return _SPLIT_JOB.fullmatch(job_id) is not None


def _split_copy(disk: StackDisk, split_id: str, bitmap: str) -> Copy:
    job_id = _split_job(disk, split_id)
    return Copy(job_id=job_id, node=disk.name, target=disk.leg_node, bitmap=bitmap)
