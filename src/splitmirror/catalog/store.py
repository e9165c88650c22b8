"""The catalogue: an index of what was backed up and where it lies on the media.

SQLite in WAL mode with synchronous=FULL (sqlite.org/pragma.html): a set that `record` has returned
for outlives a power cut, and readers never wait for a writer. It is never the only copy of
anything: what it holds is on the media too, and `splitmirror catalog rebuild` reads it from there.
"""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Select,
    Table,
    and_,
    create_engine,
    delete,
    event,
    insert,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import SQLAlchemyError

from splitmirror.archive.manifest import MemberRecord, PartRecord
from splitmirror.catalog import patterns as naming
from splitmirror.catalog import rows
from splitmirror.catalog.rows import Located
from splitmirror.catalog.schema import MEMBERS, PARTS, PHASES, SETS, VOLUMES, migrate
from splitmirror.errors import CatalogError, NoSuchSet, SplitmirrorError
from splitmirror.model import BackupSet, Kind, Phase

LATEST: Final = "latest"
_BATCH: Final = 2000  # rows a statement: beyond this nothing is gained
_WAIT_S: Final = 300  # for another run that records its set, of some millions of members
_REBUILD: Final = "If it is lost or damaged, 'splitmirror catalog rebuild' makes it from the media."


class Catalog:
    """An open catalogue. Close it, or use it in `with`. One thread at a time.

    Every method raises CatalogError for what the database says.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine, self._name = engine, name

    @classmethod
    def open(cls, place: str | Path, *, must_exist: bool = False) -> Catalog:
        """The catalogue in a file (or at an `sqlite://` URL), brought to today's version.

        A missing file is made, with `must_exist` it is a CatalogError.
        """
        if "://" in str(place):
            return cls._opened(create_engine(str(place)), str(place))
        path = Path(place)
        if must_exist and not path.exists():
            raise CatalogError(
                f"there is no catalogue at {path}",
                hint="The first backup makes it. If it is lost, make it anew from the media: "
                "splitmirror catalog rebuild",
                path=str(path),
            )
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        engine = create_engine(URL.create("sqlite", database=os.fspath(path)))
        return cls._opened(engine, str(path))

    @classmethod
    def _opened(cls, engine: Engine, name: str) -> Catalog:
        event.listen(engine, "connect", _settings)
        event.listen(engine, "begin", _begin)
        catalog = cls(engine, name)
        try:
            with catalog._writing() as connection:
                migrate(connection)
        except SplitmirrorError:
            catalog.close()
            raise
        return catalog

    def __enter__(self) -> Catalog:
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
        self._engine.dispose()

    # --- recording

    def record(
        self,
        record: BackupSet,
        parts: Iterable[PartRecord],
        members: Iterable[tuple[int, MemberRecord]],
    ) -> None:
        """Hold this set from now on, all of it or, after an error, nothing. A set of the same id is
        replaced, so a second call is harmless. Incomplete sets are recorded too, and marked so.
        """
        with self._writing() as connection:
            connection.execute(delete(SETS).where(SETS.c.set_id == record.set_id))
            added = connection.execute(insert(SETS).values(rows.set_columns(record)))
            (number,) = added.inserted_primary_key or (0,)
            _insert(connection, PHASES, number, rows.phase_columns(record.phases))
            _insert(connection, MEMBERS, number, itertools.starmap(rows.member_columns, members))
            known = tuple(parts)  # not before: it may be known only now, see catalog.rebuild
            for volume in {part.position.volume for part in known if part.position}:
                new = sqlite_insert(VOLUMES).values(label=volume, medium=record.medium)
                connection.execute(new.on_conflict_do_nothing())
            _insert(connection, PARTS, number, map(rows.part_columns, known))

    def amend(self, record: BackupSet) -> None:
        """Replace what is said of a set, its phases included; its parts and members stay.

        Raises NoSuchSet for one that was not recorded.
        """
        with self._writing() as connection:
            same = SETS.c.set_id == record.set_id
            number = connection.execute(select(SETS.c.number).where(same)).scalar_one_or_none()
            if number is None:
                raise NoSuchSet(f"there is no set {record.set_id!r} to amend")
            connection.execute(update(SETS).where(same).values(rows.set_columns(record)))
            connection.execute(delete(PHASES).where(PHASES.c.set_number == number))
            _insert(connection, PHASES, number, rows.phase_columns(record.phases))

    def forget(self, set_id: str) -> None:
        """Drop a set from the catalogue; the media keep it. One that is not there: harmless."""
        with self._writing() as connection:
            connection.execute(delete(SETS).where(SETS.c.set_id == set_id))

    # --- looking

    def sets(self, source: str | None = None) -> list[BackupSet]:
        """All sets (of one source), the oldest first."""
        query = select(SETS).order_by(SETS.c.started, SETS.c.number)
        if source is not None:
            query = query.where(SETS.c.source == source)
        with self._reading() as connection:
            found = connection.execute(query).mappings().all()
            return [rows.as_set(row, _phases(connection, row["number"])) for row in found]

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
        query = select(PARTS).join(SETS).where(SETS.c.set_id == set_id).order_by(PARTS.c.number)
        with self._reading() as connection:
            return [rows.as_part(set_id, row) for row in connection.execute(query).mappings()]

    def members(
        self,
        set_id: str,
        patterns: Sequence[bytes] = (),
        *,
        by_name: bool = False,
        part: int | None = None,
    ) -> Iterator[Located]:
        """The set's members that match one of the patterns (see `patterns`; none: all), in the
        order of the medium, or by name; of one `part` only when that is given. Streams: a million
        take no more memory than ten."""
        wanted = naming.compiled(patterns)
        order = (MEMBERS.c.name, MEMBERS.c.part) if by_name else ()
        query = (
            _members(set_id)
            .where(_begins(wanted))
            .order_by(*order, MEMBERS.c.part, MEMBERS.c.offset)
        )
        if part is not None:
            query = query.where(MEMBERS.c.part == part)
        for member in self._stream(query):
            name = member.record.name
            if not wanted or any(pattern.matches(name) for pattern in wanted):
                yield member

    def find(self, set_id: str, name: bytes) -> list[Located]:
        """The member of exactly that name: one, its pieces in order, or none."""
        query = _members(set_id).where(MEMBERS.c.name == name)
        return list(self._stream(query.order_by(MEMBERS.c.part, MEMBERS.c.offset)))

    def kinds(self, set_id: str) -> dict[bytes, Kind]:
        """Every name of the set. (About 150 bytes each: the one answer that grows with the set.)"""
        query = _members(set_id).with_only_columns(MEMBERS.c.name, MEMBERS.c.kind)
        with self._reading() as connection:
            return {name: Kind(kind) for name, kind in connection.execute(query)}

    def volumes(self) -> list[str]:
        """The labels of all volumes that hold, or held, something."""
        with self._reading() as connection:
            return list(connection.scalars(select(VOLUMES.c.label).order_by(VOLUMES.c.label)))

    # --- inside

    def _stream(self, query: Select[Any]) -> Iterator[Located]:
        with self._reading() as connection:
            result = connection.execution_options(yield_per=_BATCH).execute(query)
            for row in result:
                yield rows.as_member(row)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._translated(), self._engine.connect() as connection:
            writer = connection.execution_options(splitmirror_writes=True)
            with writer.begin():
                yield writer

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._translated(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            reason = getattr(error, "orig", None) or error
            raise CatalogError(
                f"the catalogue {self._name} cannot be used: {reason}",
                hint=f"Look at its rights and at the room on its filesystem. {_REBUILD}",
            ) from error


def _settings(connection: Any, _record: object) -> None:
    """Transactions are begun by us (see _begin), not guessed by the sqlite3 module."""
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_WAIT_S * 1000}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin(connection: Connection) -> None:
    """A writer takes its lock at once: a reader that turns writer could not wait for another."""
    writes = connection.get_execution_options().get("splitmirror_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _insert(
    connection: Connection, table: Table, number: int, values: Iterable[dict[str, object]]
) -> None:
    """Rows in batches, through the driver: SQLAlchemy's own way costs three times as much a row,
    and a million rows are recorded while other runs wait for the catalogue."""
    compiled = insert(table).compile(dialect=connection.dialect)
    statement, order = str(compiled), itemgetter(*(compiled.positiontup or ()))
    rest = iter(values)
    while batch := [order({"set_number": number, **row}) for row in itertools.islice(rest, _BATCH)]:
        connection.exec_driver_sql(statement, batch)


def _phases(connection: Connection, number: int) -> list[Phase]:
    columns = (PHASES.c.name, PHASES.c.began_s, PHASES.c.seconds)
    query = select(*columns).where(PHASES.c.set_number == number).order_by(PHASES.c.ordinal)
    return [
        Phase(name=name, began_s=began_s, seconds=seconds)
        for name, began_s, seconds in connection.execute(query)
    ]


def _members(set_id: str) -> Select[Any]:
    columns = (MEMBERS.c[name] for name in rows.MEMBER_COLUMNS)
    number = select(SETS.c.number).where(SETS.c.set_id == set_id).scalar_subquery()
    return select(*columns).where(MEMBERS.c.set_number == number)


def _begins(wanted: Sequence[naming.Pattern]) -> Any:
    """What the index can tell of the patterns: a range of names for each."""
    ranges = []
    for pattern in wanted:
        behind = naming.after(pattern.prefix)
        if behind is None:
            return true()
        ranges.append(and_(MEMBERS.c.name >= pattern.prefix, MEMBERS.c.name < behind))
    return or_(*ranges) if ranges else true()


def _no_sets_hint(sets: Sequence[BackupSet]) -> str:
    if sets:
        return f"{len(sets)} incomplete ones are; 'splitmirror list' shows them."
    return "Make a backup first, or rebuild the catalogue: splitmirror catalog rebuild"


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
