"""A writer that commits numbered transactions until it is told to stop (end of its input).

A process of its own: COMMAND with KIND DSN NAME LEDGER. It says `ready` after its first commit. It
waits through a freeze like any client of the database would.
"""

from __future__ import annotations

import os
import select
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg

# By its path: run as a module it would import the whole demo first.
COMMAND = (sys.executable, "-P", __file__)
PAYLOAD = "x" * 200
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS first (writer text, number bigint, payload text)",
    "CREATE TABLE IF NOT EXISTS second (writer text, number bigint, payload text)",
)


def committer_postgresql(dsn: str, name: str) -> Callable[[int], None]:
    """A function that commits transaction N of this writer and returns when it is acknowledged."""
    connection = psycopg.connect(dsn)

    def commit(number: int) -> None:
        with connection.transaction(), connection.cursor() as cursor:
            for table in ("first", "second"):
                cursor.execute(f"INSERT INTO {table} VALUES (%s, %s, %s)", (name, number, PAYLOAD))

    return commit


def committer_sqlite(path: str, name: str) -> Callable[[int], None]:
    connection = sqlite3.connect(path, timeout=600, isolation_level=None)
    connection.execute("PRAGMA synchronous = FULL")

    def commit(number: int) -> None:
        connection.execute("BEGIN IMMEDIATE")
        for table in ("first", "second"):
            connection.execute(f"INSERT INTO {table} VALUES (?, ?, ?)", (name, number, PAYLOAD))
        connection.execute("COMMIT")

    return commit


COMMITTERS = {"postgresql": committer_postgresql, "sqlite": committer_sqlite}


def write(
    kind: str,
    dsn: str,
    name: str,
    ledger: Path,
    told_to_stop: Callable[[], bool],
    begun: Callable[[], object],
) -> None:
    """Commit until told to stop, which is asked before each; `begun` is called after the first."""
    commit = COMMITTERS[kind](dsn, name)
    with (ledger / f"{name}.acknowledged").open("w", buffering=1) as noted:
        number = 0
        while not told_to_stop():
            number += 1
            commit(number)
            noted.write(f"{number} {time.monotonic():.6f}\n")
            if number == 1:
                begun()


def main() -> None:
    kind, dsn, name, ledger = sys.argv[1:]

    def told_to_stop() -> bool:
        return bool(select.select([sys.stdin], [], [], 0)[0])

    def begun() -> None:
        os.write(sys.stdout.fileno(), b"ready\n")

    write(kind, dsn, name, Path(ledger), told_to_stop, begun)


if __name__ == "__main__":
    main()
