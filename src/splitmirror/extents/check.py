"""The extent map check: what became of the early maps by the time of the split.

An early map costs nothing, for it is taken while the database runs; it is right only where nothing
happened to the file since. The check compares the early table with one taken from the split itself
(the leg's own metadata, or the primary while still frozen) and says which maps were wrong. What
goes on from here is the table of the split, never the early one: see
docs/adr/0004-what-makes-a-map-valid.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from splitmirror.extents.scan import map_entries
from splitmirror.extents.table import FileTable
from splitmirror.extents.views import View
from splitmirror.model import Kind, MapCounts

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


def check(early: FileTable, now: FileTable) -> Checked:
    """Compare an early table with one of the split; the result's table is `now` itself.

    What only changed its times, owner or mode is not renewed: its map was right, and its attributes
    come from `now` anyhow.
    """
    unmatched = {name for at, name in enumerate(early.names) if _is_mapped(early, at)}
    mapped_early = len(unmatched)
    renewed: list[bytes] = []
    new: list[bytes] = []
    for at, name in enumerate(now.names):
        before = early.find(name) if name in unmatched else None
        if before is not None:
            unmatched.discard(name)
            if not now.lies_as(at, early, before):
                renewed.append(name)
        elif _is_mapped(now, at):
            new.append(name)
    gone = sorted(unmatched)
    return Checked(
        table=now,
        counts=MapCounts(early=mapped_early, renewed=len(renewed), new=len(new), gone=len(gone)),
        renewed=tuple(renewed[:NAMED]),
        new=tuple(new[:NAMED]),
        gone=tuple(gone[:NAMED]),
    )


def check_maps(view: View, table: FileTable, *, early: FileTable | None = None) -> Checked:
    """Ask for the map of every regular file of `table` anew, in a view that stands still; the
    result's table has what was found. It is compared with `early`, else with `table` itself.

    For the frozen primary, where the leg cannot be looked at: relocation (defragmenting) and late
    writeback leave no trace in a file's times, so every one is asked. Raises what the view raises
    when a file of the table cannot be opened.
    """
    now = FileTable(looked_ns=table.looked_ns, has_xattrs=table.has_xattrs)
    for at, extents in map_entries(view, table):
        now.append_from(table, at, extents=extents)
    return check(table if early is None else early, now)


def _is_mapped(table: FileTable, at: int) -> bool:
    return table.kind(at) in _MAPPED
