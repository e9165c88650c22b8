"""The recipe: how one file, a subtree or a whole set comes back from the medium.

`restore` reads from top to bottom as it is done: find out what is wanted and where it lies, look
whether it may and can be put there, read the medium once forwards, check each file by its hash
while it is written, make all of it durable, and let the database make itself ready.

Below a target, members stand under their names in the set: target/data, target/wal,
target/tblspc/16385, target/outside/etc/... With `original`, each tree goes to the path it came
from. A damaged file leaves nothing under its name: at its original place the old one stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from splitmirror.archive.ahead import Windows
from splitmirror.archive.clearing import clear, require_empty, require_room, require_unused
from splitmirror.archive.dressing import Skipped
from splitmirror.archive.ground import Anchor
from splitmirror.archive.hands import Hands, hands_for
from splitmirror.archive.incomplete import marked_incomplete
from splitmirror.archive.putting import Mismatch, Putter
from splitmirror.archive.seeking import (
    PartReader,
    Recorded,
    loaded,
    require_part,
    require_volume,
)
from splitmirror.catalog import Lookup
from splitmirror.catalog.looking import Extent
from splitmirror.errors import ConfigError, NoSuchFile, NoSuchSet, VerifyFailed
from splitmirror.media import Medium
from splitmirror.media.walking import VolumeReader
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
    medium: Medium,
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

    Without a catalogue the set's own is read off the medium. At the original place files are
    replaced one by one, each at one instant; of a whole set, what the set does not hold goes first
    (but directories directly in a tree's root stay: another server's may lie there). A target is
    marked as incomplete until everything in it is durable. A whole set is made ready by `database`.
    Nothing is ever written outside the target, whatever the medium says.

    Raises NoSuchSet, NoSuchFile, TargetNotEmpty, Busy (the original is in use), NoRoom,
    WrongMedium, OutsideTarget; VerifyFailed, with the report as a fact, when everything else was
    restored but some files are damaged (`keep_damaged`: what was read of them is in NAME.damaged).
    A second call after a failure is harmless at the original place; a target must be emptied.
    """
    with loaded(medium) as volume, _index(medium, volume, catalog, set_id) as index:
        backup_set = index.get(set_id)
        whole = not patterns
        wanted = _select(index, backup_set, patterns)
        anchors = _anchors(backup_set, target, original)
        windows = Windows()
        readers = _Readers(medium, volume, index, backup_set, windows)
        readers.require(wanted.parts)
        _look_first(target, anchors, wanted)
        removed = 0
        if original and whole:
            removed = clear(anchors, index.kinds(backup_set.set_id).get)
        originals = () if original else tuple(path for _, path in backup_set.trees)
        with _marked(target, backup_set):
            with (
                Hands(
                    anchors,
                    windows,
                    replace=original,
                    flush_each=original and not whole,
                    processes=hands_for(wanted.files, wanted.stored),
                ) as hands,
                Putter(
                    hands,
                    windows,
                    wanted.linked,
                    keep_damaged=keep_damaged,
                    originals=originals,
                ) as putter,
            ):
                readers.hand_over = hands.flush
                members = index.stretches(backup_set.set_id, patterns)
                _put_all(putter, readers, members, wanted.stored, progress)
                putter.end()
                _put_links_left(putter, readers, index, backup_set)
                if not whole and not original:
                    _make_above(hands, index, backup_set, patterns)
                putter.settle()
                hands.finish()
            if whole and database is not None:
                database.make_ready(roots_of(index, backup_set, target), backup_set.facts)
    report = RestoreReport(
        set_id=backup_set.set_id,
        files=hands.files,
        directories=hands.directories,
        bytes=putter.bytes,
        mismatches=putter.mismatches,
        skipped=hands.skipped,
        removed=removed,
        leading_back=() if target is None else _still_leading(target, putter.leading),
    )
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
def _index(
    medium: Medium, volume: VolumeReader, catalog: Lookup | None, set_id: str
) -> Iterator[Lookup]:
    """The catalogue, or one made from the medium, for this set."""
    if catalog is not None:
        yield catalog
        return
    from splitmirror.catalog.rebuild import record_sets, temporary_catalog

    with temporary_catalog() as index:
        record_sets(medium, volume, index, only=set_id)
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


class _Readers:
    """A reader for each part, on the volume that is loaded. `hand_over` is called before one of
    them waits."""

    def __init__(
        self,
        medium: Medium,
        volume: VolumeReader,
        index: Lookup,
        backup_set: BackupSet,
        windows: Windows,
    ) -> None:
        self.hand_over = _nothing
        self._medium, self._volume, self._windows = medium, volume, windows
        self._parts = {part.number: part for part in index.parts(backup_set.set_id)}

    def require(self, numbers: Set[int]) -> None:
        """All of these parts are on the volume, the first proven by its labels: known before
        anything is written or taken away."""
        for number in sorted(numbers):
            require_volume(self._volume, self._parts[number])
        require_part(self._medium, self._volume, self._parts[min(numbers)])

    def of(self, number: int) -> PartReader:
        return PartReader(self._medium, self._parts[number], self._windows, self.hand_over)


def _nothing() -> None:
    pass


def _put_all(
    putter: Putter,
    readers: _Readers,
    stretches: Iterable[tuple[int, Sequence[Recorded]]],
    total: int,
    progress: Progress,
) -> None:
    done = 0
    for number, group in groupby(stretches, key=lambda stretch: stretch[0]):
        with readers.of(number) as reader:
            for records in reader.foreseeing(records for _, records in group):
                putter.put(reader, records)
                done += sum(record.stored for record in records)
                progress(done, total)


def _put_links_left(
    putter: Putter, readers: _Readers, index: Lookup, backup_set: BackupSet
) -> None:
    """Hard links whose target was not asked for: its data, under the first link's name."""
    found = {target: index.find(backup_set.set_id, target) for target in putter.left}
    places = {
        target: (members[0].part, members[0].record.offset) if members else (0, 0)
        for target, members in found.items()
    }
    for target in sorted(found, key=places.__getitem__):
        for part, record in found[target]:
            with readers.of(part) as reader:
                putter.put_for_links(reader, record)
        putter.link_left(target)


def _make_above(
    hands: Hands, index: Lookup, backup_set: BackupSet, patterns: Sequence[bytes]
) -> None:
    """The directories above what was asked for get the attributes they had; the catalogue knows
    them, so that nothing more is read."""
    above = {
        name[:cut]
        for _, record in index.members(backup_set.set_id, patterns)
        for name in (record.name,)
        for cut in _slashes(name)
    }
    for name in sorted(above):
        for _, record in index.find(backup_set.set_id, name):
            if record.attributes.kind is Kind.DIRECTORY:
                hands.directory(name, record.attributes)


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
