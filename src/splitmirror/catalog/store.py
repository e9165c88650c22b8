"""The catalogue: an index of what was backed up and where it lies on the media.

SQLite in WAL mode with synchronous=FULL (sqlite.org/pragma.html): a set that `record` has returned
for outlives a power cut, and readers never wait for a writer. It is never the only copy of
anything: what it holds is on the media too, and `splitmirror catalog rebuild` reads it from there.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Table,
    create_engine,
    delete,
    event,
    insert,
    select,
    update,
)
from sqlalchemy.exc import SQLAlchemyError

from splitmirror.archive.manifest import MemberRecord, PartRecord
from splitmirror.catalog import looking, rows, volumes
from splitmirror.catalog.looking import WAIT_S, Lookup
from splitmirror.catalog.schema import MEMBERS, PARTS, PHASES, SETS, migrate
from splitmirror.errors import NoSuchSet
from splitmirror.media.shelf import VolumeRecord
from splitmirror.model import BackupSet

_BATCH: Final = 2000  # rows a statement: beyond this nothing is gained


class Catalog(Lookup):
    """A catalogue to record in, and to look into. Close it, or use it in `with`. One thread at a
    time.

    Every method raises CatalogError for what the database says.
    """

    def __init__(self, engine: Engine, connection: sqlite3.Connection, name: str) -> None:
        super().__init__(connection, name)
        self._engine = engine

    @classmethod
    def open(cls, place: str | Path, *, must_exist: bool = False) -> Catalog:
        """The catalogue in a file, brought to today's version.

        A missing file is made, with `must_exist` it is a CatalogError.
        """
        path = Path(place)
        if must_exist:
            looking.require(path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        engine = create_engine(URL.create("sqlite", database=os.fspath(path)))
        event.listen(engine, "connect", _settings)
        event.listen(engine, "begin", _begin)
        try:
            with _writing(engine, str(path)) as connection:
                migrate(connection)
            with looking.translated(str(path)):
                return cls(engine, looking.connect(path), str(path))
        except BaseException:
            engine.dispose()
            raise

    def close(self) -> None:
        """A second call is harmless."""
        super().close()
        self._engine.dispose()

    def record(
        self,
        record: BackupSet,
        parts: Iterable[PartRecord],
        members: Iterable[tuple[int, MemberRecord]],
        *,
        held: str = "",
    ) -> None:
        """Hold this set from now on, all of it or, after an error, nothing. A set of the same id is
        replaced, so a second call is harmless. Incomplete sets are recorded too, and marked so.

        `held`: why volumes are held of which it was not known that they hold some of it.
        """
        with self._writing() as connection:
            before = volumes.of_set(connection, record.set_id)
            connection.execute(delete(SETS).where(SETS.c.set_id == record.set_id))
            added = connection.execute(insert(SETS).values(rows.set_columns(record)))
            (number,) = added.inserted_primary_key or (0,)
            _insert(connection, PHASES, number, rows.phase_columns(record.phases))
            _insert(connection, MEMBERS, number, itertools.starmap(rows.member_columns, members))
            known = tuple(parts)  # not before: it may be known only now, see catalog.rebuild
            serials = {part.position.volume for part in known if part.position}
            serials |= {use.volume for use in record.volumes}
            for serial in serials:
                unknown = VolumeRecord(serial=serial, medium=record.medium, held=held)
                volumes.add(connection, unknown)
            _insert(connection, PARTS, number, map(rows.part_columns, known))
            for serial in serials:
                volumes.count_in(connection, serial, record.started)
            if held:
                volumes.hold(connection, serials - before, held)

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

    def add_volume(self, record: VolumeRecord) -> None:
        """Know a volume from now on. One that is known already is left as it is."""
        with self._writing() as connection:
            volumes.add(connection, record)

    def change_volume(self, serial: str, by: volumes.Change) -> VolumeRecord:
        """Replace what is known of a volume by what `by` makes of it, whoever else changes it at
        the same time. Raises NoSuchVolume."""
        with self._writing() as connection:
            return volumes.change(connection, serial, by)

    def intend_recycling(self, serial: str, at: datetime) -> None:
        """The volume is about to be written anew: what is on it counts as incomplete from now on.
        Raises VolumeKept when it is held, retired or write-once, NoSuchVolume."""
        with self._writing() as connection:
            volumes.intend_recycling(connection, serial, at)

    def emptied(self, serial: str, *, forget: bool = False) -> None:
        """Nothing that was recorded on the volume is there any more; with `forget` the volume is
        gone too. Sets without parts elsewhere are forgotten. Raises NoSuchVolume."""
        with self._writing() as connection:
            volumes.emptied(connection, serial)
            if forget:
                volumes.forget(connection, serial)

    def mark_incomplete(self, set_ids: Collection[str], why: str) -> None:
        """These sets are not whole any more, for this reason."""
        with self._writing() as connection:
            volumes.mark_incomplete(connection, set_ids, why)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with _writing(self._engine, self._name) as connection:
            yield connection


@contextmanager
def _writing(engine: Engine, name: str) -> Iterator[Connection]:
    """A transaction. What the database says becomes CatalogError."""
    try:
        with engine.connect() as connection, connection.begin():
            yield connection
    except SQLAlchemyError as error:
        raise looking.unusable(name, getattr(error, "orig", None) or error) from error


def _settings(connection: Any, _record: object) -> None:
    """Transactions are begun by us (see _begin), not guessed by the sqlite3 module."""
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {WAIT_S * 1000}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin(connection: Connection) -> None:
    """The lock is taken at once: a reader that turns writer could not wait for another."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


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
