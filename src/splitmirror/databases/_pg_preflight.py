"""What would break a backup of a PostgreSQL server, found beforehand.

Each look is a function of the server's own description; none asks again. Source of the rules:
PostgreSQL documentation, "Continuous Archiving and Point-in-Time Recovery", and what was tried.
"""

from __future__ import annotations

from collections.abc import Iterator

from splitmirror.databases import _pg_server
from splitmirror.databases._pg_layout import Places
from splitmirror.databases._pg_server import OLDEST, Server
from splitmirror.errors import (
    DatabaseError,
    DatabaseRefused,
    DatabaseTooOld,
    DatabaseUnsuitable,
    SplitmirrorError,
)
from splitmirror.model import Finding, Mode
from splitmirror.units import show_size

_WINDOW_SEGMENTS = 8  # of WAL, that a busy server fills in seconds


def version(version_num: int) -> Finding:
    """Whether the server is one that this driver knows."""
    problem: SplitmirrorError | None = None
    if version_num < OLDEST:
        problem = DatabaseTooOld(
            f"PostgreSQL {version_num // 10000} is older than {OLDEST // 10000}",
            hint=f"Upgrade the server to {OLDEST // 10000} or later.",
            version_num=version_num,
        )
    return Finding(what=f"PostgreSQL {version_num // 10000}.{version_num % 10000}", problem=problem)


def pooler(server: Server) -> Finding:
    """Whether a pooler stands between us and the server: a backup lives in one session of it."""
    pooled = server.backend_pid != server.own_pid
    problem: SplitmirrorError | None = None
    if pooled:
        name = server.listener if server.listener not in (None, "postgres") else "a pooler"
        problem = DatabaseUnsuitable(
            f"`dsn` leads to {name}, not to the server: a pooler may end or swap the one session "
            "that a backup lives in",
            hint="Point `dsn` at the server's own socket or port.",
            pooler=name,
        )
    return Finding(what="connection straight to the server", problem=problem)


def rights(server: Server, mode: Mode) -> Finding:
    """Whether the role may do what this mode needs."""
    missing = list(_missing(server, mode))
    problem: SplitmirrorError | None = None
    if missing:
        problem = DatabaseRefused(
            f"role {server.rights.role} may not back up this server",
            hint=" ".join(missing),
            role=server.rights.role,
        )
    return Finding(what=f"rights of role {server.rights.role}", problem=problem)


def _missing(server: Server, mode: Mode) -> Iterator[str]:
    """The statements that would give the role what it lacks."""
    role = server.rights.role
    if not server.setting("data_directory"):
        yield f"GRANT pg_read_all_settings TO {role};"
    if mode is Mode.HOT and not server.rights.backup:
        for function in _pg_server.backup_functions(server.version_num):
            yield f"GRANT EXECUTE ON FUNCTION {function} TO {role};"
    if mode is Mode.HOT and not server.rights.replication:
        yield f"ALTER ROLE {role} REPLICATION;"
    if mode is Mode.FREEZE and not server.rights.checkpoint:
        if server.version_num >= 150000:
            yield f"GRANT pg_checkpoint TO {role};"
        else:
            yield f"ALTER ROLE {role} SUPERUSER; (CHECKPOINT is for superusers before 15)"


def settings(server: Server, mode: Mode) -> Iterator[Finding]:
    """Settings that make the mode impossible, or are worth telling."""
    if mode is Mode.HOT:
        yield Finding(what="settings for hot mode", problem=_no_hot(server))
        yield from _slot_room(server)
    if mode is Mode.FREEZE and server.in_recovery:
        yield _warning("standby", "the server is a standby: the set is a standby's state")
    if server.setting("fsync") == "off":
        yield _warning("fsync", "fsync is off: a crash of the original can destroy it")
    if server.setting("full_page_writes") == "off":
        yield _warning("full_page_writes", "full_page_writes is off: torn pages go unnoticed")
    if server.archiving_since_failed and server.setting("archive_mode") != "off":
        yield _warning(
            "archiving", "WAL archiving fails (pg_stat_archiver); the backup does not wait for it"
        )
    if not server.rights.lock_tablespaces:
        yield _warning(
            "tablespaces",
            "the role may not lock pg_tablespace: should a tablespace be "
            "made during the backup, the backup fails",
        )


def _slot_room(server: Server) -> Iterator[Finding]:
    """Whether the slot keeps the WAL of a window in which a checkpoint falls. What it may keep is
    looked at by checkpoints alone, and one comes after max_wal_size at the latest."""
    name = "max_slot_wal_keep_size"
    kept = int(server.setting(name, "-1")) << 20  # pg_settings has both in MB
    segments = _WINDOW_SEGMENTS * server.number("wal_segment_size")
    wanted = max(server.number("max_wal_size") << 20, segments)
    if 0 <= kept < wanted:
        yield _warning(
            name,
            f"{name} is {show_size(kept)}: the server may give up WAL of the backup's window, if "
            "much is written in it; that backup fails, and says so",
            hint=f"Set {name} to {show_size(wanted)} or more (max_wal_size, or {_WINDOW_SEGMENTS} "
            "segments), or to -1.",
        )


def _warning(
    what: str, words: str, hint: str = "The backup goes on; look into it when you can."
) -> Finding:
    return Finding(what=what, problem=DatabaseUnsuitable(words, hint=hint), warning=True)


def _no_hot(server: Server) -> SplitmirrorError | None:
    """Why hot mode is impossible; None when it is possible."""
    if server.in_recovery:
        return DatabaseUnsuitable(
            "the server is a standby: it cannot end a backup with a WAL segment of its own",
            hint='Set mode = "freeze", or back up the primary.',
        )
    if server.setting("wal_level") == "minimal":
        return DatabaseUnsuitable(
            "wal_level is minimal: the WAL lacks what recovery from a hot backup needs",
            hint='Set wal_level = replica and restart the server, or set mode = "freeze".',
        )
    slots = server.number("max_replication_slots")
    if server.slots_used >= slots:
        return DatabaseUnsuitable(
            f"no replication slot is free ({server.slots_used} of {slots} in use)",
            hint='Raise max_replication_slots and restart the server, or set mode = "freeze".',
            slots=slots,
        )
    return None


def places(server: Server) -> Iterator[Finding]:
    """Whether the server's directories are here, and lie as they should."""
    try:
        _pg_server.postmaster_of(server)
    except DatabaseError as error:
        yield Finding(what="server on this host", problem=error)
        return
    yield Finding(what=f"server on this host, in {server.data}")
    found = Places(data=server.data, version_directory=server.version_directory.encode())
    for oid, place in found.tablespaces_inside().items():
        yield _warning(
            "tablespaces", f"tablespace {oid} lies in the data directory itself, at {place}"
        )
