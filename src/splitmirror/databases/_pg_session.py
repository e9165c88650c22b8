"""A session with PostgreSQL: connecting, time limits, and what its errors mean.

Source: libpq, chapter "Connection Strings"; psycopg 3.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg

from splitmirror.databases import _pg_refusals
from splitmirror.errors import DatabaseUnreachable, DeadlineExceeded
from splitmirror.system.identity import acting_as

Connection = psycopg.Connection[tuple[Any, ...]]

CONNECT_S = 10  # of a server on this host
_CANCEL_S = 2.0  # a cancelled statement ends at once, unless it waits for a frozen disk


def connect(dsn: str, os_user: str = "", *, database: str = "", limit_s: float = 0) -> Connection:
    """A session in autocommit, without prepared statements. `limit_s`: of each statement; 0: none,
    also of idling and waiting for locks. Raises DatabaseUnreachable.

    Settings are given by SET and not in the connection string, which some poolers refuse: a pooler
    is to be found out by preflight and named.
    """
    try:
        with acting_as(os_user):
            connection = psycopg.connect(
                dsn,
                autocommit=True,
                prepare_threshold=None,
                connect_timeout=CONNECT_S,
                application_name="splitmirror",
                dbname=database or None,
            )
    except (psycopg.Error, ValueError) as error:
        raise unreachable(error) from error
    try:
        _set_limits(connection, limit_s)
    except psycopg.Error as error:
        connection.close()
        raise unreachable(error) from error
    return connection


def unreachable(error: Exception) -> DatabaseUnreachable:
    """No connection, or it broke; in the server's own words."""
    said = " ".join(str(error).split()) or type(error).__name__
    said = said.removeprefix("connection failed: ").removeprefix("connection is bad: ")
    return DatabaseUnreachable(
        f"PostgreSQL cannot be reached: {said}", hint=_pg_refusals.advice(error)
    )


def _set_limits(connection: Connection, limit_s: float) -> None:
    version = connection.info.server_version
    connection.execute(f"SET statement_timeout = {int(limit_s * 1000)}")
    limits = ["lock_timeout", "idle_in_transaction_session_timeout"]
    limits += ["idle_session_timeout"] if version >= 140000 else []
    limits += ["transaction_timeout"] if version >= 170000 else []
    for name in limits:
        connection.execute(f"SET {name} = 0")
    connection.execute("SET client_min_messages = error")


@contextmanager
def bounded(connection: Connection, limit_s: float, what: str) -> Iterator[None]:
    """Cancel what the block waits for after `limit_s` seconds, and raise DeadlineExceeded.

    A server that does not even react to that (its filesystem may be frozen) is hung up on.
    """
    ended = threading.Event()
    expired = threading.Event()

    def watch() -> None:
        if not ended.wait(limit_s):
            expired.set()
            with suppress(psycopg.Error, OSError):
                connection.cancel_safe(timeout=_CANCEL_S)
            if not ended.wait(_CANCEL_S):
                _hang_up(connection)

    watcher = threading.Thread(target=watch, daemon=True, name="splitmirror-deadline")
    watcher.start()
    try:
        yield
    except psycopg.Error as error:
        if not expired.is_set():
            raise
        raise DeadlineExceeded(
            f"{what} took longer than {limit_s:g} s",
            hint="Look into pg_stat_activity for what it waits for; a checkpoint needs a disk that "
            "keeps up.",
        ) from error
    finally:
        ended.set()
        watcher.join(2 * _CANCEL_S)


def _hang_up(connection: Connection) -> None:
    """Close the connection below libpq, so that whoever reads it wakes up."""
    with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)


def peer_pid(connection: Connection) -> int | None:
    """Who listens at the other end of a Unix socket: the server, or a pooler. None over TCP."""
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        if end.family != socket.AF_UNIX:
            return None
        pid = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4]
        return int.from_bytes(pid, "little")
