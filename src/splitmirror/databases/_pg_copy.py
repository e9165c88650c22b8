"""Start a restored PostgreSQL cluster walled off from the original, and check it.

The server is run directly, with configuration files made here: none of those restored is read, and
postgresql.auto.conf, which would be read in any case, is set aside (the copy is disposable). Why
each part of the wall: docs/adr/0007-holds.md.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from splitmirror.databases import CopyReport, RunningCopy, _pg_session
from splitmirror.databases._copies import hand_over, refuse_original
from splitmirror.databases._pg_layout import CERTIFICATES, CONFIGURATION, DATA, OUTSIDE
from splitmirror.databases._pg_ready import make_ready
from splitmirror.errors import CopyFailed, DatabaseUnreachable, MissingProgram, ProgramFailed
from splitmirror.model import Session
from splitmirror.system import process, programs, walled
from splitmirror.system import scratch as short_lived

_PORT = "5432"  # only part of the socket's name: nothing listens on a network
_START_S = 3600.0  # recovery replays all WAL since the checkpoint
_STOP_S = 60.0
_CHECK_S = 24 * 3600.0
_POLL_S = 0.05  # the server tells nobody when it is ready
_LOG_TAIL = 2000  # bytes of the log in an error
_STATUS_LINE = 7  # the eighth, miscadmin.h: LOCK_FILE_LINE_PM_STATUS; "standby" while recovering
_READY = b"ready"
_INVALID = -2  # pg_database.h, DATCONNLIMIT_INVALID_DB: the split came while it was dropped
# pg_amcheck tells what it found on its standard output; warnings beside it would only hide that
_QUIET = {"PGOPTIONS": "-c client_min_messages=error -c lock_timeout=60s"}
# What a prepared transaction has locked against every reader: a check would wait for it for ever.
_LOCKING = """
    SELECT DISTINCT p.database, p.gid
      FROM pg_prepared_xacts p
      JOIN pg_locks l ON l.virtualtransaction = '-1/' || p.transaction::text
     WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock'
     ORDER BY 1, 2
"""
_SOCKET_PATH_MAX = 107  # unix(7), sun_path without its NUL
_SOCKET_NAME = f".s.PGSQL.{_PORT}"

# What a server recovering these files must have at least as large as the original.
_AT_LEAST = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
)

_FIXED = {
    "listen_addresses": "",
    "port": _PORT,
    "unix_socket_permissions": "0700",
    "wal_level": "replica",
    "archive_mode": "off",
    "archive_command": "",
    "restore_command": "",
    "primary_conninfo": "",
    "primary_slot_name": "",
    "max_logical_replication_workers": "0",  # no subscription of the copy fetches anything
    "shared_preload_libraries": "",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    "shared_buffers": "64MB",
    "huge_pages": "off",
    "ssl": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_line_prefix": "%m [%p] ",
    "autovacuum": "off",  # the copy is to be checked as it is
    "fsync": "off",  # and thrown away
    "jit": "off",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A restored cluster that is to be started."""

    roots: Mapping[bytes, Path]
    facts: Mapping[str, str]
    bin_dir: Path
    scratch: Path

    def parts(self) -> dict[bytes, Path]:
        """The directories that the server uses; not the original's configuration files."""
        return {
            name: Path(os.path.realpath(path))
            for name, path in self.roots.items()
            if not name.startswith(OUTSIDE)
        }


@contextmanager
def started(copy: Copy, hide: Sequence[Path]) -> Iterator[RunningCopy]:
    """The copy, running and recovered. Leaving stops it. Raises CopyFailed, DatabaseError."""
    parts = copy.parts()
    hidden = _hidden(hide, copy.facts)
    refuse_original(parts, hidden)
    make_ready(parts, copy.facts)
    scratch = Path(os.path.realpath(copy.scratch))
    uid = walled.unused_uid()
    wall = walled.Wall(
        uid=uid,
        gid=uid,
        hide=hidden,
        show=tuple(dict.fromkeys((*parts.values(), scratch))),
        death_signal=signal.SIGQUIT,  # immediate shutdown; SIGKILL would leave its children a while
    )
    with _socket_directory(scratch) as socket_directory:
        _configure(copy, parts[DATA], socket_directory)
        hand_over((*parts.values(), scratch), uid)
        with _server(copy, parts[DATA], wall) as server:
            _wait_until_ready(parts[DATA], server, scratch / "postgres.log")
            yield _Running(copy, socket_directory)


def _hidden(hide: Sequence[Path], facts: Mapping[str, str]) -> tuple[Path, ...]:
    """Every place of the original that we know of, links resolved; its sockets too."""
    places = list(hide)
    for key in ("data_directory", "wal_directory", *CONFIGURATION, *CERTIFICATES):
        if facts.get(key):
            places.append(Path(facts[key]))
    places += [Path(value) for key, value in facts.items() if key.startswith("tablespace.")]
    for directory in facts.get("unix_socket_directories", "").split(","):
        if directory.strip().startswith("/"):
            places.append(Path(directory.strip()) / f".s.PGSQL.{facts.get('port', _PORT)}")
    return tuple(dict.fromkeys(Path(os.path.realpath(place)) for place in places))


@contextmanager
def _socket_directory(scratch: Path) -> Iterator[Path]:
    """A directory in `scratch` for the socket; through a short link where its path is too long."""
    directory = scratch / "socket"
    directory.mkdir(mode=0o700, exist_ok=True)
    if len(os.fsencode(directory / _SOCKET_NAME)) <= _SOCKET_PATH_MAX:
        yield directory
        return
    with short_lived.scratch(Path(tempfile.gettempdir())) as short:
        short.chmod(0o711)  # the copy's uid goes through it
        (short / "s").symlink_to(directory)
        yield short / "s"


def _configure(copy: Copy, data: Path, socket_directory: Path) -> None:
    scratch = Path(os.path.realpath(copy.scratch))
    values = {
        **_FIXED,
        **{name: copy.facts[name] for name in _AT_LEAST if copy.facts.get(name)},
        "data_directory": str(data),
        "hba_file": str(scratch / "pg_hba.conf"),
        "ident_file": str(scratch / "pg_ident.conf"),
        "external_pid_file": "",
        "unix_socket_directories": str(socket_directory),
    }
    lines = [f"{name} = {_quoted(value)}\n" for name, value in values.items()]
    (scratch / "postgresql.conf").write_text("".join(lines), errors="surrogateescape")
    # whoever may enter the socket's directory: the copy's uid and root
    (scratch / "pg_hba.conf").write_text("local all all trust\n")
    (scratch / "pg_ident.conf").write_text("")
    own = data / "postgresql.auto.conf"
    if own.exists() and own.stat().st_size:
        own.replace(data / "postgresql.auto.conf.restored")
    own.touch()


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


@contextmanager
def _server(copy: Copy, data: Path, wall: walled.Wall) -> Iterator[subprocess.Popen[bytes]]:
    scratch = Path(os.path.realpath(copy.scratch))
    argv = [str(copy.bin_dir / "postgres"), "-D", str(data)]
    argv += ["-c", f"config_file={scratch / 'postgresql.conf'}"]
    if not Path(argv[0]).exists():
        raise MissingProgram(
            f"{argv[0]} is not here",
            hint="Install the set's PostgreSQL major version, or set bin_dir.",
            program=argv[0],
        )
    server = programs.start(walled.command(argv, wall), log=scratch / "postgres.log")
    ticks = process.start_ticks(server.pid)
    try:
        yield server
    finally:
        if ticks is not None:
            fast = Session(what="copy", pid=server.pid, start_ticks=ticks, signal=signal.SIGINT)
            process.end_and_wait(fast, _STOP_S)
        server.wait()


def _wait_until_ready(data: Path, server: subprocess.Popen[bytes], log: Path) -> None:
    """Until it accepts connections and recovers no more. Raises CopyFailed with the log's end."""
    until = time.monotonic() + _START_S
    while _status(data) != _READY:
        if server.poll() is not None:
            raise _not_started(f"it ended with status {server.returncode}", log)
        if time.monotonic() > until:
            raise _not_started(f"it was not ready in {_START_S:g} s", log)
        time.sleep(_POLL_S)


def _status(data: Path) -> bytes:
    """What the server says of itself in postmaster.pid, as pg_ctl reads it. No connection: one to a
    damaged copy may fail for ever."""
    try:
        lines = (data / "postmaster.pid").read_bytes().split(b"\n")
    except FileNotFoundError:
        return b""
    return lines[_STATUS_LINE].strip() if len(lines) > _STATUS_LINE else b""


def _not_started(why: str, log: Path) -> CopyFailed:
    words = os.fsdecode(log.read_bytes()[-_LOG_TAIL:]).strip()
    return CopyFailed(
        f"the restored cluster did not start: {why}\n{words}",
        hint="The lines above are the end of its log.",
        log=words,
    )


class _Running:
    """A restored cluster that runs."""

    def __init__(self, copy: Copy, socket_directory: Path) -> None:
        self._copy = copy
        self._host = str(socket_directory)
        self._user = copy.facts.get("superuser", "postgres")
        self.dsn = self._dsn(copy.facts.get("database", "template1"))

    def _dsn(self, database: str) -> str:
        return make_conninfo(host=self._host, port=_PORT, user=self._user, dbname=database)

    def check(self) -> CopyReport:
        """Every database answers; then pg_amcheck on every relation, with heapallindexed, or for
        PostgreSQL 13, which has none, pg_dumpall, which reads every table. Prepared transactions
        that lock a table against every reader are rolled back in the copy, and told."""
        checks: list[str] = []
        problems: list[str] = []
        with suppress(DatabaseUnreachable, psycopg.Error):  # told below, by what does not answer
            for gid in self._unlock():
                checks.append(f"prepared transaction {gid!r} rolled back: it locked a table")
        for database, found in self._answers():
            (checks if found is None else problems).append(
                f"database {database}" + (f": {found}" if found else " answers")
            )
        argv = self._checker()
        try:
            programs.run(argv, timeout_s=_CHECK_S, env=_QUIET)
            checks.append(Path(argv[0]).name)
        except ProgramFailed as error:
            problems.append(str(error))
        return CopyReport(passed=not problems, checks=tuple(checks), problems=tuple(problems))

    def _unlock(self) -> Iterator[str]:
        with _pg_session.connect(self._dsn("template1")) as connection:
            found = connection.execute(_LOCKING).fetchall()
        for database, gid in found:
            with _pg_session.connect(self._dsn(str(database))) as connection:
                connection.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
            yield str(gid)

    def _answers(self) -> Iterator[tuple[str, str | None]]:
        """Each database, and what is wrong when it does not answer."""
        try:
            databases = self._databases()
        except (DatabaseUnreachable, psycopg.Error) as error:
            yield "template1", str(error)
            return
        for database in databases:
            try:
                with _pg_session.connect(self._dsn(database)) as connection:
                    connection.execute("SELECT count(*) FROM pg_class")
                yield database, None
            except (DatabaseUnreachable, psycopg.Error) as error:
                yield database, str(error)

    def _databases(self) -> list[str]:
        query = (
            "SELECT datname FROM pg_database "
            f"WHERE datallowconn AND datconnlimit <> {_INVALID} ORDER BY datname"
        )
        with _pg_session.connect(self._dsn("template1")) as connection:
            return [str(name) for (name,) in connection.execute(query)]

    def _checker(self) -> list[str]:
        session = ["--host", self._host, "--port", _PORT, "--username", self._user, "--no-password"]
        amcheck = self._copy.bin_dir / "pg_amcheck"
        if amcheck.exists():
            return [str(amcheck), "--all", "--install-missing", "--heapallindexed", *session]
        return [str(self._copy.bin_dir / "pg_dumpall"), "--file", "/dev/null", *session]
