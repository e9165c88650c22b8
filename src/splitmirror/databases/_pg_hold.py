"""PostgreSQL held for a backup: hot (its own backup mode) or standing at a checkpoint.

Source: PostgreSQL documentation, "Making a Base Backup Using the Low Level API" (the functions, and
that they must be called in one session), "Replication Slots"; xlog_internal.h for the names of WAL
segments. Why it is done this way: docs/adr/0007-holds.md.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import psycopg

from splitmirror.databases import Hold, RedoFile
from splitmirror.databases._pg_layout import DATA, WAL, Places
from splitmirror.databases._pg_server import Processes, Server, processes_of
from splitmirror.databases._pg_session import Connection, bounded, connect
from splitmirror.errors import DatabaseError, DeadlineExceeded, HoldBroken, NoRoom
from splitmirror.model import Session
from splitmirror.system import process
from splitmirror.system.deadline import uninterrupted

_STOP_S = 60.0  # pg_backup_stop writes two records and switches the segment
_LABEL_MODE = 0o600  # file_perm.h, PG_FILE_MODE_OWNER
_LEAVE_S = 2.0  # a session whose connection closed drops its slot and ends in milliseconds
_START_WAL = re.compile(r"^START WAL LOCATION: (\S+) \(file ([0-9A-F]{24})\)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The server to be held, as preflight found it."""

    dsn: str
    os_user: str
    server: Server
    places: Places


@contextmanager
def hot(target: Target, deadline_s: float) -> Iterator[Hold]:
    """Backup mode, with a temporary replication slot that keeps the WAL of the window.

    Both end with the session: also when this process is killed. Raises DeadlineExceeded,
    DatabaseError.
    """
    slot = f"splitmirror_{os.getpid()}_{secrets.token_hex(4)}"
    with _session(target) as (connection, found):
        with (
            _translated(),
            bounded(connection, deadline_s, "PostgreSQL's start of a backup"),
        ):
            _lock_tablespaces(connection, target.server)
            connection.execute("SELECT pg_create_physical_replication_slot(%s, true, true)", [slot])
            tablespaces = target.places.tablespaces_seen()
            connection.execute(_start_call(target.server), [slot])
        yield HotHold(connection, target, (found.session,), slot, tablespaces)


@contextmanager
def standing(target: Target, deadline_s: float) -> Iterator[Hold]:
    """A checkpoint, so that recovery from the frozen files is short; then no query any more.

    The session stays, and keeps tablespaces from being made. Raises DeadlineExceeded,
    DatabaseError.
    """
    with _session(target) as (connection, found):
        with _translated(), bounded(connection, deadline_s, "PostgreSQL's checkpoint"):
            _lock_tablespaces(connection, target.server)
            tablespaces = target.places.tablespaces_seen()
            connection.execute("CHECKPOINT")
        yield StandingHold((found.session,), found.main, target.places, tablespaces)


@contextmanager
def _session(target: Target) -> Iterator[tuple[Connection, Processes]]:
    """A session, and the processes that are shown to be the server's and the session's own: no
    other is ever named to the guard."""
    connection = connect(target.dsn, target.os_user)
    found: Processes | None = None
    try:
        found = processes_of(connection, target.places.data)
        yield connection, found
    finally:
        with uninterrupted():
            connection.close()
            if found is not None:
                process.wait_gone(found.session.pid, found.session.start_ticks, _LEAVE_S)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        ended = error.sqlstate == psycopg.errors.AdminShutdown.sqlstate
        raise DatabaseError(
            f"PostgreSQL cannot be quiesced: {' '.join(str(error).split())}",
            hint="The server's log tells more; "
            + (
                "max_slot_wal_keep_size may be less than is written between two checkpoints: "
                "raise it, or back up right after a checkpoint."
                if ended
                else "`splitmirror doctor` looks at rights and settings."
            ),
            sqlstate=error.sqlstate,
        ) from error


def _lock_tablespaces(connection: Connection, server: Server) -> None:
    """Let none be made until the session ends: recovery would make it again at its original path,
    which on this host is the original's."""
    if server.rights.lock_tablespaces:
        connection.execute("BEGIN")
        connection.execute("LOCK TABLE pg_catalog.pg_tablespace IN SHARE MODE")


def _start_call(server: Server) -> str:
    if server.version_num >= 150000:
        return "SELECT pg_backup_start(%s, fast => true)"
    return "SELECT pg_start_backup(%s, fast => true, exclusive => false)"


def _stop_call(server: Server) -> str:
    if server.version_num >= 150000:
        call = "pg_backup_stop(wait_for_archive => false)"
    else:
        call = "pg_stop_backup(exclusive => false, wait_for_archive => false)"
    return f"SELECT lsn::text, labelfile, spcmapfile FROM {call}"


def _require_no_new_tablespace(places: Places, before: tuple[frozenset[int], int]) -> None:
    if places.tablespaces_seen() != before:
        raise HoldBroken(
            "a tablespace was made or dropped during the backup",
            hint="Run the backup again; a superuser's session would have kept it waiting.",
        )


@dataclass(frozen=True, slots=True)
class StandingHold:
    """After the checkpoint. The frozen filesystems are what holds the server's files still."""

    sessions: tuple[Session, ...]
    server: Session
    places: Places
    tablespaces: tuple[frozenset[int], int]
    blocked_writers_since_s: float | None = None

    def confirm(self, into: Path) -> tuple[RedoFile, ...]:
        """Server and session are the processes that they were. No query: the filesystems may still
        be frozen. The WAL that recovery needs is on the leg."""
        for each in (self.server, *self.sessions):
            if not process.alive(each.pid, each.start_ticks):
                raise HoldBroken(
                    f"the {each.what} ended during the backup",
                    hint="The server's log tells why; run the backup again.",
                )
        _require_no_new_tablespace(self.places, self.tablespaces)
        return ()


@dataclass(frozen=True, slots=True)
class HotHold:
    """Backup mode, in one session. Writers go on."""

    connection: Connection
    target: Target
    sessions: tuple[Session, ...]
    slot: str
    tablespaces: tuple[frozenset[int], int]
    blocked_writers_since_s: float | None = None

    def confirm(self, into: Path) -> tuple[RedoFile, ...]:
        """End backup mode; copy the window's WAL, backup_label and tablespace_map while the slot
        still keeps them, and sync them."""
        stop, label, spaces = self._stop()
        _require_no_new_tablespace(self.target.places, self.tablespaces)
        segments = segments_of(label, stop, self.target.server.number("wal_segment_size"))
        try:
            files = (*self._copy_wal(segments, into), *self._write_labels(label, spaces, into))
        except OSError as error:
            raise _uncopied(error, into) from error
        self._slot_kept_all()
        return files

    def _stop(self) -> tuple[str, str, str]:
        try:
            with bounded(self.connection, _STOP_S, "the end of PostgreSQL's backup mode"):
                row = self.connection.execute(_stop_call(self.target.server)).fetchone()
        except (psycopg.Error, DeadlineExceeded) as error:
            raise _broken(error) from error
        assert row is not None  # a function's row
        return str(row[0]), str(row[1]), str(row[2] or "")

    def _copy_wal(self, segments: list[str], into: Path) -> Iterator[RedoFile]:
        """The segments, which pg_backup_stop has closed and flushed, and the timelines' history."""
        linked = self.target.places.wal()
        source = linked or self.target.places.data / "pg_wal"
        parent = WAL if linked else DATA + b"/pg_wal"
        place = into / "pg_wal"
        place.mkdir(parents=True, exist_ok=True)
        for name in (*sorted(path.name for path in source.glob("*.history")), *segments):
            _copy_synced(source / name, place / name)
            yield RedoFile(name=parent + b"/" + name.encode(), copy=place / name)
        _sync_directory(place)

    def _write_labels(self, label: str, spaces: str, into: Path) -> Iterator[RedoFile]:
        """As the server would write them: its user must be able to read them after a restore."""
        owner = self.target.places.data.stat()
        for name, text in (("backup_label", label), ("tablespace_map", spaces)):
            if text:
                with (into / name).open("wb") as file:
                    file.write(os.fsencode(text))
                    _finish(file, owner, _LABEL_MODE)
                member = DATA + b"/" + name.encode()
                yield RedoFile(name=member, copy=into / name, made_by_server=True)
        _sync_directory(into)

    def _slot_kept_all(self) -> None:
        """Asked after the copying: so none of the copied segments was given up or used again."""
        try:
            row = self.connection.execute(
                "SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s", [self.slot]
            ).fetchone()
        except psycopg.Error as error:
            raise _broken(error) from error
        if row is None or row[0] not in ("reserved", "extended"):
            raise HoldBroken(
                "the replication slot lost WAL of the backup's window",
                hint="Raise max_slot_wal_keep_size, or back up when less is written.",
                wal_status=row and row[0],
            )


def _broken(error: Exception) -> HoldBroken:
    return HoldBroken(
        f"PostgreSQL's backup mode did not last: {' '.join(str(error).split())}",
        hint="The session was ended, or the server restarted: its log tells. Run the backup again.",
    )


def _uncopied(error: OSError, into: Path) -> HoldBroken | NoRoom:
    if error.errno == errno.ENOSPC:
        return NoRoom(f"no room in {into} for the WAL of the window", hint="Make room there.")
    return HoldBroken(
        f"the WAL of the window could not be copied: {error}",
        hint="Run the backup again; see that nothing but the server removes files from pg_wal.",
    )


def segments_of(label: str, stop: str, segment_size: int) -> list[str]:
    """The names of the WAL segments from the label's start to `stop`, which is the end of the last
    record. Raises HoldBroken for a label that is none."""
    found = _START_WAL.search(label)
    if found is None:
        raise HoldBroken("PostgreSQL gave no usable backup_label", hint="Run the backup again.")
    timeline = found[2][:8]
    first = _position(found[1]) // segment_size
    last = (_position(stop) - 1) // segment_size
    in_file = (1 << 32) // segment_size
    return [f"{timeline}{n // in_file:08X}{n % in_file:08X}" for n in range(first, last + 1)]


def _position(lsn: str) -> int:
    high, low = lsn.split("/")
    return (int(high, 16) << 32) | int(low, 16)


def _copy_synced(source: Path, copy: Path) -> None:
    with source.open("rb") as read, copy.open("wb") as written:
        shutil.copyfileobj(read, written, 1 << 20)
        was = os.fstat(read.fileno())
        _finish(written, was, stat.S_IMODE(was.st_mode))


def _finish(file: BinaryIO, owner: os.stat_result, mode: int) -> None:
    """Owner and mode, and all of it on the disk."""
    file.flush()
    os.fchmod(file.fileno(), mode)
    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
    os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
