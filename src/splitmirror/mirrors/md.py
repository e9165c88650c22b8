"""md raid1 arrays: the leg is a member that is failed, and taken back by the array's bitmap.

A split is one write to a file of sysfs for each array: from then on md writes nothing to that
member. All volumes on one array are split at one instant. md knows nothing of splits, so whose a
parted member is stands in a file of ours, and the world is asked whether that still holds: a member
may have been taken back by mdadm, by udev, or at boot. docs/adr/0015 says why it is done so.
Sources: md(4), mdadm(8), Documentation/admin-guide/md.rst.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
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
)
from splitmirror.mirrors import Feature, MirrorState, Place, Recognized, is_split, no_such_split
from splitmirror.model import Filesystem, Finding, Leg, Run, Volume
from splitmirror.progress import Progress
from splitmirror.system import blockdev, dmlinear, md, mdchecks, mdlegs, mdproof, mdsuper
from splitmirror.system.md import Array, Member
from splitmirror.system.mdrecord import (
    MdRecord,
    MdRecordFile,
    Parted,
    Split,
    write_marks,
)

PROGRAMS = ("mdadm",)  # what doctor looks for

_SPLIT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_BEGIN_S = 10.0  # a copy to a member that joins begins within as much
_POLL_S = 0.1


class ArraySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An array. `leg`: the member that is parted; by default the last that is in sync."""

    device: str
    leg: str = ""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[mirror]` with driver = "md". `allow_degraded`: split an array that lacks a mirror, as long
    as one copy goes on."""

    arrays: tuple[ArraySettings, ...]
    allow_degraded: bool = False

    def __post_init__(self) -> None:
        names = [_name(array.device) for array in self.arrays]
        if not names or len(set(names)) < len(names):
            raise ConfigError(
                f"[mirror] arrays have the names {names}",
                hint='Name one or more arrays, each once: device = "/dev/md0".',
            )
        paths = [path for array in self.arrays for path in (array.device, array.leg) if path]
        if not all(Path(path).is_absolute() for path in paths):
            raise ConfigError("[mirror] has a relative path", hint="Begin each with /dev/.")


def recognize(place: Place) -> Recognized | None:
    """An array of mirrors, or a volume on one."""
    for layer in place.layers:
        if layer.kind == "md raid1":
            with contextlib.suppress(SplitmirrorError):
                members = len(md.array(layer.path).members)
                return Recognized(
                    table="arrays",
                    entry={"device": layer.path},
                    note=f"a raid1 array of {members} members",
                )
    return None


def _name(device: str) -> str:
    return os.path.basename(device)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A split that only has to be told to the arrays: descriptors of each leg's state, and of the
    file for the marks."""

    split_id: str
    legs: tuple[Parted, ...]
    state_fds: tuple[int, ...]
    marks_fd: int
    closing: ExitStack


def open_mirror(settings: Settings, state_dir: Path) -> MdMirror:
    """The mirror of these settings."""
    return MdMirror(settings, state_dir)


class MdMirror:
    """See `Mirror`, `Preparing` and `Proving`."""

    def __init__(self, settings: Settings, state_dir: Path) -> None:
        self._settings = settings
        self._file = MdRecordFile(state_dir, [array.device for array in settings.arrays])
        self._prepared: _Prepared | None = None
        features = {Feature.PREPARES, Feature.INSTANT_LEG, Feature.PROVES}
        if len(settings.arrays) == 1:
            features.add(Feature.GROUP_SPLIT)
        self.features = frozenset(features)

    # --- what it is doing

    def volumes(self) -> tuple[Volume, ...]:
        arrays = self._arrays(self._known())
        for array in arrays.values():
            if not array.active:
                raise mdchecks.not_level(array, f"{array.path} does not run")
        whole = [
            Volume(name=name, device=array.path, size=array.size) for name, array in arrays.items()
        ]
        scattered = dmlinear.scattered({array.devno for array in arrays.values()})
        pieces = [Volume(name=lv.name, device=lv.path, size=lv.size) for lv in scattered]
        return (*whole, *pieces)

    def state(self) -> MirrorState:
        record = MdRecord()
        try:
            record = self._known()
            arrays = self._arrays(record)
            parted = self._parted(record, arrays.values())
            why = f"split as {parted}" if parted else self._why_not_level(record, arrays.values())
            dirty = sum(_dirty(array) for array in arrays.values()) if why else 0
        except (SplitmirrorError, OSError) as error:
            return MirrorState(
                attached=not isinstance(error, MirrorNotReady),
                level=False,
                dirty_bytes=0,
                split_id=record.split.split_id if record.split else None,
                why=str(error),
            )
        return MirrorState(
            attached=True, level=not why, dirty_bytes=dirty, split_id=parted, why=why
        )

    def close(self) -> None:
        self._forget_prepared()

    def _known(self) -> MdRecord:
        return self._file.read() or MdRecord()

    def _arrays(self, record: MdRecord) -> dict[str, Array]:
        """The arrays of the settings by their names in them, in that order."""
        pending = record.arrays if record.split or record.returning else {}
        return {
            _name(wanted.device): _find(wanted.device, pending.get(_name(wanted.device), ""))
            for wanted in self._settings.arrays
        }

    def _why_not_level(self, record: MdRecord, arrays: Iterable[Array]) -> str:
        for array in arrays:
            why = mdchecks.why_not_level(array, allow_degraded=self._settings.allow_degraded)
            if why:
                return "; ".join([why, *record.copied_whole.values()]) if array.syncing else why
        return ""

    def _out(self, split: Split, arrays: Iterable[Array]) -> list[Parted]:
        """The legs of a split that are out of their arrays now."""
        known, marks = list(arrays), self._file.marks.read()
        made = marks.events if marks and marks.split_id == split.split_id else {}
        return [
            leg for leg in split.legs if not mdlegs.is_in(leg, known, was_parted=leg.device in made)
        ]

    def _parted(self, record: MdRecord, arrays: Iterable[Array]) -> str | None:
        """The split of which a leg is out of its array now."""
        if record.split is None or not self._out(record.split, arrays):
            return None
        return record.split.split_id

    def _check_same(
        self, record: MdRecord, parted: str, split_id: str, arrays: Iterable[Array]
    ) -> None:
        """Raise MirrorError unless the mirror is split so already, all of it."""
        if record.split is None or parted != split_id:
            raise is_split(parted)
        if len(self._out(record.split, arrays)) < len(record.split.legs):
            raise MirrorError(
                f"split {split_id} was made of some of the arrays only", hint="Rejoin it first."
            )

    # --- level

    def synchronize(self, progress: Progress) -> None:
        self._file.make_directory()
        with self._file.locked():
            record = self._known()
            arrays = self._arrays(record)
            for array in arrays.values():
                mdchecks.check_kind(array)
            if parted := self._parted(record, arrays.values()):
                raise is_split(parted)
            if record.split:  # it was prepared, and never made
                record = dataclasses.replace(record, split=None)
                self._file.save(record)
            if record.returning:
                self._give_back(record, arrays.values())
            self._wait_level(progress)

    def _wait_level(self, progress: Progress) -> None:
        """Wait until every array is as whole as it must be."""
        allow, begin_by, done = self._settings.allow_degraded, time.monotonic() + _BEGIN_S, 0
        while True:
            arrays = self._arrays(self._known()).values()
            total = sum(array.size for array in arrays)
            left = {array: mdchecks.why_not_level(array, allow_degraded=allow) for array in arrays}
            done = max(done, sum(_copied(array) for array in arrays))
            progress(done if any(left.values()) else total, total)
            if not any(left.values()):
                return
            for array, why in left.items():
                if why and not _copies(array, time.monotonic() < begin_by):
                    raise mdchecks.not_level(array, why)
            time.sleep(_POLL_S)

    # --- split

    def prepare_split(self, split_id: str) -> None:
        self._forget_prepared()
        self._prepared = self._prepare(split_id)

    def split(self, split_id: str) -> None:
        prepared = self._prepared
        if prepared is None or prepared.split_id != split_id:
            self.prepare_split(split_id)
            prepared = self._prepared
        if prepared is None:
            return
        parted: list[Parted] = []
        try:
            for leg, fd in zip(prepared.legs, prepared.state_fds, strict=True):
                md.fail(fd)
                parted.append(leg)
            write_marks(prepared.marks_fd, split_id, mdlegs.events(parted))
        except BaseException:
            with contextlib.suppress(LegError, OSError):  # which were parted, for the rejoin
                write_marks(prepared.marks_fd, split_id, mdlegs.events(parted))
            raise
        finally:
            self._forget_prepared()

    def _forget_prepared(self) -> None:
        if self._prepared is not None:
            self._prepared.closing.close()
        self._prepared = None

    def _prepare(self, split_id: str) -> _Prepared | None:
        """Everything but the split itself; None when the mirror is split so already."""
        if not _SPLIT_ID.fullmatch(split_id):
            raise MirrorError(
                f"{split_id!r} cannot name a split",
                hint="Take at most 100 letters, digits, dots, dashes and underscores.",
            )
        self._file.make_directory()
        with self._file.locked():
            record = self._known()
            arrays = self._arrays(record)
            if parted := self._parted(record, arrays.values()):
                self._check_same(record, parted, split_id, arrays.values())
                return None
            members = self._legs(arrays)
            legs = tuple(mdlegs.parted_of(array, leg) for array, leg in members)
            split = Split(split_id=split_id, legs=legs, volumes=mdlegs.pieces(arrays))
            uuids = {name: array.uuid for name, array in arrays.items()}
            self._file.save(MdRecord(arrays=uuids, split=split, returning=record.returning))
            return self._opened(split, members)

    def _legs(self, arrays: Mapping[str, Array]) -> list[tuple[Array, Member]]:
        """What is to be parted. Raises UnsafeMirror, MirrorNotReady where that cannot be."""
        found = []
        for wanted, array in zip(self._settings.arrays, arrays.values(), strict=True):
            mdchecks.check_kind(array)
            allow = self._settings.allow_degraded
            if why := mdchecks.why_not_level(array, allow_degraded=allow):
                raise mdchecks.not_level(array, why)
            leg = _chosen(wanted, array)
            mdchecks.check_leg(array, leg)
            found.append((array, leg))
        return found

    def _opened(self, split: Split, members: Sequence[tuple[Array, Member]]) -> _Prepared:
        with ExitStack() as undo:
            marks_fd = self._file.marks.prepare()
            undo.callback(os.close, marks_fd)
            state_fds = []
            for array, leg in members:
                state_fds.append(md.open_state(array, leg))
                undo.callback(os.close, state_fds[-1])
            return _Prepared(
                split_id=split.split_id,
                legs=split.legs,
                state_fds=tuple(state_fds),
                marks_fd=marks_fd,
                closing=undo.pop_all(),
            )

    # --- the leg

    def leg(self, split_id: str, deadline_s: float) -> Leg:
        split = self._known().split
        if split is None or split.split_id != split_id:
            raise no_such_split(split_id)
        with self._file.locked():
            paths = {leg.array: mdlegs.taken_out(leg, split_id) for leg in split.legs}
            mdlegs.check_untouched(split, paths, self._file.marks)
        begins = {leg.array: leg.data_offset for leg in split.legs}
        for path in paths.values():
            mdlegs.flush(path, split_id)
        return Leg(
            split_id=split_id,
            volumes={
                name: tuple(
                    Run(path=paths[p.array], offset=begins[p.array] + p.offset, length=p.length)
                    for p in pieces
                )
                for name, pieces in split.volumes.items()
            },
        )

    # --- rejoin

    def rejoin(self, split_id: str) -> None:
        split = self._known().split
        if split is None or split.split_id != split_id:
            return
        self._forget_prepared()
        with self._file.locked():
            record = self._known()
            if record.split is None or record.split.split_id != split_id:
                return
            arrays = self._arrays(record)
            out = self._out(record.split, arrays.values())
            for leg in out:
                mdlegs.check_unused(leg)
            record = dataclasses.replace(record, split=None, returning=tuple(out), copied_whole={})
            self._file.save(record)  # before the first byte of the leg is overwritten
            self._give_back(record, arrays.values())

    def _give_back(self, record: MdRecord, arrays: Collection[Array]) -> None:
        """Every leg into its array again; wait for what only has to be copied in part."""
        whole = {}
        for leg in record.returning:
            array = mdlegs.array_of(leg, arrays)
            if mdlegs.is_in(leg, arrays, was_parted=True):
                continue
            if not mdlegs.give_back(leg, array):
                whole[leg.array] = f"{leg.path} is copied in full: it was out for too long"
        self._file.save(dataclasses.replace(record, returning=(), copied_whole=whole))
        for leg in record.returning:
            if leg.array not in whole:
                mdlegs.wait_copied(leg, md.array(mdlegs.array_of(leg, arrays).path))

    # --- proof

    def prove(self, progress: Progress) -> int:
        self._file.make_directory()
        with self._file.locked():
            record = self._known()
            arrays = self._arrays(record)
            if parted := self._parted(record, arrays.values()):
                raise is_split(parted)
            if why := self._why_not_level(record, arrays.values()):
                raise MirrorNotReady(why, hint="Run `splitmirror resync` first.")
            total = sum(array.size for array in arrays.values())
            begin = differing = 0
            for array in arrays.values():
                differing += mdproof.prove(array, partial(_further, progress, begin, total))
                begin += array.size
        progress(total, total)
        return differing

    # --- what would make a split unsafe

    def preflight(self, filesystems: Sequence[Filesystem]) -> list[Finding]:
        findings: list[Finding] = []
        try:
            record = self._known()
            arrays = self._arrays(record)
            if parted := self._parted(record, arrays.values()):
                return [Finding(what="mirror", problem=is_split(parted))]
            for wanted, array in zip(self._settings.arrays, arrays.values(), strict=True):
                leg = _chosen(wanted, array) if array.in_sync else None
                allow = self._settings.allow_degraded
                findings += mdchecks.findings(array, leg, allow_degraded=allow)
            mirrored = {volume.name for volume in self.volumes()} if filesystems else set()
        except SplitmirrorError as problem:
            return [*findings, Finding(what="mirror", problem=problem)]
        return findings + [_place(filesystem, mirrored) for filesystem in filesystems]


def _place(filesystem: Filesystem, mirrored: Collection[str]) -> Finding:
    what = f"disk below {filesystem.mountpoint}"
    if filesystem.volume in mirrored:
        return Finding(what=what)
    problem = NotOnMirror(
        f"{filesystem.mountpoint} is not on this mirror", hint="Name its array in [mirror]."
    )
    return Finding(what=what, problem=problem)


# --- arrays


def _find(device: str, uuid: str) -> Array:
    """An array by its name, or under another name by the UUID that it had: the kernel numbers
    arrays as they come. Raises MirrorNotReady."""
    try:
        named = md.array(device)
        if not uuid or named.uuid == uuid:
            return named
    except MirrorNotReady:
        if not uuid:
            raise
    for array in md.arrays():
        if array.uuid == uuid and array.active:
            return array
    return md.array(device)


def _chosen(wanted: ArraySettings, array: Array) -> Member:
    """The member of an array that is its leg. Raises MirrorNotReady."""
    if not wanted.leg:
        return array.in_sync[-1]
    devno = blockdev.devno_of(wanted.leg)
    for member in array.in_sync:
        if member.devno == devno:
            return member
    raise MirrorNotReady(
        f"{wanted.leg} is no member of {array.path} that is in sync",
        hint=f"Name another leg in [mirror], or see `mdadm --detail {array.path}`.",
    )


def _further(progress: Progress, begin: int, total: int, done: int) -> None:
    progress(begin + done, total)


def _copied(array: Array) -> int:
    """How many bytes of it are known to be on all its members."""
    if not array.syncing:
        return 0 if array.missing else array.size
    return array.size * array.done // array.total if array.total else 0


def _copies(array: Array, may_begin: bool) -> bool:
    """Whether an array copies to a member, or will."""
    md.go_on(array)
    return array.syncing or (may_begin and any(member.joining for member in array.members))


def _dirty(array: Array) -> int:
    """What a member that is out, or being copied to, lacks."""
    marked = mdsuper.dirty_bytes(array.in_sync[0].path) if array.in_sync else 0
    left = array.total - array.done
    return min((size for size in (marked, left) if size > 0), default=0)


# --- splits
