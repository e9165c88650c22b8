"""The recipe: how one file, a subtree or a whole set comes back from the medium.

`restore` reads from top to bottom as it is done: find out what is wanted and where it lies, look
whether it may and can be put there, read each volume once forwards (several at once where there are
drives for them), check each file by its hash while it is written, make all of it durable, and let
the database make itself ready.

Below a target, members stand under their names in the set: target/data, target/wal,
target/tblspc/16385, target/outside/etc/... With `original`, each tree goes to the path it came
from. A damaged file leaves nothing under its name: at its original place the old one stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from splitmirror.archive.ahead import Windows
from splitmirror.archive.clearing import clear, require_empty, require_room, require_unused
from splitmirror.archive.dressing import Skipped
from splitmirror.archive.ground import Anchor
from splitmirror.archive.hands import Hands, hands_for
from splitmirror.archive.incomplete import marked_incomplete
from splitmirror.archive.putting import Mismatch, Putter
from splitmirror.archive.seeking import PartReader, Recorded, require_part
from splitmirror.bringing import Bringing, OnVolume, Told, on_volumes
from splitmirror.catalog import Located, Lookup
from splitmirror.catalog.looking import Extent
from splitmirror.errors import ConfigError, NoSuchFile, NoSuchSet, VerifyFailed
from splitmirror.media import Medium
from splitmirror.media.supply import Loaded, ReadSupply
from splitmirror.model import BackupSet, Kind
from splitmirror.progress import Progress, silent

if TYPE_CHECKING:
    from splitmirror.databases import Database

OUTSIDE = b"outside"  # members below it: configuration files, named by their absolute paths
_LISTED = 20  # damaged files that a message names

NameAndPlace = tuple[bytes, bytes]
"""A member's name, and where it leads as a symbolic link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport:
    """What came back. `bytes` were stored data, without holes; `files` count everything but
    directories; `removed` went from the original place because the set does not hold it.
    `leading_back`: symbolic links below the target that lead to where the set came from, each with
    where it leads: whoever follows one works on the original's files."""

    set_id: str
    files: int
    directories: int
    bytes: int
    mismatches: tuple[Mismatch, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    removed: int = 0
    leading_back: tuple[NameAndPlace, ...] = ()


def restore(
    supply: ReadSupply,
    catalog: Lookup | None,
    set_id: str,
    patterns: Sequence[bytes],
    target: Path | None,
    *,
    original: bool = False,
    database: Database | None = None,
    keep_damaged: bool = False,
    progress: Progress = silent,
) -> RestoreReport:
    """Restore the members that match `patterns` (none: the whole set) below `target`, which must
    be empty or absent, or with `original`, and no target, to where they came from.

    Without a catalogue the set's own is read off the volumes at hand. At the original place files
    are replaced one by one, each at one instant; of a whole set, what the set does not hold goes
    first (but directories directly in a tree's root stay: another server's may lie there). A target
    is marked as incomplete until everything in it is durable. A whole set is made ready by
    `database`. Nothing is ever written outside the target, whatever the medium says.

    Raises NoSuchSet, NoSuchFile, TargetNotEmpty, Busy (the original is in use), NoRoom,
    NoSuchVolume, WrongMedium, OutsideTarget; VerifyFailed, with the report as a fact, when
    everything else was restored but some files are damaged (`keep_damaged`: what was read of them
    is in NAME.damaged). A second call after a failure is harmless at the original place; a target
    must be emptied.
    """
    with _index(supply, catalog, set_id) as index, Bringing(supply) as bringing:
        backup_set = index.get(set_id)
        whole = not patterns
        wanted = _select(index, backup_set, patterns)
        anchors = _anchors(backup_set, target, original)
        volumes = on_volumes(index.parts(backup_set.set_id), wanted.parts)
        _require(supply, bringing, volumes)
        _look_first(target, anchors, wanted)
        removed = 0
        if original and whole:
            removed = clear(anchors, index.kinds(backup_set.set_id).get)
        with _marked(target, backup_set):
            with _Putting(
                index, backup_set, patterns, wanted, bringing, volumes,
                anchors=anchors,
                original=original,
                keep_damaged=keep_damaged,
                progress=progress,
            ) as putting:  # fmt: skip
                bringing.each(volumes, putting.volume)
                putting.links_left()
                if not whole and not original:
                    putting.directories_above()
                putting.finish()
            if whole and database is not None:
                database.make_ready(roots_of(index, backup_set, target), backup_set.facts)
    report = putting.report(removed, target)
    _raise_if_damaged(report)
    return report


def roots_of(index: Lookup, backup_set: BackupSet, target: Path | None) -> dict[bytes, Path]:
    """Where each tree of a whole set, and each file off the trees, was restored. Trees of which the
    set holds nothing are not among them."""
    target = None if target is None else Path(os.path.abspath(target))
    places = {
        name: Path(os.fsdecode(path)) if target is None else target / os.fsdecode(name)
        for name, path in backup_set.trees
        if index.find(backup_set.set_id, name)
    }
    for member in index.members(backup_set.set_id, [OUTSIDE]):
        name = member.record.name
        if member.record.attributes.kind is not Kind.DIRECTORY and name not in places:
            above = Path("/") if target is None else target / os.fsdecode(OUTSIDE)
            places[name] = above / os.fsdecode(name.removeprefix(OUTSIDE + b"/"))
    return places


# --- the steps, in the order of the recipe


@contextmanager
def _index(supply: ReadSupply, catalog: Lookup | None, set_id: str) -> Iterator[Lookup]:
    """The catalogue, or one made from the volumes at hand, for this set."""
    if catalog is not None:
        yield catalog
        return
    from splitmirror.catalog.rebuild import record_sets, temporary_catalog

    with temporary_catalog() as index:
        record_sets(supply, index, only=set_id)
        yield index


def _select(index: Lookup, backup_set: BackupSet, patterns: Sequence[bytes]) -> Extent:
    """Raises NoSuchFile when there is nothing, NoSuchSet for all of a set that is incomplete."""
    if not patterns and not backup_set.complete:
        raise NoSuchSet(
            f"the set {backup_set.set_id} is incomplete: the database in it cannot be started",
            hint="Restore another set, or single files of this one by their names ('**' for all).",
        )
    wanted = index.extent(backup_set.set_id, patterns)
    if not wanted.files:
        shown = ", ".join(repr(os.fsdecode(pattern)) for pattern in patterns) or "anything"
        raise NoSuchFile(
            f"the set {backup_set.set_id} does not hold {shown}",
            hint=f"'splitmirror show {backup_set.set_id} --files' lists its names; quote globs.",
        )
    return wanted


def _anchors(backup_set: BackupSet, target: Path | None, original: bool) -> list[Anchor]:
    if original == (target is not None):
        raise ConfigError(
            "a restore goes to a target or to the original place, one of the two",
            hint="Name a directory, or ask for the original place.",
        )
    if target is not None:
        return [Anchor(directory=Path(os.path.abspath(target)))]
    if not backup_set.trees:
        raise NoSuchSet(
            f"the set {backup_set.set_id} was cut off and does not say where its files came from",
            hint="Restore them to a directory.",
        )
    anchors = [Anchor.at(name, path) for name, path in backup_set.trees]
    if not any(anchor.holds(OUTSIDE) for anchor in anchors):
        anchors.append(Anchor(directory=Path("/"), prefix=OUTSIDE, public=True))
    return anchors


def _look_first(target: Path | None, anchors: Sequence[Anchor], wanted: Extent) -> None:
    """Whatever would stop the restore, while nothing has been written."""
    if target is not None:
        require_empty(target)
        require_room(target, wanted.stored, wanted.files)
    else:
        require_unused([anchor for anchor in anchors if anchor.prefix != OUTSIDE])


def _marked(target: Path | None, backup_set: BackupSet) -> AbstractContextManager[None]:
    return nullcontext() if target is None else marked_incomplete(target, backup_set.set_id)


def _require(supply: ReadSupply, bringing: Bringing, volumes: Sequence[OnVolume]) -> None:
    """All volumes can be had, as far as that can be known, and the first is there with what the
    catalogue says: known before anything is written or taken away."""
    if len(volumes) > 1:
        supply.require([one.serial for one in volumes])
    medium, volume = bringing.bring(volumes[0].serial)
    require_part(medium, volume, volumes[0].parts[0])


class _Putting:
    """What of the set is asked for, put into its place volume by volume. Leaving it waits for the
    hands; after an error it gives up what is not whole."""

    def __init__(
        self,
        index: Lookup,
        backup_set: BackupSet,
        patterns: Sequence[bytes],
        wanted: Extent,
        bringing: Bringing,
        volumes: Sequence[OnVolume],
        *,
        anchors: Sequence[Anchor],
        original: bool,
        keep_damaged: bool,
        progress: Progress,
    ) -> None:
        """The first of the volumes is there, its labels looked at."""
        self._bringing, self._index, self._proven = bringing, index, volumes[0]
        self._set_id, self._patterns = backup_set.set_id, patterns
        self._told = Told(progress, wanted.stored)
        self._parts = {part.number: part for part in index.parts(self._set_id)}
        self._windows = Windows(bringing.at_once(volumes))
        self._hands = Hands(
            anchors,
            self._windows,
            replace=original,
            flush_each=original and bool(patterns),
            processes=hands_for(wanted.files, wanted.stored),
        )
        self._putter = Putter(
            self._hands,
            self._windows,
            wanted.linked,
            keep_damaged=keep_damaged,
            originals=() if original else tuple(path for _, path in backup_set.trees),
        )
        self._leaving = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as leaving:
            leaving.enter_context(self._hands)
            leaving.enter_context(self._putter)
            self._leaving = leaving.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leaving.__exit__(kind, error, trace)

    def volume(self, loaded: Loaded, wanted: OnVolume) -> None:
        """All that is wanted of a volume, and the data of links to what is not."""
        medium, volume = loaded
        if wanted is not self._proven:
            require_part(medium, volume, wanted.parts[0])
        with closing(self._index.beside()) as index:
            for numbers in wanted.numbers:
                self._put(medium, index.stretches(self._set_id, self._patterns, parts=numbers))
            self._hands.flush()
            for target in self._putter.links_that_wait():
                members = index.find(self._set_id, target)
                if members and all(self._serial(one) == volume.serial for one in members):
                    self._put_target(medium, target, members)

    def links_left(self) -> None:
        """All volumes were read. Links whose target could not be placed where its volume was: its
        data once more."""
        self._putter.end()
        for target in self._putter.links_that_wait():
            members = self._index.find(self._set_id, target)
            for serial, some in groupby(members, key=self._serial):
                medium, _ = self._bringing.bring(serial)
                self._put_members(medium, list(some))
                self._bringing.let_go(serial)
            self._putter.link_left(target)

    def directories_above(self) -> None:
        """The directories above what was asked for get the attributes they had; the catalogue knows
        them, so that nothing more is read."""
        above = {
            name[:cut]
            for _, record in self._index.members(self._set_id, self._patterns)
            for name in (record.name,)
            for cut in _slashes(name)
        }
        for name in sorted(above):
            for _, record in self._index.find(self._set_id, name):
                if record.attributes.kind is Kind.DIRECTORY:
                    self._hands.directory(name, record.attributes)

    def finish(self) -> None:
        """Directories' attributes, then everything is made durable."""
        self._putter.settle()
        self._hands.finish()

    def report(self, removed: int, target: Path | None) -> RestoreReport:
        """What came back, once all is settled."""
        return RestoreReport(
            set_id=self._set_id,
            files=self._hands.files,
            directories=self._hands.directories,
            bytes=self._putter.bytes,
            mismatches=self._putter.mismatches,
            skipped=self._hands.skipped,
            removed=removed,
            leading_back=() if target is None else _still_leading(target, self._putter.leading),
        )

    def _put(self, medium: Medium, stretches: Iterable[tuple[int, Sequence[Recorded]]]) -> None:
        for number, group in groupby(stretches, key=lambda stretch: stretch[0]):
            with self._reader(medium, number) as reader:
                for records in reader.foreseeing(records for _, records in group):
                    self._bringing.check()
                    self._putter.put(reader, records)
                    self._told.add(sum(record.stored for record in records))

    def _put_target(self, medium: Medium, target: bytes, members: Sequence[Located]) -> None:
        """A link stands in the part of its target, so that this is near by, though backwards."""
        self._put_members(medium, members)
        self._putter.link_left(target)

    def _put_members(self, medium: Medium, members: Sequence[Located]) -> None:
        for number, record in members:
            with self._reader(medium, number) as reader:
                self._putter.put_for_links(reader, record)

    def _reader(self, medium: Medium, number: int) -> PartReader:
        return PartReader(medium, self._parts[number], self._windows, self._hands.flush)

    def _serial(self, member: Located) -> str:
        position = self._parts[member.part].position
        return position.volume if position else ""


def _slashes(name: bytes) -> Iterator[int]:
    return (at for at, byte in enumerate(name) if byte == 0x2F)


def _still_leading(target: Path, links: Sequence[NameAndPlace]) -> tuple[NameAndPlace, ...]:
    """Those of the links that the database has not led elsewhere since."""
    found = []
    for name, whereto in links:
        path = target / os.fsdecode(name)
        if path.is_symlink() and os.fsencode(path.readlink()) == whereto:
            found.append((name, whereto))
    return tuple(found)


def _raise_if_damaged(report: RestoreReport) -> None:
    if not report.mismatches:
        return
    named = [f"{os.fsdecode(bad.name)}: {bad.why}" for bad in report.mismatches[:_LISTED]]
    more = len(report.mismatches) - len(named)
    raise VerifyFailed(
        f"{len(report.mismatches)} of the files are damaged on the medium and were not restored "
        "(everything else was):\n  " + "\n  ".join([*named, *([f"and {more} more"] * bool(more))]),
        hint="Restore these from another set, or what is left of them with --keep-damaged.",
        report=report,
    )
