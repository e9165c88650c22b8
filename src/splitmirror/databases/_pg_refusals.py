"""Why PostgreSQL refuses a session or ends it, and what to do about each.

Source: PostgreSQL documentation, "Authentication Problems" and "PostgreSQL Error Codes".
"""

from __future__ import annotations

import re
from typing import NamedTuple


class _Refusal(NamedTuple):
    """Why there is no session, and what to do. `states`: SQLSTATE, known of a session that stood;
    of a connection that failed libpq gives `words` only."""

    words: str
    advice: str
    states: frozenset[str | None] = frozenset()


# In the words of libpq, which are English here, and of a server whose lc_messages is.
_REFUSALS = (
    _Refusal(
        "Is the server running|failed to resolve|could not translate host name",
        "The server is down, or it listens elsewhere: start it, or correct host and port in `dsn` "
        "(a host that begins with a slash is the directory of its socket).",
    ),
    _Refusal(
        "connection info string|invalid (connection|URI)|definition of service|IPv6 host address",
        "`dsn` is not what libpq takes: write pairs such as host=/run/postgresql user=postgres "
        "dbname=postgres.",
    ),
    _Refusal(
        "the database system is",
        "The server is starting, stopping or recovering: its log tells. Try again when it is up.",
        frozenset({"57P03"}),
    ),
    _Refusal(
        'database ".*" (does not exist|is not currently accepting)',
        "Name a database that takes connections: dbname=postgres in `dsn`.",
    ),
    _Refusal(
        "permission denied for database",
        "Let the role in with GRANT CONNECT ON DATABASE, or name another database in `dsn`.",
    ),
    _Refusal(
        'role ".*" (does not exist|is not permitted to log in)',
        "Correct `user` in `dsn`, or make the role with CREATE ROLE ... LOGIN.",
    ),
    _Refusal(
        "(Peer|Ident) authentication failed",
        "The server lets in the host's user of the same name as the role: set os_user to that, "
        'mostly os_user = "postgres".',
    ),
    _Refusal(
        "password authentication failed|no password supplied",
        "The server wants the role's password: put it into a file of mode 0600 and name that with "
        'passfile= in `dsn` (libpq, "The Password File"); or use os_user, where pg_hba.conf says '
        "peer.",
    ),
    _Refusal(
        "no pg_hba.conf entry",
        "The server lets nobody in as this role, from here: add a line for it to pg_hba.conf and "
        "reload the server.",
    ),
    _Refusal(
        "connection slots|too many (clients|connections)",
        "Every session of the server is taken: end idle ones, or raise max_connections.",
        frozenset({"53300"}),
    ),
    _Refusal(
        "terminating connection|server closed the connection",
        "The session was ended, or the server went down: its log tells. Try again.",
        frozenset({"57P01", "57P02"}),
    ),
    _Refusal(
        "canceling statement",
        "The server does not answer in time: look into pg_stat_activity for what it waits for.",
        frozenset({"57014"}),
    ),
)
_ANY = (
    "Try `dsn` with psql, as the same user of the host; the server's log tells why it refuses. "
    'With "peer" authentication set os_user = "postgres".'
)


def advice(error: Exception) -> str:
    """What to do about an error of psycopg; where it is not known which, all that it may be."""
    state, said = getattr(error, "sqlstate", None), str(error)
    for refusal in _REFUSALS:
        if state in refusal.states or re.search(refusal.words, said):
            return refusal.advice
    return _ANY
