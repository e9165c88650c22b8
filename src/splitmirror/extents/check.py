"""The extent map check: what became of the early maps by the time of the split.

An early map costs nothing, for it is taken while the database runs; it is right only where nothing
happened to the file since. The check compares the early table with one taken from the split itself
(the leg's own metadata, or the primary while still frozen) and says which maps were wrong. What
goes on from here is the table of the split, never the early one: see
docs/adr/0004-what-makes-a-map-valid.md. Where a watch told what changed, only that is compared
while writers wait, and the leg has the last word: docs/adr/0010-the-watch-shortens.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from splitmirror.extents.mapping import map_entries
from splitmirror.extents.renew import Patch
from splitmirror.extents.table import FileTable
from splitmirror.extents.views import View
from splitmirror.model import ExtentMap, Kind, MapCounts

NAMED = 1000  # names of each sort that are kept for the journal; the counts are always whole

_MAPPED = frozenset((ord(Kind.FILE), ord(Kind.HARDLINK)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The files as they were at the split, and what the early table had wrong.

    The counts are of names of regular files, hard links included. `renewed` had another map, size,
    inode or kind; `new` had no map; `gone` has none any more (a renamed file is both, under its two
    names). The lists hold the first NAMED of each.
    """

    table: FileTable
    counts: MapCounts
    renewed: tuple[bytes, ...]
    new: tuple[bytes, ...]
    gone: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortened:
    """A check of no more than a watch told of. It is not proven: see `confirm`."""

    patch: Patch
    changed: Checked  # of the changed names alone

    def whole(self) -> Checked:
        """The same with the table of all files."""
        return replace(self.changed, table=self.patch.applied())


def check(
    early: FileTable, now: FileTable, *, unchanged: int = 0, inodes_differ: bool = False
) -> Checked:
    """Compare an early table with one of the split; the result's table is `now` itself.

    What only changed its times, owner or mode is not renewed: its map was right, and its attributes
    come from `now` anyhow. `unchanged`: early maps that hold and are in neither table.
    `inodes_differ`: the files of `now` are other ones that lie as those of `early` did.
    """
    unmatched = bytearray(kind in _MAPPED for kind in early.kinds())
    mapped_early = sum(unmatched) + unchanged
    renewed: list[bytes] = []
    new: list[bytes] = []
    expected = 0  # where a name stands in the early table if nothing was added or taken away
    for at, name in enumerate(now.names):
        before: int | None = expected
        if expected >= len(early) or early.names[expected] != name:
            before = early.find(name)
        if before is not None:
            expected = before + 1
        if before is not None and early.kind(before) in _MAPPED:
            unmatched[before] = False
            if not now.lies_as(at, early, before, inodes=not inodes_differ):
                renewed.append(name)
        elif now.kind(at) in _MAPPED:
            new.append(name)
    gone = sorted(early.names[at] for at, missing in enumerate(unmatched) if missing)
    return Checked(
        table=now,
        counts=MapCounts(early=mapped_early, renewed=len(renewed), new=len(new), gone=len(gone)),
        renewed=tuple(renewed[:NAMED]),
        new=tuple(new[:NAMED]),
        gone=tuple(gone[:NAMED]),
    )


def check_changed(patch: Patch) -> Shortened:
    """Compare what a watch told of, and only that."""
    replaced = patch.replaced()
    unchanged = patch.early.mapped - sum(kind in _MAPPED for kind in replaced.kinds())
    return Shortened(patch=patch, changed=check(replaced, patch.added, unchanged=unchanged))


def check_maps(view: View, table: FileTable, *, early: FileTable | None = None) -> Checked:
    """Ask for the map of every regular file of `table` anew, in a view that stands still; the
    result's table has what was found. It is compared with `early`, else with `table` itself.

    For the frozen primary, where nothing told what changed and the leg cannot be looked at:
    relocation (defragmenting) and late writeback leave no trace in a file's times, so every one is
    asked. Raises what the view raises when a file of the table cannot be opened.
    """
    now = FileTable(looked_ns=table.looked_ns, has_xattrs=table.has_xattrs)
    for at, extents in map_entries(view, table):
        now.append_from(table, at, extents=ExtentMap(extents))
    return check(table if early is None else early, now)
