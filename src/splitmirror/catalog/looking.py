"""Looking things up in the catalogue: plain SQL through the standard library's sqlite3.

One file of a large set is found in some milliseconds, so a look-up must not first import what only
writing needs, which takes a fifth of a second.
"""

from __future__ import annotations

import difflib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

from splitmirror.archive.manifest import PartRecord
from splitmirror.archive.seeking import Recorded
from splitmirror.catalog import patterns as naming
from splitmirror.catalog import rows
from splitmirror.catalog.rows import Located
from splitmirror.errors import CatalogError, NoSuchSet, NoSuchVolume
from splitmirror.media.pools import Dated
from splitmirror.media.shelf import VolumeRecord
from splitmirror.model import BackupSet, Kind, Phase

LATEST: Final = "latest"
VERSION: Final = 3  # of the tables that are looked into; schema.STEPS makes them
WAIT_S: Final = 300  # for another run that records its set, of some millions of members
_REBUILD: Final = "If it is lost or damaged, 'splitmirror catalog rebuild' makes it from the media."

_MEMBERS: Final = f"SELECT {', '.join(rows.MEMBER_COLUMNS)} FROM members WHERE set_number = "
_STRETCH: Final = 1024  # members that are looked at ahead of those that are being restored
_PART: Final = itemgetter(rows.MEMBER_COLUMNS.index("part"))
_THE_SET: Final = "(SELECT number FROM sets WHERE set_id = ?)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much a set, or what is wanted of it, is; in which parts; and the members that hard links
    among it point to."""

    parts: frozenset[int]
    files: int
    stored: int
    linked: frozenset[bytes]


class Lookup:
    """A catalogue to look into. Close it, or use it in `with`. One thread at a time.

    Every method raises CatalogError for what the database says.
    """

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self._connection, self._name = connection, name

    def beside(self) -> Lookup:
        """The same catalogue once more, for another thread. Close it too."""
        with translated(self._name):
            return Lookup(connect(Path(self._name)), self._name)

    @classmethod
    def open_to_read(cls, path: Path) -> Lookup:
        """The catalogue in a file, brought to today's version. Raises CatalogError when there is
        none, or one that a newer splitmirror wrote."""
        require(path)
        with translated(str(path)), closing(connect(path)) as connection:
            version = _version(connection)
        if version != VERSION:
            from splitmirror.catalog.store import Catalog

            Catalog.open(path).close()
        return Lookup(connect(path), str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """A second call is harmless."""
        self._connection.close()

    def sets(self, source: str | None = None) -> list[BackupSet]:
        """All sets (of one source), the oldest first."""
        where, values = ("", ()) if source is None else ("WHERE source = ?", (source,))
        query = f"SELECT * FROM sets {where} ORDER BY started, number"
        found = self._named(query, values)
        return [rows.as_set(row, self._phases(row["number"])) for row in found]

    def get(self, name: str, source: str | None = None) -> BackupSet:
        """The set of that id, or of the only id that begins so; `latest`: the newest complete one.

        Raises NoSuchSet with the nearest ids, or with those among which it does not decide.
        """
        sets = self.sets(source)
        if name == LATEST:
            complete = [known for known in sets if known.complete]
            if complete:
                return complete[-1]
            raise NoSuchSet(f"no complete set is in {self._name}", hint=_no_sets_hint(sets))
        found = [known for known in sets if known.set_id == name] or [
            known for known in sets if name and known.set_id.startswith(name)
        ]
        if len(found) == 1:
            return found[0]
        raise _no_such_set(name, [known.set_id for known in found], [s.set_id for s in sets])

    def parts(self, set_id: str) -> list[PartRecord]:
        """The set's parts in their order."""
        query = f"SELECT * FROM parts WHERE set_number = {_THE_SET} ORDER BY number"
        return [rows.as_part(set_id, row) for row in self._named(query, (set_id,))]

    def members(
        self,
        set_id: str,
        patterns: Sequence[bytes] = (),
        *,
        by_name: bool = False,
        parts: range | None = None,
    ) -> Iterator[Located]:
        """The set's members that match one of the patterns (see `patterns`; none: all), in the
        order of the parts, or by name; of some `parts` only when they are given. Streams: a million
        take no more memory than ten."""
        wanted = naming.compiled(patterns)
        order = "name, part, offset" if by_name else "part, offset"
        for member in self._stream(*self._query(set_id, wanted, order, parts)):
            name = member.record.name
            if not wanted or any(pattern.matches(name) for pattern in wanted):
                yield member

    def stretches(
        self, set_id: str, patterns: Sequence[bytes] = (), *, parts: range | None = None
    ) -> Iterator[tuple[int, list[Recorded]]]:
        """The same members in the order of the parts, as a restore wants them: stretches of one
        part, with its number, and each in the shortest form."""
        wanted = naming.compiled(patterns)
        query, values = self._query(set_id, wanted, "part, offset", parts)
        with translated(self._name):
            cursor = self._connection.execute(query, values)
            while some := cursor.fetchmany(_STRETCH):
                for number, found in groupby(some, key=_PART):
                    records = map(rows.recorded, found)
                    yield (
                        number,
                        [
                            record
                            for record in records
                            if not wanted or any(pattern.matches(record.name) for pattern in wanted)
                        ],
                    )

    def extent(self, set_id: str, patterns: Sequence[bytes] = ()) -> Extent:
        """How much the members are that match one of the patterns; none: the whole set."""
        if not patterns:
            return self._whole(set_id)
        files = stored = 0
        linked, parts = set[bytes](), set[int]()
        for part, record in self.members(set_id, patterns):
            parts.add(part)
            files, stored = files + 1, stored + record.stored
            if record.attributes.kind is not Kind.SYMLINK and record.attributes.link:
                linked.add(record.attributes.link)
        return Extent(parts=frozenset(parts), files=files, stored=stored, linked=frozenset(linked))

    def _whole(self, set_id: str) -> Extent:
        each = f"FROM members WHERE set_number = {_THE_SET}"
        parts = self._rows(f"SELECT part, count(*), sum(stored) {each} GROUP BY part", (set_id,))
        links = self._rows(
            f"SELECT DISTINCT link {each} AND link <> x'' AND kind <> ?",
            (set_id, Kind.SYMLINK.value),
        )
        return Extent(
            parts=frozenset(number for number, _, _ in parts),
            files=sum(files for _, files, _ in parts),
            stored=sum(stored for _, _, stored in parts),
            linked=frozenset(link for (link,) in links),
        )

    def find(self, set_id: str, name: bytes) -> list[Located]:
        """The member of exactly that name: one, its pieces in order, or none."""
        query = f"{_MEMBERS}{_THE_SET} AND name = ? ORDER BY part, offset"
        return list(self._stream(query, (set_id, name)))

    def kinds(self, set_id: str) -> dict[bytes, Kind]:
        """Every name of the set. (About 150 bytes each: the one answer that grows with the set.)"""
        query = f"SELECT name, kind FROM members WHERE set_number = {_THE_SET}"
        return {name: Kind(kind) for name, kind in self._rows(query, (set_id,))}

    def volumes(self) -> list[VolumeRecord]:
        """All volumes, by their serials."""
        return [rows.as_volume(row) for row in self._named("SELECT * FROM volumes ORDER BY label")]

    def volume(self, serial: str) -> VolumeRecord:
        """Raises NoSuchVolume, with the nearest serials, for one that is not known."""
        query = "SELECT * FROM volumes WHERE label = ?"
        for row in self._named(query, (serial,)):
            return rows.as_volume(row)
        raise _no_such_volume(serial, [known.serial for known in self.volumes()])

    def dated(self) -> list[Dated]:
        """All sets as retention sees them, the oldest first."""
        query = (
            "SELECT set_id, source, started, complete, volumes, "
            "group_concat(DISTINCT volume) AS of_parts "
            "FROM sets LEFT JOIN parts ON set_number = sets.number "
            "GROUP BY sets.number ORDER BY started, sets.number"
        )
        return [rows.as_dated(row) for row in self._named(query)]

    # --- inside

    def _query(
        self, set_id: str, wanted: Sequence[naming.Pattern], order: str, parts: range | None
    ) -> tuple[str, list[object]]:
        ranges, values = _begins(wanted)
        if parts is not None:
            # A range of names is the better index of the two: the plus keeps SQLite from the other
            column = "+part" if ranges else "part"
            ranges = f"{ranges} AND {column} >= ? AND {column} < ?"
            values = [*values, parts.start, parts.stop]
        return f"{_MEMBERS}{_THE_SET} {ranges} ORDER BY {order}", [set_id, *values]

    def _phases(self, number: int) -> list[Phase]:
        query = "SELECT name, began_s, seconds FROM phases WHERE set_number = ? ORDER BY ordinal"
        return [
            Phase(name=name, began_s=began_s, seconds=seconds)
            for name, began_s, seconds in self._rows(query, (number,))
        ]

    def _rows(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        with translated(self._name):
            return self._connection.execute(query, values).fetchall()

    def _named(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        """Rows whose columns are known by name."""
        with translated(self._name):
            cursor = self._connection.cursor()
            cursor.row_factory = sqlite3.Row
            return cursor.execute(query, values).fetchall()

    def _stream(self, query: str, values: Sequence[object]) -> Iterator[Located]:
        with translated(self._name):
            yield from map(rows.as_member, self._connection.execute(query, values))


# --- opening


def connect(path: Path) -> sqlite3.Connection:
    """A connection to the catalogue in a file that exists. Raises sqlite3.Error."""
    place = f"file:{quote(os.fsencode(path.absolute()))}?mode=rw"
    connection = sqlite3.connect(
        place, timeout=WAIT_S, isolation_level=None, check_same_thread=False, uri=True
    )
    connection.execute("PRAGMA query_only = ON")
    return connection


def require(path: Path) -> None:
    """Raises CatalogError when there is no catalogue."""
    if not path.exists():
        raise CatalogError(
            f"there is no catalogue at {path}",
            hint="The first backup makes it. If it is lost, make it anew from the media: "
            "splitmirror catalog rebuild",
            path=str(path),
        )


@contextmanager
def translated(name: str) -> Iterator[None]:
    """What the database says becomes CatalogError."""
    try:
        yield
    except sqlite3.Error as error:
        raise unusable(name, error) from error


def unusable(name: str, reason: object) -> CatalogError:
    return CatalogError(
        f"the catalogue {name} cannot be used: {reason}",
        hint=f"Look at its rights and at the room on its filesystem. {_REBUILD}",
    )


def _version(connection: sqlite3.Connection) -> int:
    """Of the tables in it; 0: there are none."""
    try:
        row = connection.execute("SELECT version FROM schema_version").fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        return 0
    return int(row[0]) if row else 0


# --- queries and answers


def _begins(wanted: Sequence[naming.Pattern]) -> tuple[str, list[object]]:
    """What the index can tell of the patterns: a range of names for each."""
    ranges, values = list[str](), list[object]()
    for pattern in wanted:
        behind = naming.after(pattern.prefix)
        if behind is None:
            return "", []
        ranges.append("name >= ? AND name < ?")
        values += [pattern.prefix, behind]
    return (f"AND ({' OR '.join(ranges)})", values) if ranges else ("", [])


def _no_sets_hint(sets: Sequence[BackupSet]) -> str:
    if sets:
        return f"{len(sets)} incomplete ones are; 'splitmirror list' shows them."
    return "Make a backup first, or rebuild the catalogue: splitmirror catalog rebuild"


def _no_such_volume(serial: str, known: Sequence[str]) -> NoSuchVolume:
    near = difflib.get_close_matches(serial, known, n=3, cutoff=0.5)
    return NoSuchVolume(
        f"the catalogue knows no volume {serial}",
        hint=f"Did you mean {' or '.join(near)}?"
        if near
        else "'splitmirror media list' shows "
        "those that it knows; 'media scan' reads one in, 'media label' makes a new one.",
        serial=serial,
    )


def _no_such_set(name: str, several: Sequence[str], known: Sequence[str]) -> NoSuchSet:
    if several:
        shown = ", ".join(several[:5])
        return NoSuchSet(
            f"{len(several)} sets begin with {name!r}: {shown}",
            hint="Write more of the id.",
            candidates=tuple(several),
        )
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return NoSuchSet(
        f"there is no set {name!r}",
        hint=f"Did you mean {' or '.join(near)}?" if near else "'splitmirror list' shows the sets.",
        candidates=tuple(near),
    )
