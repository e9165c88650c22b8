"""LVM raid1: logical volumes of which one leg is split off, its changes tracked by the kernel.

Two ways part the legs. `lvconvert --splitmirrors 1 --trackchanges` is known to LVM and survives a
reboot, but takes LVM a good while for each volume, and one volume after another. At device-mapper
level tables without the leg are prepared for all volumes, all are suspended, and all resumed with
the new tables: one instant for all, and much the shorter stop. LVM's metadata does not know of it,
so a reboot or an `lvchange --refresh` puts the leg back and brings it up to date: the mirror is
whole again, and that split is gone. So "auto" is the second way, and "lvconvert" is for those who
leave a leg split for longer. What LVM does not know lies in a file of ours (system/partedrecord.py)
and is compared with the world; docs/adr/0014 says why a leg is marked before it is put back.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from splitmirror.errors import (
    Busy,
    ConfigError,
    MirrorNotReady,
    NotOnMirror,
    SplitmirrorError,
    UnsafeMirror,
    WouldFreeze,
)
from splitmirror.mirrors import (
    Feature,
    MirrorState,
    Place,
    Recognized,
    is_split,
    looked,
    no_such_split,
)
from splitmirror.model import Filesystem, Finding, Leg, Run, Volume
from splitmirror.progress import Progress, silent
from splitmirror.system import blockdev, dmraid, lvm, lvmchecks, parting
from splitmirror.system.devicemapper import DeviceMapper
from splitmirror.system.dmraid import Array, ArrayStatus
from splitmirror.system.lvm import Image, RaidVolume
from splitmirror.system.partedrecord import PartedFile, PartedRecord, PartedVolume, Way
from splitmirror.system.parting import Device
from splitmirror.system.process import boot_id

PROGRAMS = lvm.PROGRAMS

_NAME = re.compile(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]*/[A-Za-z0-9+_.][A-Za-z0-9+_.-]*")
_LOOK_AGAIN_S = 0.1  # between looks at a resynchronization
_STALLED_S = 30.0  # a resynchronization that has not begun by then does not begin
_PROBED_S = 3.0  # as long udev may have a device open that has just changed


class LvmVolume(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`lv`: "VG/LV". `leg`: the number of the image that is split; the last one by default."""

    lv: str
    leg: int | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.lv):
            raise ConfigError(
                f"[[mirror.volumes]] lv = {self.lv!r} names no logical volume",
                hint='Write it as "VG/LV", as `lvs -o lv_full_name` shows it.',
            )


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[mirror]` with driver = "lvm". `split`: how, see above. `allow_degraded`: split a mirror of
    three or more legs although one of them is missing or out of sync."""

    volumes: tuple[LvmVolume, ...]
    split: Literal["auto", "lvconvert", "device-mapper"] = "auto"
    allow_degraded: bool = False

    def __post_init__(self) -> None:
        names = [volume.lv for volume in self.volumes]
        if not names or len(set(names)) < len(names):
            raise ConfigError(
                f"[[mirror.volumes]] are {names}", hint="Name one or more, each of them once."
            )

    @property
    def way(self) -> Way:
        return Way.LVCONVERT if self.split == "lvconvert" else Way.DEVICE_MAPPER


def recognize(place: Place) -> Recognized | None:
    """A raid1 volume."""
    for layer in place.layers:
        name = lvm.name_of(layer.devno)
        if name is not None and layer.kind == "dm raid":
            with contextlib.suppress(SplitmirrorError):  # raid5, say
                legs = len(lvm.find([name])[0].images)
                return Recognized(
                    table="volumes", entry={"lv": name}, note=f"a raid1 volume of {legs} legs"
                )
    return None


def advise(place: Place) -> str:
    """A volume without a mirror can be given one while the database runs."""
    for layer in place.layers:
        if (name := lvm.name_of(layer.devno)) is not None:
            return (
                f"{name} has no mirror that can be split; another disk gives it one, online:\n"
                f"  vgextend {name.partition('/')[0]} DISK; "
                f"lvconvert --type raid1 -m 1 {name} DISK"
            )
    return ""


def open_mirror(settings: Settings, state_dir: Path) -> LvmMirror:
    """The mirror of these settings. Nothing is looked at yet."""
    return LvmMirror(settings, state_dir)


class LvmMirror:
    """See `Mirror`, `Preparing`, `Suspending` and `Proving`."""

    def __init__(self, settings: Settings, state_dir: Path) -> None:
        self._settings = settings
        self._names = tuple(volume.lv for volume in settings.volumes)
        self._legs = {volume.lv: volume.leg for volume in settings.volumes}
        self._file = PartedFile(state_dir, self._names)
        self._mapper: DeviceMapper | None = None
        self._found: tuple[RaidVolume, ...] = ()
        self._prepared: tuple[PartedRecord, tuple[Device, ...]] | None = None
        at_once = {Feature.GROUP_SPLIT} if settings.way is Way.DEVICE_MAPPER else set()
        self.features = frozenset(
            {Feature.INSTANT_LEG, Feature.PREPARES, Feature.SUSPENDS, Feature.PROVES, *at_once}
        )

    @property
    def _dm(self) -> DeviceMapper:
        if self._mapper is None:
            self._mapper = DeviceMapper()
        return self._mapper

    def close(self) -> None:
        if self._mapper is not None:
            self._mapper.close()
            self._mapper = None

    # --- what it is doing

    def volumes(self) -> tuple[Volume, ...]:
        found = self._found or self._find()  # asked under a freeze too, when no program may be run
        return tuple(Volume(name=each.name, device=each.path, size=each.size) for each in found)

    def suspends(self) -> tuple[int, ...]:
        found = self._found or self._find()
        volumes = [each.devno for each in found]
        if self._settings.way is Way.DEVICE_MAPPER:
            return tuple(volumes)
        images = [
            i for each in found for image in each.images for i in (image.devno, image.meta_devno)
        ]  # LVM suspends these too
        return tuple(devno for devno in (*volumes, *images) if devno)

    def state(self) -> MirrorState:
        split_id = None
        try:
            record = self._file.read()
            if record is not None and (parted := parting.parted(self._dm, record)):
                split_id = record.split_id
                lacking = len(record.volumes) - len(parted)
                why = f"split as {split_id}" + (f", but for {lacking} volumes" if lacking else "")
                return MirrorState(
                    attached=True, level=False, dirty_bytes=0, split_id=split_id, why=why
                )
            return self._state_unparted(self._find())
        except SplitmirrorError as error:
            return MirrorState(
                attached=not isinstance(error, MirrorNotReady),
                level=False,
                dirty_bytes=0,
                split_id=split_id,
                why=str(error),
            )

    def _state_unparted(self, found: Sequence[RaidVolume]) -> MirrorState:
        states = [self._status(volume) for volume in found]
        split_off = [image.name for each in found for image in each.images if image.tracked]
        whys = [f"{name} is split off" for name in split_off]
        for volume, state in zip(found, states, strict=True):
            whys += [] if state.level else [lvmchecks.why_not_level(volume, state)]
        return MirrorState(
            attached=True,
            level=not whys,
            dirty_bytes=sum(state.total - state.done for state in states if not state.level),
            split_id=lvmchecks.FOREIGN if split_off else None,
            why="; ".join(whys),
        )

    def _find(self) -> tuple[RaidVolume, ...]:
        """Ask LVM. Remembered for those who must not run a program."""
        self._found = lvm.find(self._names)
        return self._found

    def _status(self, volume: RaidVolume) -> ArrayStatus:
        Array.of(self._dm.table(volume.devno))
        return ArrayStatus.of(self._dm.status(volume.devno))

    # --- level

    def synchronize(self, progress: Progress) -> None:
        record = self._file.read()
        if record is not None and parting.parted(self._dm, record):
            raise is_split(record.split_id)
        found = self._find()
        for volume in found:
            lvmchecks.refuse_split_off(volume)
            self._dm.clear(volume.devno)  # a split that was prepared and not made
            self._mend(volume)
        self._wait_level(found, progress)

    def _mend(self, volume: RaidVolume) -> None:
        """Put back the legs that have left and whose disks are here."""
        array, health = Array.of(self._dm.table(volume.devno)), self._status(volume).health
        out = [i for i in volume.images if health[i.position] in (dmraid.FAILED, dmraid.ABSENT)]
        there = [image for image in out if not image.missing]
        if there:
            parting.put_back(
                self._dm, volume, array, [i for i in there if not array.present(i.position)]
            )
        self._refuse_missing(volume)

    def _refuse_missing(self, volume: RaidVolume) -> None:
        """A leg whose disk is gone makes the array degraded; two others must do, if they may."""
        gone = [image for image in volume.images if image.missing]
        if gone and not (self._settings.allow_degraded and len(volume.images) - len(gone) > 1):
            raise lvmchecks.disk_missing(volume, gone[0])

    def _wait_level(self, found: Sequence[RaidVolume], progress: Progress) -> None:
        """Wait until every leg that is there is in sync."""
        furthest, moved_s = -1, time.monotonic()
        while True:
            states = [self._status(volume) for volume in found]
            waiting = [not self._ready(state) for state in states]
            total = sum(state.total for state in states)
            done = sum(
                min(state.done, state.total - 1) if wait else state.total
                for state, wait in zip(states, waiting, strict=True)
            )
            if done > furthest:
                furthest, moved_s = done, time.monotonic()
                progress(done, total)
            if not any(waiting):
                return
            if time.monotonic() - moved_s > _STALLED_S:
                raise lvmchecks.stalled(found, states)
            time.sleep(_LOOK_AGAIN_S)

    def _ready(self, state: ArrayStatus) -> bool:
        """Whether a split can be made of it: level, or as level as it can be when that suffices."""
        if state.level or not self._settings.allow_degraded:
            return state.level
        return state.health.count(dmraid.IN_SYNC) > 1 and dmraid.BEHIND not in state.health

    def prove(self, progress: Progress) -> int:
        self.synchronize(silent)
        found = self._find()
        for volume in found:
            lvm.begin_check(volume.name)
        total, furthest = sum(volume.size for volume in found), 0
        while True:
            states = [self._status(volume) for volume in found]
            checking = [state.action == "check" for state in states]
            done = sum(s.done if c else s.total for s, c in zip(states, checking, strict=True))
            furthest = max(furthest, min(done, total))
            progress(furthest, total)
            if not any(checking):
                return sum(state.mismatched for state in states)
            time.sleep(_LOOK_AGAIN_S)

    # --- split

    def prepare_split(self, split_id: str) -> None:
        self._prepared = self._prepare(split_id)

    def split(self, split_id: str) -> None:
        prepared, self._prepared = self._prepared, None
        if prepared is None or prepared[0].split_id != split_id:
            prepared = self._prepare(split_id)
        if prepared is None:
            return
        record, devices = prepared
        if record.way is Way.DEVICE_MAPPER:
            parting.part_all(self._dm, devices, enough=2 if self._settings.allow_degraded else None)
        else:
            for device in devices:
                lvm.part(device.volume.name, device.volume.pvs)
        for device in devices:
            parting.mark(self._dm, device.volume)

    def _prepare(self, split_id: str) -> tuple[PartedRecord, tuple[Device, ...]] | None:
        """Everything but the split itself; None when the mirror is split so already."""
        record = self._file.read()
        if record is not None and (parted := parting.parted(self._dm, record)):
            if record.split_id == split_id and len(parted) == len(record.volumes):
                return None
            raise is_split(record.split_id)
        volumes = tuple(self._choose(volume) for volume in self._find())
        record = PartedRecord(
            split_id=split_id, way=self._settings.way, boot=boot_id(), volumes=volumes
        )
        self._file.save(record)
        devices = tuple(parting.device_of(self._dm, volume) for volume in volumes)
        for device in devices:
            self._dm.clear(device.devno)
            if record.way is Way.DEVICE_MAPPER:
                self._dm.load(device.devno, [device.array.without(device.volume.position)])
        return record, devices

    def _choose(self, volume: RaidVolume) -> PartedVolume:
        """Which leg is split, and all that will be asked of it later."""
        lvmchecks.refuse_split_off(volume)
        state = self._status(volume)
        image = lvmchecks.leg_of(volume, state, self._legs[volume.name])
        if not self._ready(state):
            raise MirrorNotReady(
                f"{lvmchecks.why_not_level(volume, state)}: it is not split",
                hint="Run `splitmirror resync`, which waits and says what is wrong.",
            )
        if image.kind != "linear":
            raise UnsafeMirror(f"{image.name} is {image.kind}", hint="Only linear legs are read.")
        return PartedVolume(
            name=volume.name,
            path=volume.path,
            uuid=self._dm.info(volume.devno).uuid,
            size=volume.size,
            position=image.position,
            image=image.name,
            image_path=image.path,
            image_uuid=self._dm.info(image.devno).uuid,
            meta_path=blockdev.devno_path(image.meta_devno),
            pvs=image.pvs,
        )

    # --- the leg

    def leg(self, split_id: str, deadline_s: float) -> Leg:
        record = self._file.read()
        if record is None or record.split_id != split_id:
            raise no_such_split(split_id)
        seen = tuple(parting.seen(self._dm, volume, record) for volume in record.volumes)
        if seen != record.volumes:
            self._file.save(replace(record, volumes=seen))
        runs = {v.name: (Run(path=v.image_path, offset=0, length=v.size),) for v in seen}
        return Leg(split_id=split_id, volumes=runs)

    # --- rejoin

    def rejoin(self, split_id: str) -> None:
        record = self._file.read()
        if split_id == lvmchecks.FOREIGN:
            self._give_back(lambda image: image.tracked)
            return
        if record is None or record.split_id != split_id:
            return
        parted = {device.volume.image for device in parting.parted(self._dm, record)}
        self._give_back(lambda image: image.name in parted)
        self._file.remove()

    def _give_back(self, parted: Callable[[Image], bool]) -> None:
        """Every such leg joins again, or none does because one of them is in use or gone."""
        found = self._find()
        legs = {
            volume.name: [image for image in volume.images if parted(image)] for volume in found
        }
        for volume in found:
            for image in legs[volume.name]:
                if image.missing:
                    raise lvmchecks.disk_missing(volume, image)
                self._check_unused(image.name, image.path)
        for volume in found:
            self._dm.clear(volume.devno)  # a split that was prepared and not made
            if legs[volume.name]:
                array = Array.of(self._dm.table(volume.devno))
                parting.put_back(self._dm, volume, array, legs[volume.name])
        if any(legs.values()):
            self._wait_level(found, silent)

    def _check_unused(self, image: str, path: str) -> None:
        """Raise Busy while somebody reads the leg: it would change under them."""
        until = time.monotonic() + _PROBED_S
        while self._dm.info(blockdev.devno_of(path)).users:
            if time.monotonic() > until:
                raise Busy(
                    f"the leg {image} is in use", hint=f"Unmount it, or see `fuser -v {path}`."
                )
            time.sleep(_LOOK_AGAIN_S)

    # --- what would make a split unsafe

    def preflight(self, filesystems: Sequence[Filesystem]) -> list[Finding]:
        try:
            found = self._find()
        except SplitmirrorError as error:
            return [Finding(what="volumes of the mirror", problem=error)]
        findings = [finding for volume in found for finding in self._look(volume)]
        for filesystem in filesystems:
            findings.append(
                looked(f"place of {filesystem.mountpoint}", partial(self._place, filesystem))
            )
        return findings

    def _look(self, volume: RaidVolume) -> Iterator[Finding]:
        what = f"mirror {volume.name}: raid1 of {len(volume.images)} legs"
        try:
            lvmchecks.refuse_split_off(volume)
            self._refuse_missing(volume)
            state = self._status(volume)
        except SplitmirrorError as error:
            yield Finding(what=what, problem=error)
            return
        if not self._ready(state):  # what the synchronization is there for
            problem = MirrorNotReady(
                lvmchecks.why_not_level(volume, state),
                hint="A backup puts back what it can and waits until it is level; `splitmirror "
                "resync` does so now.",
            )
            yield Finding(what=what, problem=problem, warning=True)
            return
        yield looked(
            f"{what} ({state.health}), split by {self._settings.way}",
            partial(self._choose, volume),
        )
        yield lvmchecks.redundancy(volume, state)

    def _place(self, filesystem: Filesystem) -> None:
        """The filesystem lies on one of our volumes, and LVM on nothing that it would freeze."""
        if filesystem.volume not in self._names:
            raise NotOnMirror(
                f"{filesystem.mountpoint} is not on this mirror",
                hint="Name its volume in [[mirror.volumes]].",
            )
        for place in map(Path, lvm.PLACES):
            if place.exists() and place.stat().st_dev == filesystem.devno:
                raise WouldFreeze(
                    f"{place} lies on {filesystem.mountpoint}, which will be frozen",
                    hint="LVM would hang there. Keep the database on a filesystem of its own.",
                )
