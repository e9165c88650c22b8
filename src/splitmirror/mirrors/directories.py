"""A snapshot instead of a mirror: directories directly on btrfs or xfs, without an image file.

On btrfs a leg is a read-only snapshot of the subvolume, of one instant. On xfs it is a directory of
clones of its files (FICLONE), made one after another, so only a database whose recovery mends that
can be backed up so. Both are writes to the database's own filesystem and would wait for its freeze
for ever: nothing is frozen, and hot mode is the only one. docs/adr/0022 says more.

The world is the state: a leg is named by its directory and its split, and has that name only when
it is whole. One that is being made or deleted is called `.part`. Sources: linux/btrfs.h,
ioctl_ficlone(2), rename(2), xfs(5).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import msgspec

from splitmirror.errors import (
    ConfigError,
    LegError,
    MirrorError,
    MirrorNotReady,
    NotOnMirror,
    SplitmirrorError,
    UnsafeMirror,
)
from splitmirror.mirrors import Feature, MirrorState, Place, is_split, looked, no_such_split
from splitmirror.model import Filesystem, Finding, Folder, Leg, Run, Volume
from splitmirror.progress import Progress
from splitmirror.system import blockdev, btrfs, filesystems, reflink
from splitmirror.system.clonetree import clone_tree
from splitmirror.system.filesystems import Mount, mount_of
from splitmirror.system.legfiles import (
    LegPlace,
    check_apart,
    check_named,
    check_split_id,
    fsync,
    opened,
    require_room,
    telling,
)
from splitmirror.units import parse_size, show_seconds, size_setting

_KINDS = ("xfs", "btrfs")
_FILE_S = 100e-6  # to clone a small file on xfs, on the large side (docs/mirrors.md)


class Directory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One directory. `dir`: where its legs are made, on the same filesystem; by default beside
    it."""

    name: str
    path: str
    dir: str = ""

    @property
    def place(self) -> LegPlace:
        path = Path(self.path)
        return LegPlace(image=path, directory=Path(self.dir) if self.dir else path.parent)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[mirror]` with driver = "directories". `room`: as much must be free before a split, for what
    the database overwrites while the leg is there; 0: a tenth of what is used."""

    directories: tuple[Directory, ...]
    room: str | int = 0

    def __post_init__(self) -> None:
        names = [each.name for each in self.directories]
        paths = [path for each in self.directories for path in (each.path, each.dir)]
        check_named("directories", names, paths)
        if any(not each.place.image.name for each in self.directories):
            raise ConfigError("[mirror] has the directory /", hint="Name the database's own.")
        check_apart([each.place for each in self.directories])
        size_setting("[mirror] room", self.room)


def advise(place: Place) -> str:
    """What lies on such a filesystem can be split as it is. But that is no mirror."""
    if not os.path.exists(place.path) or (fstype := mount_of(place.path).fstype) not in _KINDS:
        return ""
    if not os.path.isdir(place.path) and fstype == "xfs":
        return ""  # a SQLite file: not there
    path = place.path if os.path.isdir(place.path) else os.path.dirname(place.path)
    which = "PostgreSQL" if fstype == "xfs" else "PostgreSQL, SQLite"
    return (
        f"{path} lies on {fstype} and can be split as it is ({which}; hot mode),\n"
        "into a copy on the same disk: no mirror, no help when that is lost (docs/mirrors.md)\n"
        f'  [mirror] driver = "directories"; [[mirror.directories]] name = "{place.name}", '
        f"path = {json.dumps(path)}"
    )


def open_mirror(settings: Settings, state_dir: Path) -> DirectoryMirror:
    """The mirror of these settings; nothing is opened yet."""
    return DirectoryMirror(settings)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A directory as it is mounted now, at `path`. `root`: what a leg is a copy of: on btrfs the
    subvolume that the directory is in, on xfs itself."""

    name: str
    place: LegPlace
    path: Path
    root: Path
    mount: Mount

    @property
    def snapshots(self) -> bool:
        return self.mount.fstype == "btrfs"

    @property
    def folder(self) -> Folder:
        path = os.fsencode(self.path)
        return Folder(path=str(self.path), inside=filesystems.inside(path, self.mount))

    def copy_in(self, leg: Path) -> Folder:
        """The directory's copy."""
        return dataclasses.replace(self.folder, path=str(leg / self.path.relative_to(self.root)))


class DirectoryMirror:
    """See `Mirror` and `Preparing`. GROUP_SPLIT where all is one subvolume."""

    def __init__(self, settings: Settings) -> None:
        self._directories, self._room = settings.directories, parse_size(settings.room)
        self.features = frozenset({Feature.INSTANT_LEG, Feature.PREPARES, Feature.UNFROZEN})
        with contextlib.suppress(MirrorError):  # told when it is asked for its volumes
            sources = self._sources()
            if len(sources) == 1 and sources[0].snapshots:
                self.features |= {Feature.GROUP_SPLIT}

    def _sources(self) -> list[_Source]:
        """As they are mounted now. Raises MirrorNotReady, UnsafeMirror."""
        return [_source(directory) for directory in self._directories]

    # --- what it is doing

    def volumes(self) -> tuple[Volume, ...]:
        """A filesystem each, named by the first of its directories."""
        return tuple(volume for volume, _ in self._by_volume())

    def _by_volume(self) -> list[tuple[Volume, list[_Source]]]:
        by_device: dict[int, list[_Source]] = {}
        for source in self._sources():
            with telling(f"the device below {source.path} is not known", MirrorNotReady):
                by_device.setdefault(filesystems.device_of(source.mount), []).append(source)
        return [(_volume(devno, sources), sources) for devno, sources in by_device.items()]

    def state(self) -> MirrorState:
        parted: str | None = None
        try:
            parted, attached = self._parted(), True
            self.volumes()
            why = ""
        except SplitmirrorError as error:
            attached, why = False, str(error)
        if parted is not None:
            why = f"split as {parted}" + ("" if self._whole(parted) else ", but cut off in it")
        return MirrorState(
            attached=attached, level=not why, dirty_bytes=0, split_id=parted, why=why
        )

    def _parted(self) -> str | None:
        """The split whose leg, or a part of it, is there."""
        places = [directory.place for directory in self._directories]
        found = [each.splits() for place in places for each in (place, _part(place))]
        return min(set[str]().union(*found), default=None)

    def _whole(self, split_id: str) -> bool:
        return all(split_id in directory.place.splits() for directory in self._directories)

    def close(self) -> None:
        """Nothing is kept open."""

    # --- split

    def synchronize(self, progress: Progress) -> None:
        """There is no second copy to bring level: what is dirty is written back, so that the split
        need not."""
        if parted := self._parted():
            raise is_split(parted)
        self._flush()
        progress(1, 1)

    def _flush(self) -> None:
        for directory in {source.path for source in self._sources()}:
            with telling(f"{directory} cannot be written back"), ExitStack() as undo:
                filesystems.syncfs(opened(directory, os.O_RDONLY, undo))

    def prepare_split(self, split_id: str) -> None:
        if not self._is_split(split_id):
            self._flush()

    def _is_split(self, split_id: str) -> bool:
        """Whether it is split so already. Raises MirrorError when it is otherwise."""
        check_split_id(split_id)
        parted = self._parted()
        if parted is None:
            return False
        if parted == split_id and self._whole(split_id):
            return True
        raise is_split(parted)

    def split(self, split_id: str) -> None:
        if self._is_split(split_id):
            return
        with telling(f"the directories cannot be split as {split_id}"):
            try:
                for source in self._sources():
                    _make(source, split_id)
            except BaseException:
                self._remove(split_id)
                raise

    def leg(self, split_id: str, deadline_s: float) -> Leg:
        """Also durable, so that a resumed backup finds it after a crash of the host."""
        by_volume = self._by_volume()  # before any leg is missed: it may not be mounted yet
        if not self._whole(split_id):
            raise no_such_split(split_id)
        runs: dict[str, tuple[Run, ...]] = {}
        folders: dict[str, tuple[Folder, ...]] = {}
        for volume, sources in by_volume:
            runs[volume.name] = (Run(path=volume.device, offset=0, length=volume.size),)
            folders[volume.name] = tuple(_proven(source, split_id) for source in sources)
        return Leg(
            split_id=split_id,
            volumes=runs,
            folders=folders,
            inodes_differ=not all(source.snapshots for source in self._sources()),
        )

    def rejoin(self, split_id: str) -> None:
        """Delete the legs. Their room is free only when the filesystem has cleaned up behind
        them."""
        with telling(f"the legs of {split_id} cannot be deleted"):
            self._remove(split_id)

    def _remove(self, split_id: str) -> None:
        for directory in self._directories:
            _delete(directory.place, split_id)

    # --- what would make a split unsafe

    def preflight(self, on: Sequence[Filesystem]) -> list[Finding]:
        findings = [
            Finding(
                what="directories: a snapshot on the same disk, no protection against its loss"
            ),
            Finding(what="nothing is frozen around the split; hot mode only"),
            looked("split", self._check_not_split),
        ]
        for directory in self._directories:
            what = f"copies of {directory.path}"
            try:
                source = _source(directory)
            except SplitmirrorError as problem:
                findings.append(Finding(what=what, problem=problem))
                continue
            paths = [Path(each.path) for each in self._directories]
            findings.append(looked(what, partial(_check_place, source, paths)))
            findings.append(Finding(what=_how(source)))
        findings += self._rooms()
        findings += [
            looked(f"volume below {each.mountpoint}", partial(self._check_known, each))
            for each in on
        ]
        return findings

    def _check_not_split(self) -> None:
        if parted := self._parted():
            raise is_split(parted)

    def _rooms(self) -> Iterator[Finding]:
        """A finding for each filesystem: what is used there may all be overwritten."""
        seen = set[int]()
        for place in (directory.place for directory in self._directories):
            if place.directory.is_dir() and (devno := mount_of(place.directory).devno) not in seen:
                seen.add(devno)
                status = os.statvfs(place.directory)
                used = (status.f_blocks - status.f_bfree) * status.f_frsize
                yield require_room(place.directory, "the filesystem", used, used, self._room)

    def _check_known(self, filesystem: Filesystem) -> None:
        if filesystem.volume not in {volume.name for volume in self.volumes()}:
            raise NotOnMirror(
                f"{filesystem.mountpoint} has none of the directories",
                hint="Name those of the database that are on it in [[mirror.directories]].",
            )


# --- one directory


def _source(directory: Directory) -> _Source:
    path = Path(os.path.realpath(directory.path))
    try:
        status, mount = path.stat(), mount_of(path)
    except OSError as error:
        raise MirrorNotReady(
            f"no directory {path}: {error.strerror}",
            hint="Mount the filesystem that it lies on, or correct [mirror].",
        ) from error
    if not stat.S_ISDIR(status.st_mode):
        raise UnsafeMirror(
            f"{path} is no directory",
            hint="Name the directory that it is in. An image file is split by the reflink engine.",
        )
    if mount.fstype not in _KINDS:
        raise UnsafeMirror(
            f"{path} lies on {mount.fstype}, whose files are not known to share blocks",
            hint=f"Keep the database on {' or '.join(_KINDS)}, or use another engine.",
        )
    root = _subvolume(path, status.st_dev) if mount.fstype == "btrfs" else path
    return _Source(name=directory.name, place=directory.place, path=path, root=root, mount=mount)


def _subvolume(path: Path, device: int) -> Path:
    """The root directory of the subvolume that a directory is in, for a snapshot is of all of
    it."""
    for each in (path, *path.parents):
        if each.stat().st_dev != device:
            break
        if _is_subvolume(each):
            return each
    raise UnsafeMirror(
        f"the subvolume that {path} is in is not mounted as a whole",
        hint="Mount it with `subvol=` at a place of its own, and name the directory there.",
    )


def _volume(devno: int, sources: Sequence[_Source]) -> Volume:
    device = blockdev.devno_path(devno)
    with telling(f"the size of {device} is not known", MirrorNotReady):
        size = blockdev.size(device)
    folders = tuple(source.folder for source in sources)
    return Volume(name=sources[0].name, device=device, size=size, folders=folders)


# --- one leg


def _part(place: LegPlace) -> LegPlace:
    """The place's legs that are not whole."""
    return dataclasses.replace(place, suffix=".part")


def _make(source: _Source, split_id: str) -> None:
    """Raises OSError."""
    leg = source.place.leg(split_id)
    with ExitStack() as undo:
        original = opened(source.root, os.O_RDONLY | os.O_DIRECTORY, undo)
        if source.snapshots:
            directory = opened(leg.parent, os.O_RDONLY | os.O_DIRECTORY, undo)
            btrfs.snapshot(original, directory, leg.name)
            return
        part = _part(source.place).leg(split_id)
        part.mkdir(mode=0o700)
        copy = opened(part, os.O_RDONLY | os.O_DIRECTORY, undo)
        reflink.keep_in_place(copy)  # its files are read by their maps
        clone_tree(original, copy)
        part.rename(leg)


def _proven(source: _Source, split_id: str) -> Folder:
    """The leg of a directory, durable. Raises LegError when it is not what was split."""
    leg = source.place.leg(split_id)
    with telling(f"the leg {leg} cannot be used", LegError), ExitStack() as undo:
        fd = opened(leg, os.O_RDONLY | os.O_DIRECTORY, undo)
        if source.snapshots:
            original = btrfs.subvolume(opened(source.root, os.O_RDONLY, undo))
            found = btrfs.subvolume(fd)
            if not found.read_only or found.parent_uuid != original.uuid:
                raise LegError(
                    f"{leg} is no read-only snapshot of {source.root}",
                    hint="Someone else made it, or made it writable: delete it and back up again.",
                )
        else:
            filesystems.syncfs(fd)
    return source.copy_in(leg)


def _delete(place: LegPlace, split_id: str) -> None:
    """Delete a leg and what is left of one, durably. Not there: harmless. Raises OSError."""
    whole, cut_off = (split_id in each.splits() for each in (place, _part(place)))
    leg, part = place.leg(split_id), _part(place).leg(split_id)
    if cut_off:
        shutil.rmtree(part)
    if whole and _is_subvolume(leg):
        with ExitStack() as undo:
            directory = opened(leg.parent, os.O_RDONLY | os.O_DIRECTORY, undo)
            btrfs.destroy(directory, leg.name)
    elif whole:
        leg.rename(part)  # it is no leg any more, whatever comes
        shutil.rmtree(part)
    if whole or cut_off:
        fsync(leg.parent)


def _is_subvolume(path: Path) -> bool:
    return path.stat().st_ino == btrfs.ROOT_INODE and mount_of(path).fstype == "btrfs"


# --- what preflight looks at


def _check_place(source: _Source, copied: Sequence[Path]) -> None:
    """Legs can be made where they are to be made, which is in nothing that is copied."""
    legs = source.place.directory
    with telling(f"{source.path} cannot be cloned into {legs}"):
        where = mount_of(legs)
        if where.devno != source.mount.devno:
            raise UnsafeMirror(
                f"{legs} is on another filesystem than {source.path}",
                hint="Name a directory on the same one as `dir`: where the filesystem itself is "
                "mounted, or a subvolume of it at another place.",
            )
        for path in copied:
            if Path(os.path.realpath(legs)).is_relative_to(os.path.realpath(path)):
                raise UnsafeMirror(
                    f"the legs of {source.path} would lie in {path}, which is copied itself",
                    hint="Name a directory outside of it as `dir`.",
                )
        if not source.snapshots:
            with ExitStack() as undo:
                like = opened(source.path, os.O_RDONLY, undo)
                reflink.probe(source.path, legs, like=like)


def _how(source: _Source) -> str:
    """How it is split, and for how long the database is in hot mode meanwhile."""
    if source.snapshots:
        return f"{source.path}: a snapshot of the subvolume {source.root}"
    status = os.statvfs(source.path)
    files = status.f_files - status.f_ffree
    return (
        f"{source.path}: a clone of every file; with all {files} on that filesystem this takes "
        f"about {show_seconds(files * _FILE_S)}"
    )
