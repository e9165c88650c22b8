"""The process that holds SQLite databases: `python -m splitmirror.databases._sqlite_hold`.

SQLite's locks are POSIX locks: a process loses them when it closes any descriptor of the file
(sqlite.org, "How To Corrupt An SQLite Database File", 2.2). So they are held here, where the files
are opened by SQLite alone, while the backup opens and maps them as it likes.

    _sqlite_hold look PATH...                 one answer: what each file is; touches no lock
    _sqlite_hold hot|freeze SECONDS PATH...   one answer when held or refused; then one for each
                                              line that comes; at end of file all is released

It imports as little as it can: it starts inside the quiesce's deadline.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import time
import urllib.parse
from collections.abc import Sequence

import msgspec

_MAGIC = b"SQLite format 3\x00"  # sqlite.org/fileformat2.html, 1.3
_WRITE_VERSION_AT = 18  # 1: a rollback journal, 2: WAL
# No further lock is waited for longer than this while the first is held: whoever has the one and
# wants the other would wait for us.
_PATIENCE_S = 0.25
# SQLite's own busy handler waits in steps that grow to 100 ms, so a writer that commits all the
# time would keep us out for seconds. No event tells that a lock is free.
_POLL_S = 0.0001


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What a file is. `journal`: wal, rollback or "" for what is no database; `error` in words."""

    journal: str = ""
    error: str = ""
    missing: bool = False


class Looks(msgspec.Struct, frozen=True):
    """One for each path, in order."""

    looks: list[Look]


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """`held`: every database is. Else which one is not (`index` of its path) and why; `busy`:
    because someone else kept it locked. `since_s`: time.monotonic() before the first lock."""

    held: bool
    since_s: float = 0.0
    index: int = 0
    error: str = ""
    busy: bool = False
    journals: list[str] = []


def look(path: str) -> Look:
    """Read the header only: this process holds no lock that the close could lose."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a path of any bytes, and no lock to lose
            header = file.read(100)
    except FileNotFoundError:
        return Look(error="does not exist", missing=True)
    except OSError as error:
        return Look(error=error.strerror or str(error))
    if not header:
        return Look(journal="rollback")  # an empty file is an empty database
    if not header.startswith(_MAGIC):
        return Look(error="is not an SQLite database, or is encrypted")
    return Look(journal="wal" if header[_WRITE_VERSION_AT] == 2 else "rollback")


def connect(path: str) -> sqlite3.Connection:
    """Open an existing database; never makes one."""
    uri = f"file:{urllib.parse.quote(os.fsencode(path))}?mode=rw"
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=0)


def hold(connections: Sequence[sqlite3.Connection], mode: str, deadline_s: float) -> Held:
    """Hold all of them or none."""
    until = time.monotonic() + deadline_s
    while True:
        outcome = _hold_once(connections, mode, until)
        if outcome.held or not outcome.busy or time.monotonic() >= until:
            return outcome
        _release(connections)


def _hold_once(connections: Sequence[sqlite3.Connection], mode: str, until: float) -> Held:
    journals = []
    since_s = 0.0
    for index, connection in enumerate(connections):
        patience_until = min(until, time.monotonic() + _PATIENCE_S) if index else until
        try:
            tried_s, journal = _begin_soon(connection, mode, patience_until)
        except sqlite3.Error as error:
            return Held(held=False, index=index, error=str(error), busy=_is_busy(error))
        since_s = since_s or tried_s
        journals.append(journal)
    return Held(held=True, since_s=since_s, journals=journals)


def _begin_soon(connection: sqlite3.Connection, mode: str, until: float) -> tuple[float, str]:
    """Try until it succeeds or it is too late; when the try that succeeded began."""
    connection.execute("PRAGMA busy_timeout = 0")
    while True:
        tried_s = time.monotonic()
        try:
            return tried_s, _begin(connection, mode)
        except sqlite3.Error as error:
            _release([connection])
            if not _is_busy(error) or tried_s >= until:
                raise
            time.sleep(_POLL_S)


def _is_busy(error: sqlite3.Error) -> bool:
    # the primary result code is the extended one's low byte
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _begin(connection: sqlite3.Connection, mode: str) -> str:
    connection.execute("BEGIN IMMEDIATE" if mode == "freeze" else "BEGIN")
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # BEGIN alone takes no lock
    (journal,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode == "hot" and journal != "wal":
        raise sqlite3.OperationalError(f"its journal mode is {journal}, not wal")
    return str(journal)


def _release(connections: Sequence[sqlite3.Connection]) -> None:
    for connection in connections:
        if connection.in_transaction:
            connection.rollback()


def _answer(answer: msgspec.Struct) -> None:
    os.write(1, msgspec.json.encode(answer) + b"\n")


def main(arguments: Sequence[str]) -> int:
    """Answer, hold, and let go at the end of file."""
    command, *rest = arguments
    if command == "look":
        _answer(Looks([look(path) for path in rest]))
        return 0
    with contextlib.ExitStack() as stack:
        connections: list[sqlite3.Connection] = []
        for index, path in enumerate(rest[1:]):
            try:
                connections.append(stack.enter_context(contextlib.closing(connect(path))))
            except sqlite3.Error as error:
                _answer(Held(held=False, index=index, error=str(error)))
                return 1
        outcome = hold(connections, command, float(rest[0]))
        _answer(outcome)
        while outcome.held and sys.stdin.buffer.readline():
            _answer(Held(held=all(each.in_transaction for each in connections)))
        _release(connections)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
