"""PostgreSQL 13 and later, on this host.

Hot: the server's own backup mode in one session, with a temporary replication slot; the WAL of the
window, backup_label and tablespace_map become part of the set. Freeze: a checkpoint, then the
frozen filesystems; the pg_wal on the leg belongs to the set. See docs/adr/0007-holds.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from splitmirror.databases import (
    Hold,
    Layout,
    RunningCopy,
    _pg_copy,
    _pg_hold,
    _pg_layout,
    _pg_preflight,
    _pg_ready,
    _pg_server,
    _pg_session,
    _pg_titles,
)
from splitmirror.databases._pg_server import Server
from splitmirror.errors import DatabaseError, SplitmirrorError
from splitmirror.model import Finding, Mode

# What a copy needs to be started as the original was, and a person to restore it.
_FACTS = (
    *("data_directory", *_pg_layout.CONFIGURATION, "data_directory_mode"),
    *("data_checksums", "block_size", "wal_segment_size", "shared_preload_libraries"),
    *("max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions"),
    *("max_locks_per_transaction", "unix_socket_directories", "port"),
)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`dsn`: a libpq connection string or URI. `os_user`: connect as this user of the host, for
    "peer" authentication. `bin_dir`: where postgres and pg_amcheck are, for a drill on a host
    without the server; else the running server's own."""

    dsn: str
    os_user: str = ""
    bin_dir: str = ""


def open_database(settings: Settings) -> Postgresql:
    """Does not connect yet."""
    return Postgresql(settings)


class Postgresql:
    """The driver. Knows the server after `preflight`."""

    modes = frozenset({Mode.FREEZE, Mode.HOT})
    # As in any base backup: documentation, "Making a Base Backup Using the Low Level API".
    mends_instants = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._server: Server | None = None
        self._places: _pg_layout.Places | None = None
        self._mode = Mode.HOT
        self._bin_dir = settings.bin_dir

    def preflight(self, mode: Mode) -> list[Finding]:
        """Look at the server, its role, its settings and its directories."""
        self._mode = mode
        try:
            return self._look(mode)
        except SplitmirrorError as error:
            return [Finding(what="PostgreSQL server", problem=error)]

    def _look(self, mode: Mode) -> list[Finding]:
        with _pg_session.connect(
            self._settings.dsn, self._settings.os_user, limit_s=_pg_server.LIMIT_S
        ) as connection:
            findings = [_pg_preflight.version(connection.info.server_version)]
            if findings[0].problem is not None:
                return findings
            server = _pg_server.ask(connection)
            findings.append(_pg_preflight.pooler(server))
            findings.append(_pg_preflight.rights(server, mode))
            findings += _pg_preflight.settings(server, mode)
            if not any(each.problem and not each.warning for each in findings):
                findings += _pg_preflight.places(server)
            if not any(each.problem and not each.warning for each in findings):
                self._know(server)
        return findings

    def _know(self, server: Server) -> None:
        self._server = server
        self._places = _pg_layout.Places(
            data=server.data,
            version_directory=server.version_directory.encode(),
            outside=_pg_layout.outside_files(server.settings, server.data),
            stats_temp=os.fsencode(server.setting("stats_temp_directory", "pg_stat_tmp")),
        )
        if not self._settings.bin_dir:
            self._bin_dir = _pg_server.programs_of(_pg_server.postmaster_of(server))

    def _known(self) -> tuple[Server, _pg_layout.Places]:
        if self._server is None or self._places is None:
            raise DatabaseError(
                "PostgreSQL has not been looked at, or was found unsuitable",
                hint="See what `splitmirror doctor` finds.",
            )
        return self._server, self._places

    def facts(self) -> Mapping[str, str]:
        """What identifies the cluster, where it lay, and what a copy of it needs."""
        server, places = self._known()
        facts = {
            "server_version": server.version,
            "server_version_num": str(server.version_num),
            "system_identifier": server.system_identifier,
            "superuser": server.superuser,
            "database": server.database,
            "bin_dir": self._bin_dir,
            **{name: server.setting(name) for name in _FACTS},
            "data_directory": str(places.data),
        }
        for name, path in _pg_layout.certificates(server.settings, places.data).items():
            facts[name] = str(path)
        if (wal := places.wal()) is not None:
            facts["wal_directory"] = str(wal)
        for oid, place in (places.tablespaces() | places.tablespaces_inside()).items():
            facts[f"tablespace.{oid}"] = str(place)
        return facts

    def layout(self) -> Layout:
        """The cluster's files right now, for the mode last given to `preflight` or `quiesce`."""
        return _pg_layout.layout(self._known()[1], self._mode)

    def titles(self, names: Iterable[bytes]) -> Mapping[bytes, str]:
        """Tables and indexes, as `database.schema.name`."""
        return _pg_titles.titles(self._settings.dsn, self._settings.os_user, names)

    def quiesce(self, mode: Mode, deadline_s: float) -> AbstractContextManager[Hold]:
        """Hot: backup mode. Freeze: a checkpoint; the caller freezes the filesystems next."""
        server, places = self._known()
        self._mode = mode
        target = _pg_hold.Target(
            dsn=self._settings.dsn, os_user=self._settings.os_user, server=server, places=places
        )
        hold = _pg_hold.hot if mode is Mode.HOT else _pg_hold.standing
        return hold(target, deadline_s)

    def make_ready(self, roots: Mapping[bytes, Path], facts: Mapping[str, str]) -> None:
        """Point a restored cluster's links to where its parts are now."""
        _pg_ready.make_ready(roots, facts)

    def start_copy(
        self,
        roots: Mapping[bytes, Path],
        facts: Mapping[str, str],
        hide: Sequence[Path],
        scratch: Path,
    ) -> AbstractContextManager[RunningCopy]:
        """Start a restored cluster behind a wall, until its recovery has ended."""
        bin_dir = self._settings.bin_dir or facts.get("bin_dir", "") or self._bin_dir
        return _pg_copy.started(
            _pg_copy.Copy(roots=roots, facts=facts, bin_dir=Path(bin_dir), scratch=scratch), hide
        )
