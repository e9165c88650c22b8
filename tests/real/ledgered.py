"""Databases with a writer that goes on, and the ledger that a set of them is held against."""

from __future__ import annotations

import os
import sqlite3
from contextlib import AbstractContextManager, closing
from pathlib import Path

from splitmirror import journal
from splitmirror.catalog import Catalog
from splitmirror.config import Config
from splitmirror.demo import subjects
from splitmirror.demo.ledger import Verdict, acknowledged, judge
from splitmirror.demo.subjects import entries
from splitmirror.demo.writer import SCHEMA
from splitmirror.drill import drill
from splitmirror.model import BackupSet


def create(place: Path, name: str, filler: int = 0) -> Path:
    """A database in WAL mode, in a new directory, with the writers' tables and `filler` bytes."""
    place.mkdir()
    path = place / name
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA journal_mode = WAL")
        for statement in SCHEMA:
            connection.execute(statement)
        connection.execute("CREATE TABLE filler (payload blob)")
        connection.executemany(
            "INSERT INTO filler VALUES (?)", ((os.urandom(65536),) for _ in range(filler >> 16))
        )
    return path


def writing(path: Path, ledger: Path) -> AbstractContextManager[None]:
    """`splitmirror.demo.subjects.writing`, to a SQLite database."""
    return subjects.writing("sqlite", str(path), path.stem, ledger)


def judged(loaded: Config, made: BackupSet, ledger: Path, scratch: Path) -> Verdict:
    """Restore the set, check it, and hold its transactions against the ledger."""
    records = journal.read(loaded.state / "runs" / made.set_id)
    (consistent_s,) = (r.facts["consistent_s"] for r in records if r.kind == "released")
    with Catalog.open(loaded.catalog_path) as catalog:
        report = drill(
            loaded.open_supply(), catalog, made.set_id, loaded.open_database(),
            scratch=scratch, probe=lambda copy: entries(made.database, copy.dsn),
        )  # fmt: skip
    report.require_passed()
    assert report.probed is not None
    return judge(acknowledged(ledger, consistent_s), *report.probed)
