"""Which relation a file of a PostgreSQL cluster belongs to, in the server's own words.

Source: PostgreSQL documentation, pg_class, pg_relation_filenode, pg_database.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import psycopg

from splitmirror.databases import _pg_layout, _pg_session
from splitmirror.databases._pg_layout import RelationFile
from splitmirror.errors import DatabaseError

_ALL_S = 30.0  # titles are a comfort; a backup does not wait longer for them
_DATABASE_S = 10.0
_SHARED_SPACE = 1664  # catalog/pg_tablespace_d.h

_DATABASES = "SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname"

# A TOAST table and its index are named after the table that they belong to.
_RELATIONS = """
    SELECT coalesce(nullif(c.reltablespace, 0), d.dattablespace)::bigint,
           CASE WHEN c.relisshared THEN 0 ELSE d.oid END::bigint,
           pg_relation_filenode(c.oid)::bigint,
           CASE WHEN c.relisshared THEN format('%s.%s', n.nspname, c.relname)
                ELSE format('%s.%s.%s', d.datname, n.nspname, c.relname) END,
           (SELECT format('%s.%s.%s (toast)', d.datname, tn.nspname, t.relname)
              FROM pg_class t JOIN pg_namespace tn ON tn.oid = t.relnamespace
             WHERE t.reltoastrelid = coalesce(x.indrelid, c.oid))
      FROM pg_class c
      JOIN pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_database d ON d.datname = current_database()
      LEFT JOIN pg_index x ON x.indexrelid = c.oid AND n.nspname = 'pg_toast'
     WHERE pg_relation_filenode(c.oid) IS NOT NULL
"""


def titles(dsn: str, os_user: str, names: Iterable[bytes]) -> Mapping[bytes, str]:
    """`database.schema.relation` by member name, without the database for what all of them share;
    what is not known in time is left out."""
    known = _relations(dsn, os_user)
    found = {}
    for name in names:
        relation = _pg_layout.relation_of(name)
        if relation is not None and relation in known:
            found[name] = known[relation]
    return found


def _relations(dsn: str, os_user: str) -> dict[RelationFile, str]:
    until = time.monotonic() + _ALL_S
    known: dict[RelationFile, str] = {}
    try:
        with _pg_session.connect(dsn, os_user, limit_s=_DATABASE_S) as connection:
            databases = [str(name) for (name,) in connection.execute(_DATABASES)]
    except (psycopg.Error, DatabaseError):
        return known  # the seam's promise: what is not known is left out
    for database in databases:
        if time.monotonic() < until:
            known.update(_relations_in(dsn, os_user, database))
    return known


def _relations_in(dsn: str, os_user: str, database: str) -> dict[RelationFile, str]:
    try:
        with _pg_session.connect(
            dsn, os_user, database=database, limit_s=_DATABASE_S
        ) as connection:
            rows = connection.execute(_RELATIONS).fetchall()
    except (psycopg.Error, DatabaseError):
        return {}  # a database that the role may not enter, or that has just been dropped
    return {
        RelationFile(space, oid, filenode): toast_of or title
        for space, oid, filenode, title, toast_of in rows
    }
