"""What is asked of a running PostgreSQL server before a backup, once, in one session.

Source: PostgreSQL documentation, "System Administration Functions", pg_settings, pg_control_system.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from splitmirror.databases import _pg_session
from splitmirror.databases._pg_layout import CERTIFICATES, CONFIGURATION
from splitmirror.databases._pg_session import Connection
from splitmirror.errors import DatabaseError, DatabaseRefused, DatabaseUnsuitable
from splitmirror.model import Session
from splitmirror.system import process

OLDEST = 130000  # server_version_num: the oldest that this driver knows
LIMIT_S = 30.0  # of each question; all are answered from memory

_SETTINGS = [
    *("data_directory", *CONFIGURATION, *CERTIFICATES, "data_directory_mode"),
    *("wal_level", "wal_segment_size", "max_replication_slots", "max_slot_wal_keep_size"),
    *("max_wal_size", "archive_mode", "fsync", "full_page_writes", "data_checksums", "block_size"),
    *("max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions"),
    *("max_locks_per_transaction", "shared_preload_libraries", "stats_temp_directory"),
    *("unix_socket_directories", "port"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What the session's role may do."""

    role: str
    superuser: bool
    replication: bool
    backup: bool  # call the functions that begin and end a backup
    checkpoint: bool
    lock_tablespaces: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server as it described itself. `settings` is pg_settings, as far as the role may
    read it."""

    version_num: int
    version: str
    system_identifier: str
    version_directory: str  # of its files in a tablespace
    settings: Mapping[str, str]
    in_recovery: bool
    rights: Rights
    slots_used: int
    archiving_since_failed: bool
    superuser: str  # the bootstrap superuser's name, the only one that every copy has
    backend_pid: int  # as the connection's start-up told
    database: str  # that the session is in
    own_pid: int  # as the session itself says
    listener_pid: int | None  # who listens at the other end of the Unix socket
    listener: str | None  # the program that it runs

    def setting(self, name: str, default: str = "") -> str:
        """A setting's value; `default` where the server has none or does not show it."""
        return self.settings.get(name, default)

    def number(self, name: str) -> int:
        """A setting that is a number."""
        return int(self.setting(name, "0"))

    @property
    def data(self) -> Path:
        """The data directory, links resolved. Raises DatabaseRefused where it is not shown."""
        path = self.setting("data_directory")
        if not path:
            raise DatabaseRefused(
                f"role {self.rights.role} may not read the setting data_directory",
                hint=f"GRANT pg_read_all_settings TO {self.rights.role};",
            )
        return Path(os.path.realpath(path))


def ask(connection: Connection) -> Server:
    """Everything at once. Raises DatabaseError; the caller has seen to the version."""
    try:
        return _ask(connection)
    except psycopg.OperationalError as error:
        raise _pg_session.unreachable(error) from error
    except psycopg.Error as error:
        raise DatabaseError(
            f"PostgreSQL does not answer: {' '.join(str(error).split())}",
            hint="The server's log tells more.",
        ) from error


def _ask(connection: Connection) -> Server:
    version_num = connection.info.server_version
    listener_pid = _pg_session.peer_pid(connection)
    identifier, catalog_version = _row(
        connection, "SELECT system_identifier, catalog_version_no FROM pg_control_system()"
    )
    rows = connection.execute(
        "SELECT name, setting FROM pg_settings WHERE name = ANY (%s)", [_SETTINGS]
    ).fetchall()
    version, in_recovery, slots, own_pid, superuser, stuck = _row(
        connection,
        """SELECT current_setting('server_version'), pg_is_in_recovery(),
                  (SELECT count(*) FROM pg_replication_slots), pg_backend_pid(),
                  (SELECT rolname FROM pg_roles WHERE oid = 10),
                  (SELECT last_failed_time > coalesce(last_archived_time, '-infinity')
                     FROM pg_stat_archiver)""",
    )
    return Server(
        version_num=version_num,
        version=str(version),
        system_identifier=str(identifier),
        version_directory=f"PG_{version_num // 10000}_{catalog_version}",
        settings={name: str(setting) for name, setting in rows},
        in_recovery=bool(in_recovery),
        rights=_rights(connection, version_num),
        slots_used=int(slots),
        archiving_since_failed=bool(stuck),
        superuser=str(superuser),
        backend_pid=connection.info.backend_pid,
        database=connection.info.dbname,
        own_pid=int(own_pid),
        listener_pid=listener_pid,
        listener=None if listener_pid is None else _program(listener_pid),
    )


def _row(connection: Connection, query: str) -> tuple[Any, ...]:
    row = connection.execute(query).fetchone()
    assert row is not None  # every query here gives one
    return row


def _rights(connection: Connection, version_num: int) -> Rights:
    begin, end = backup_functions(version_num)
    role, superuser, replication, may_begin, may_end, may_checkpoint, may_lock = _row(
        connection,
        f"""SELECT rolname, rolsuper, rolsuper OR rolreplication,
                   has_function_privilege('{begin}', 'EXECUTE'),
                   has_function_privilege('{end}', 'EXECUTE'),
                   rolsuper OR coalesce(pg_has_role((SELECT oid FROM pg_roles
                                                     WHERE rolname = 'pg_checkpoint'), 'USAGE'),
                                        false),
                   has_table_privilege('pg_catalog.pg_tablespace', 'UPDATE')
              FROM pg_roles WHERE rolname = current_user""",
    )
    return Rights(
        role=str(role),
        superuser=bool(superuser),
        replication=bool(replication),
        backup=bool(may_begin and may_end),
        checkpoint=bool(may_checkpoint),
        lock_tablespaces=bool(may_lock),
    )


def backup_functions(version_num: int) -> tuple[str, str]:
    """The functions that begin and end a backup; they got other names in 15."""
    if version_num >= 150000:
        return "pg_backup_start(text,boolean)", "pg_backup_stop(boolean)"
    return "pg_start_backup(text,boolean,boolean)", "pg_stop_backup(boolean,boolean)"


def _program(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:  # it has gone, or is of another pid namespace: then it has no name for us
        return None


# --- the server's processes on this host


class Processes(NamedTuple):
    """A server's main process and that of one session, by the numbers that this host gives them."""

    main: Session
    session: Session


def postmaster_of(server: Server) -> Session:
    """The server's main process. While the session that it was asked in is there. Raises
    DatabaseUnsuitable."""
    return _processes(server.data, server.listener_pid, server.own_pid).main


def processes_of(connection: Connection, data: Path) -> Processes:
    """The server's main process and the session's own. Raises DatabaseUnsuitable."""
    peer = _pg_session.peer_pid(connection)
    return _processes(data, peer, connection.info.backend_pid)


def _processes(data: Path, listener: int | None, backend: int) -> Processes:
    """The main process is the one that works in the data directory and listens on the session's
    Unix socket, or is named by postmaster.pid. The session's is a child of it that the server calls
    `backend`: in a container it has another number here, and that number may be anybody's. Raises
    DatabaseUnsuitable where this cannot be shown: then the server runs elsewhere, or its directory
    is another one of the same name.
    """
    try:
        main = _at_work(listener, data) if listener else None
        main = main or running_in(data)
        session = None if main is None else _child(main.pid, backend)
    except OSError as error:
        raise _elsewhere(f"{error.filename}: {error.strerror}") from error
    if main is None:
        raise _elsewhere(f"no server runs in {data} here")
    if session is None:
        raise _elsewhere(f"the server in {data} here is not the one behind `dsn`")
    return Processes(main, session)


def running_in(data: Path) -> Session | None:
    """The server that runs in a data directory, seen from this host; None: none. Raises OSError
    for a directory that cannot be read."""
    try:
        first = (data / "postmaster.pid").read_bytes().split(b"\n", 1)[0]
        return _at_work(abs(int(first)), data)
    except (FileNotFoundError, ValueError):
        data.stat()  # raises where it is the directory that is missing
        return None


def _at_work(pid: int, data: Path) -> Session | None:
    """The process of that pid, if `data` is its current directory."""
    try:
        here = Path(f"/proc/{pid}/cwd").stat()
    except (FileNotFoundError, ProcessLookupError):
        return None
    except PermissionError:  # not even root may look: a process of the system, of the same pid
        return None
    ticks = process.start_ticks(pid)
    if ticks is None or not os.path.samestat(here, data.stat()):
        return None
    return Session(what="PostgreSQL server", pid=pid, start_ticks=ticks, signal=0)


def _child(parent: int, number: int) -> Session | None:
    """The child of a process that has this number in its own, innermost pid namespace."""
    for pid in (number, *(int(name) for name in os.listdir("/proc") if name.isdigit())):
        ticks = process.start_ticks(pid)
        if ticks is not None and _known_as(pid) == (parent, number):
            what = "PostgreSQL backup session"
            return Session(what=what, pid=pid, start_ticks=ticks, signal=signal.SIGTERM)
    return None


def _known_as(pid: int) -> tuple[int, int] | None:
    """Its parent here, and its number in its innermost namespace (proc(5), PPid and NSpid)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["PPid"]), int(fields["NSpid"].split()[-1])


def programs_of(postmaster: Session) -> str:
    """The directory of the running server's programs."""
    return str(Path(f"/proc/{postmaster.pid}/exe").readlink().parent)


def _elsewhere(why: str) -> DatabaseUnsuitable:
    return DatabaseUnsuitable(
        f"the PostgreSQL server is not on this host as we see it: {why}",
        hint="Run splitmirror on the host (and in the pid namespace) where the server runs, and "
        "point `dsn` at the server itself.",
    )
