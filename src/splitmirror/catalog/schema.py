"""The catalogue's tables, and how a catalogue of an older version becomes one of today's.

A catalogue knows its own version (one row in `schema_version`). An older one is brought up by
numbered steps, each in the transaction that raises the number; a newer one is refused, for this
program would not know what it overwrites.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    insert,
    inspect,
    select,
    text,
    update,
)

from splitmirror.errors import CatalogError

METADATA: Final = MetaData()

VERSION: Final = Table("schema_version", METADATA, Column("version", Integer, nullable=False))

SETS: Final = Table(
    "sets",
    METADATA,
    Column("number", Integer, primary_key=True),  # ours; smaller than the id in millions of rows
    Column("set_id", Text, nullable=False, unique=True),
    Column("source", Text, nullable=False, index=True),
    Column("host", Text, nullable=False),
    Column("database", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("check_when", Text, nullable=False),
    Column("mirror", Text, nullable=False),
    Column("medium", Text, nullable=False),
    Column("started", Text, nullable=False, index=True),  # ISO 8601 in UTC: sorts as time does
    Column("ended", Text),
    Column("complete", Boolean, nullable=False),
    Column("files", BigInteger, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
    Column("write_pause_s", Float, nullable=False),
    Column("pause_parts", Text, nullable=False),  # JSON
    Column("quiesce_window_s", Float, nullable=False),
    Column("maps_early", BigInteger, nullable=False),
    Column("maps_renewed", BigInteger, nullable=False),
    Column("maps_new", BigInteger, nullable=False),
    Column("maps_gone", BigInteger, nullable=False),
    Column("watch", Text, nullable=False),
    Column("trees", Text, nullable=False),  # JSON; bytes beyond UTF-8 as surrogate escapes
    Column("facts", Text, nullable=False),  # JSON
    Column("speed", Text),  # JSON
    Column("volumes", Text, nullable=False, server_default="[]"),  # JSON
)


def _set_number() -> Column[int]:
    reference = ForeignKey("sets.number", ondelete="CASCADE")
    return Column("set_number", Integer, reference, primary_key=True)


PHASES: Final = Table(
    "phases",
    METADATA,
    _set_number(),
    Column("ordinal", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("began_s", Float, nullable=False),
    Column("seconds", Float, nullable=False),
    sqlite_with_rowid=False,
)

VOLUMES: Final = Table(
    "volumes",
    METADATA,
    Column("label", Text, primary_key=True),  # its serial
    Column("medium", Text, nullable=False),
    Column("pool", Text, nullable=False, server_default=""),
    Column("barcode", Text, nullable=False, server_default=""),
    Column("state", Text, nullable=False, server_default="appendable"),
    Column("held", Text, nullable=False, server_default=""),  # why; "": it is not
    Column("write_once", Boolean, nullable=False, server_default=text("0")),
    Column("first_written", Text),  # as sets.started
    Column("last_written", Text),
    Column("bytes", BigInteger, nullable=False, server_default=text("0")),
    Column("stalls", Integer, nullable=False, server_default=text("0")),
    Column("recycled", Integer, nullable=False, server_default=text("0")),  # how often
    Column("recycling", Text),  # since when that is intended; NULL: it is not
    sqlite_with_rowid=False,
)

PARTS: Final = Table(
    "parts",
    METADATA,
    _set_number(),
    Column("number", Integer, primary_key=True),
    Column("volume", Text, ForeignKey("volumes.label"), nullable=False),
    Column("tape_file", Integer, nullable=False),
    Column("object", BigInteger, nullable=False),  # of the part's first data record
    Column("members", BigInteger, nullable=False),
    Column("stored", BigInteger, nullable=False),
    Column("length", BigInteger, nullable=False),  # of the tar with its padding
    Column("block_size", Integer, nullable=False),
    Column("manifest", BigInteger, nullable=False),  # where its headers begin in the tar
    Column("digest", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

# Clustered in the order in which a restore reads the medium.
MEMBERS: Final = Table(
    "members",
    METADATA,
    _set_number(),
    Column("part", Integer, primary_key=True),
    Column("offset", BigInteger, primary_key=True),  # of the member's header in the part's tar
    Column("name", LargeBinary, nullable=False),
    Column("kind", Text, nullable=False),  # the tar type flag
    Column("mode", Integer, nullable=False),
    Column("uid", BigInteger, nullable=False),
    Column("gid", BigInteger, nullable=False),
    Column("whole", BigInteger, nullable=False),  # the file's size, also where this is a piece
    Column("mtime_ns", BigInteger, nullable=False),
    Column("link", LargeBinary, nullable=False),
    Column("rdev", BigInteger, nullable=False),
    Column("xattrs", LargeBinary, nullable=False),  # lengths, name, value; one after another
    Column("size", BigInteger, nullable=False),  # of this member's content as a file
    Column("stored", BigInteger, nullable=False),
    Column("blake3", LargeBinary, nullable=False),
    Column("map", LargeBinary, nullable=False),
    Column("piece", Integer),  # from 1; NULL: the whole file
    Column("pieces", Integer),
    Column("piece_offset", BigInteger),
    Column("origin", Text, nullable=False),
    Column("title", Text, nullable=False),
    Index("members_by_name", "set_number", "name"),
    sqlite_with_rowid=False,
)

Step = Callable[[Connection], None]


def _volumes(connection: Connection) -> None:
    """Version 2: what is known of a volume, beside that it exists."""
    for column in (
        "pool TEXT DEFAULT '' NOT NULL",
        "barcode TEXT DEFAULT '' NOT NULL",
        "state TEXT DEFAULT 'appendable' NOT NULL",
        "held TEXT DEFAULT '' NOT NULL",
        "write_once BOOLEAN DEFAULT 0 NOT NULL",
        "first_written TEXT",
        "last_written TEXT",
        "bytes BIGINT DEFAULT 0 NOT NULL",
        "stalls INTEGER DEFAULT 0 NOT NULL",
        "recycled INTEGER DEFAULT 0 NOT NULL",
        "recycling TEXT",
    ):
        connection.exec_driver_sql(f"ALTER TABLE volumes ADD COLUMN {column}")
    of_sets = "FROM parts JOIN sets ON sets.number = set_number WHERE volume = label"
    connection.exec_driver_sql(
        f"UPDATE volumes SET first_written = (SELECT min(started) {of_sets}),"
        f" last_written = (SELECT max(started) {of_sets}),"
        f" bytes = coalesce((SELECT sum(length) {of_sets}), 0)"
    )


def _volumes_of_sets(connection: Connection) -> None:
    """Version 3: what a set has on each of its volumes."""
    connection.exec_driver_sql("ALTER TABLE sets ADD COLUMN volumes TEXT DEFAULT '[]' NOT NULL")


# Each makes the next version, the first one version 2. A step is never changed once it was
# released. Tables that are made anew are of the newest version at once.
STEPS: Final[tuple[Step, ...]] = (_volumes, _volumes_of_sets)


def migrate(connection: Connection, steps: Sequence[Step] = STEPS) -> None:
    """Bring the catalogue to the newest version, in the caller's transaction. Harmless when it is.

    Raises CatalogError for one that a newer splitmirror wrote.
    """
    version, newest = version_of(connection), 1 + len(steps)
    if version > newest:
        raise CatalogError(
            f"the catalogue has version {version}, this splitmirror knows {newest}",
            hint="Use the newer splitmirror that wrote it. (A catalogue can also be made anew from "
            "the media, elsewhere, with 'splitmirror catalog rebuild'.)",
            version=version,
        )
    if version == newest:
        return
    if not version:
        METADATA.create_all(connection)
        connection.execute(insert(VERSION).values(version=newest))
        return
    for step in steps[version - 1 :]:
        step(connection)
    connection.execute(update(VERSION).values(version=newest))


def version_of(connection: Connection) -> int:
    """The version of the catalogue's tables; 0: there are none yet."""
    if not inspect(connection).has_table(VERSION.name):
        return 0
    return connection.execute(select(VERSION.c.version)).scalar_one_or_none() or 0
