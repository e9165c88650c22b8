"""A snapshot instead of a mirror: image files on xfs or btrfs, cloned at the split.

The database's filesystem lies on a loop device over an image file. To split is to clone the image
(FICLONE) while that filesystem is frozen: the leg is a file beside it that shares all its blocks,
whole at once. Most of it is cloned before the freeze, and only renewed in it. There is no second
disk, so nothing here protects against the loss of the first. What the database overwrites while the
leg is there takes new room on the host's filesystem, and the split takes longer with every extent
that the image is broken into. docs/adr/0016 says more.

The world is the state: a leg is named by its image and its split, and it has a name only when it is
whole. Sources: ioctl_ficlone(2), loop(4), xfs(5), btrfs(5).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import msgspec

from splitmirror.errors import (
    ConfigError,
    LegError,
    MirrorError,
    NotOnMirror,
    SplitmirrorError,
    UnsafeMirror,
    WouldFreeze,
)
from splitmirror.mirrors import Feature, MirrorState, Place, Recognized, is_split, looked
from splitmirror.model import Filesystem, Finding, Leg, Run, Volume
from splitmirror.progress import Progress
from splitmirror.system import fiemap, loopimages, reflink
from splitmirror.system.filesystems import mount_of, superblocks_below
from splitmirror.system.legfiles import (
    Clone,
    LegPlace,
    check_apart,
    check_named,
    check_split_id,
    fsync,
    opened,
    prepare_clone,
    require_room,
    telling,
)
from splitmirror.system.loopimages import SECTOR
from splitmirror.units import parse_size, show_seconds, size_setting

_HOSTS = ("xfs", "btrfs")
# Of a prepared split, measured on xfs and btrfs, on the large side (docs/mirrors.md).
_EXTENT_S = 3e-6
_WORTH_TELLING_S = 0.1


class Disk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One disk. `device`: the loop device over the image, where there are several. `dir`: where the
    leg is made, on the filesystem of the image; by default beside it."""

    name: str
    image: str
    device: str = ""
    dir: str = ""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[mirror]` with driver = "reflink". `room`: as much must be free before a split, for what the
    database overwrites while the leg is there; 0: a tenth of what the images hold.
    `longest_split_s`: with so many extents that it would take longer, a split is refused."""

    disks: tuple[Disk, ...]
    room: str | int = 0
    longest_split_s: float = 5.0

    def __post_init__(self) -> None:
        names = [disk.name for disk in self.disks]
        paths = [path for disk in self.disks for path in (disk.image, disk.device, disk.dir)]
        check_named("disks", names, paths)
        check_apart([_place(disk) for disk in self.disks])
        size_setting("[mirror] room", self.room)
        if not self.longest_split_s > 0:
            raise ConfigError(
                f"[mirror] longest_split_s = {self.longest_split_s:g} allows no split",
                hint="Take seconds, fewer than [backup] freeze_deadline_s; 5 is the default.",
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A split of which nothing is left but what must be done while the images stand still."""

    split_id: str
    clones: tuple[Clone, ...]
    opened: ExitStack


def _place(disk: Disk) -> LegPlace:
    image = Path(disk.image)
    return LegPlace(image=image, directory=Path(disk.dir) if disk.dir else image.parent)


def _volume(disk: Disk) -> Volume:
    return loopimages.volume(disk.name, Path(disk.image), disk.device)


def recognize(place: Place) -> Recognized | None:
    """A filesystem in an image file that can be cloned."""
    last = place.layers[-1] if place.layers else None
    if last is None or last.kind != "loop" or last.backing is None or last.offset:
        return None
    if not os.path.exists(last.backing) or mount_of(last.backing).fstype not in _HOSTS:
        return None
    return Recognized(
        table="disks",
        entry={"name": place.name, "image": last.backing},
        note="an image file: a snapshot is made, on the same disk, instead of a mirror",
    )


def open_mirror(settings: Settings, state_dir: Path) -> ReflinkMirror:
    """The mirror of these settings; nothing is opened yet."""
    return ReflinkMirror(settings)


class ReflinkMirror:
    """See `Mirror` and `Preparing`. Several images are cloned one after another: they are of one
    instant because their filesystems are frozen, hence no GROUP_SPLIT."""

    features = frozenset({Feature.INSTANT_LEG, Feature.PREPARES})

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._places = {disk.name: _place(disk) for disk in settings.disks}
        self._prepared: _Prepared | None = None

    # --- what it is doing

    def volumes(self) -> tuple[Volume, ...]:
        return tuple(_volume(disk) for disk in self._settings.disks)

    def state(self) -> MirrorState:
        parted: str | None = None
        try:
            parted, attached = self._parted(), True
            why = self._why(parted)
        except SplitmirrorError as error:
            attached, why = False, str(error)
        return MirrorState(
            attached=attached, level=not why, dirty_bytes=0, split_id=parted, why=why
        )

    def _parted(self) -> str | None:
        """The split whose leg, or a part of it, is there."""
        found = set[str]().union(*(place.splits() for place in self._places.values()))
        return min(found, default=None)

    def _why(self, parted: str | None) -> str:
        """Why it is not level; empty when it is. Images without their loop devices are no fault
        while there is a split: it can be read and rejoined."""
        if parted is not None:
            return f"split as {parted}" + ("" if self._whole(parted) else ", but cut off in it")
        try:
            self.volumes()
        except MirrorError as error:
            return str(error)
        return ""

    def _whole(self, split_id: str) -> bool:
        return all(split_id in place.splits() for place in self._places.values())

    def close(self) -> None:
        self._forget_prepared()

    # --- split

    def synchronize(self, progress: Progress) -> None:
        """There is no second copy to bring level: what a loop device left in the page cache of its
        image is written back, so that the split need not."""
        if parted := self._parted():
            raise is_split(parted)
        volumes = self.volumes()
        done, total = 0, sum(volume.size for volume in volumes)
        for volume in volumes:
            image = self._places[volume.name].image
            with telling(f"{image} cannot be written back"):
                fsync(image)
            done += volume.size
            progress(done, total)

    def prepare_split(self, split_id: str) -> None:
        self._forget_prepared()
        self._prepared = self._prepare(split_id, early=True)

    def split(self, split_id: str) -> None:
        prepared, self._prepared = self._prepared, None
        if prepared is not None and prepared.split_id != split_id:
            prepared.opened.close()
            prepared = None
        prepared = prepared or self._prepare(split_id, early=False)
        if prepared is None:
            return
        with prepared.opened, telling(f"the images cannot be split as {split_id}"):
            for clone in prepared.clones:
                clone.make()
            try:
                for clone in prepared.clones:
                    clone.publish(split_id)
            except BaseException:
                self._remove(split_id)
                raise

    def _prepare(self, split_id: str, *, early: bool) -> _Prepared | None:
        """Everything but the clones themselves; None when it is split so already."""
        check_split_id(split_id)
        if parted := self._parted():
            if parted == split_id and self._whole(split_id):
                return None
            raise is_split(parted)
        self.volumes()  # there is a loop device over each image, and no other
        with ExitStack() as undo:
            clones = tuple(
                prepare_clone(place, split_id, undo, early=early) for place in self._places.values()
            )
            return _Prepared(split_id=split_id, clones=clones, opened=undo.pop_all())

    def _forget_prepared(self) -> None:
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            prepared.opened.close()

    def leg(self, split_id: str, deadline_s: float) -> Leg:
        """Also durable, so that a resumed backup finds it after a crash of the host."""
        for place in self._places.values():  # before a leg is missed: it may not be mounted yet
            loopimages.require_image(place.image)
        there = [place for place in self._places.values() if split_id in place.splits()]
        if len(there) < len(self._places):
            raise _no_such_split(split_id, in_part=bool(there))
        runs = {}
        for name, place in self._places.items():
            path = place.leg(split_id)
            with telling(f"the leg {path} cannot be used", LegError):
                fsync(path)
                fsync(place.directory)
                length = path.stat().st_size // SECTOR * SECTOR
            runs[name] = (Run(path=str(path), offset=0, length=length),)
        return Leg(split_id=split_id, volumes=runs)

    def rejoin(self, split_id: str) -> None:
        """Delete the legs. Who still reads one goes on doing so; its room is free only then."""
        if self._prepared is not None and self._prepared.split_id == split_id:
            self._forget_prepared()
        if any(split_id in place.splits() for place in self._places.values()):
            with telling(f"the legs of {split_id} cannot be deleted"):
                self._remove(split_id)

    def _remove(self, split_id: str) -> None:
        for place in self._places.values():
            place.remove(split_id)

    # --- what would make a split unsafe

    def preflight(self, filesystems: Sequence[Filesystem]) -> list[Finding]:
        findings = [
            Finding(what="reflink: a snapshot on the same disk, no protection against its loss"),
            looked("split", self._check_not_split),
        ]
        for disk in self._settings.disks:
            place, where = self._places[disk.name], disk.image
            findings.append(looked(f"loop device over {where}", partial(_volume, disk)))
            findings.append(looked(f"reflink of {where}", partial(_check_host, place)))
            findings.append(_split_time(place, self._settings.longest_split_s))
        findings += self._rooms()
        for filesystem in filesystems:
            check = partial(self._check_place, filesystem)
            findings.append(looked(f"disk below {filesystem.mountpoint}", check))
        return findings

    def _check_not_split(self) -> None:
        if parted := self._parted():
            raise is_split(parted)

    def _rooms(self) -> Iterable[Finding]:
        """A finding for each filesystem with legs on it."""
        by_host: dict[int, list[LegPlace]] = {}
        for place in self._places.values():
            if place.image.is_file() and place.directory.is_dir():
                by_host.setdefault(mount_of(place.directory).devno, []).append(place)
        return [_room(places, parse_size(self._settings.room)) for places in by_host.values()]

    def _check_place(self, filesystem: Filesystem) -> None:
        """The filesystem lies on one of our disks, and we on nothing that it would freeze: the
        clone of an image on it would wait for ever."""
        if filesystem.volume not in self._places:
            raise NotOnMirror(
                f"{filesystem.mountpoint} is on none of the images",
                hint="Move it onto one of them.",
            )
        for path in (p for place in self._places.values() for p in (place.image, place.directory)):
            if path.exists() and filesystem.devno in superblocks_below(path):
                raise WouldFreeze(
                    f"{path} lies on {filesystem.mountpoint}, which will be frozen",
                    hint="Move it to another filesystem.",
                )


# --- what preflight looks at


def _check_host(place: LegPlace) -> None:
    """The image lies where files can share blocks, and so does its leg."""
    with telling(f"{place.image} cannot be cloned into {place.directory}"), ExitStack() as undo:
        fstype = mount_of(place.image).fstype
        if fstype not in _HOSTS:
            raise UnsafeMirror(
                f"{place.image} lies on {fstype}, whose files are not known to share blocks",
                hint=f"Keep the image on {' or '.join(_HOSTS)}, or use another engine.",
            )
        image = opened(place.image, os.O_RDONLY, undo)
        reflink.probe(place.image.parent, place.directory, like=image)


def _split_time(place: LegPlace, longest_s: float) -> Finding:
    """How long the split of an image would take, told by its extents."""
    what = f"extents of {place.image}"
    try:
        with telling(f"the extents of {place.image} cannot be counted"), ExitStack() as undo:
            extents = fiemap.count(opened(place.image, os.O_RDONLY, undo))
    except SplitmirrorError as error:
        return Finding(what=what, problem=error)
    seconds = extents * _EXTENT_S
    if seconds <= min(_WORTH_TELLING_S, longest_s):
        return Finding(what=what)
    problem = UnsafeMirror(
        f"{place.image} has {extents} extents: its split stops the database for about "
        f"{show_seconds(seconds)}",
        hint="While nothing uses it, copy it to a new file with `cp --reflink=never "
        "--sparse=never`; docs/mirrors.md says how to keep it in few. "
        f"A split of more than {show_seconds(longest_s)} is refused (longest_split_s).",
        extents=extents,
    )
    return Finding(what=what, problem=problem, warning=seconds <= longest_s)


def _room(places: Sequence[LegPlace], least: int) -> Finding:
    """Whether a host's filesystem can take what is overwritten while the legs are there."""
    status = [place.image.stat() for place in places]
    everything = sum(each.st_size for each in status)
    held = sum(each.st_blocks * 512 for each in status)
    return require_room(places[0].directory, "the images there", everything, held, least)


# --- errors


def _no_such_split(split_id: str, *, in_part: bool) -> LegError:
    if in_part:
        return LegError(
            f"the split {split_id} was cut off: only some images have a leg of it",
            hint="Rejoin it and back up again; the primary is unharmed.",
            split_id=split_id,
        )
    return LegError(
        f"the images have no split {split_id}",
        hint="Its leg was given back or deleted: back up again.",
        split_id=split_id,
    )
