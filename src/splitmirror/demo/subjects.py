"""The databases of the demo: made in the lab, filled, run, and looked into after a restore."""

from __future__ import annotations

import os
import pwd
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import psycopg

from splitmirror.demo import writer
from splitmirror.demo.lab import Lab
from splitmirror.errors import MissingProgram, SplitmirrorError
from splitmirror.model import Mode
from splitmirror.system import programs

START_TIMEOUT_S = 120.0
WRITER_ENDS_S = 60.0
FILLER_TABLES = 8
FILLER_ROW = 1600  # bytes of payload, five rows a PostgreSQL page

Numbers = dict[str, set[int]]

CONNECT: Mapping[str, Callable[[str], Any]] = {
    "postgresql": psycopg.connect,
    "sqlite": sqlite3.connect,
}


class Subject(Protocol):
    """A running database of the demo."""

    def table(self) -> Mapping[str, object]:
        """Its `[database]` table in the configuration."""
        ...

    def writers(self) -> Sequence[tuple[str, str, str]]:
        """(kind, DSN, name) of each writer to start."""
        ...


def entries(kind: str, dsn: str) -> tuple[Numbers, Numbers]:
    """The numbers that each writer has in the tables `first` and `second` of a running copy.

    `dsn` is the copy's: of SQLite the paths of its databases, a line each.
    """
    first: Numbers = {}
    second: Numbers = {}
    for each in dsn.splitlines():
        with closing(CONNECT[kind](each)) as connection:
            for table, into in (("first", first), ("second", second)):
                for writer, number in connection.execute(f"SELECT writer, number FROM {table}"):
                    into.setdefault(writer, set()).add(number)
    return first, second


class PostgreSQL:
    """A cluster with its data on the lab's data disk and its log on the WAL disk. `template`: the
    data directory of a cluster that never ran, to be copied where initdb would take long."""

    def __init__(self, lab: Lab, template: Path | None = None) -> None:
        self._lab = lab
        self._template = template
        self.data = lab.mountpoint("data") / "pg"
        self.socket_dir = lab.base / "socket"
        self.dsn = f"host={self.socket_dir} user=postgres dbname=postgres"

    def table(self) -> Mapping[str, object]:
        return {"driver": "postgresql", "dsn": self.dsn}

    def writers(self) -> Sequence[tuple[str, str, str]]:
        return [("postgresql", self.dsn, name) for name in ("alpha", "beta")]

    def create(self) -> None:
        """initdb as the user postgres, durable settings, the WAL on its own disk."""
        wal = self._lab.mountpoint("wal") / "pg_wal"
        for path in (self._lab.mountpoint("data"), self._lab.mountpoint("wal")):
            shutil.chown(path, "postgres", "postgres")
        self.socket_dir.mkdir(exist_ok=True)
        shutil.chown(self.socket_dir, "postgres", "postgres")
        log = self._lab.base / "postgresql.log"
        log.touch()
        shutil.chown(log, "postgres", "postgres")
        self._make(wal)
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write(
                f"listen_addresses = ''\nunix_socket_directories = '{self.socket_dir}'\n"
                "synchronous_commit = on\nfsync = on\nwal_level = replica\n"
                "shared_buffers = 128MB\nmax_wal_size = 512MB\n"
            )

    def _make(self, wal: Path) -> None:
        if self._template is not None:
            inside = self.data / "pg_wal"
            for copy in ((self._template, self.data), (inside, wal)):  # with their owners
                programs.run(["cp", "-a", *map(str, copy)], timeout_s=START_TIMEOUT_S)
            shutil.rmtree(inside)
            inside.symlink_to(wal)
            return
        argv = [_bin("initdb"), "-D", str(self.data), "-X", str(wal), "-A", "trust", "-k"]
        programs.run(
            [*argv, "-U", "postgres", "--no-sync"], timeout_s=START_TIMEOUT_S, user="postgres"
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        self._ctl("start", "-l", str(self._lab.base / "postgresql.log"))
        try:
            yield
        finally:
            self._ctl("stop", "-m", "immediate")

    def fill(self, size: int) -> None:
        """The tables of the writers, and `size` bytes of other tables."""
        from splitmirror.demo.writer import SCHEMA

        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for statement in SCHEMA:
                connection.execute(statement)
            rows = size // FILLER_ROW // FILLER_TABLES
            for number in range(FILLER_TABLES):
                connection.execute(
                    f"CREATE TABLE filler_{number} AS SELECT g AS id, "
                    f"repeat(md5(g::text), {FILLER_ROW // 32}) AS payload "
                    f"FROM generate_series(1, {rows}) g"
                )
            connection.execute("CHECKPOINT")

    def _ctl(self, *arguments: str) -> None:
        argv = [_bin("pg_ctl"), "-D", str(self.data), "-w", "-s", *arguments]
        programs.run(argv, timeout_s=START_TIMEOUT_S, user="postgres")


class SQLite:
    """Two database files, one on each disk; in freeze mode the second keeps a rollback journal."""

    def __init__(self, lab: Lab, mode: Mode) -> None:
        self.paths = (
            lab.mountpoint("data") / "db" / "main.sqlite",
            lab.mountpoint("wal") / "db" / "second.sqlite",
        )
        self._journal_modes = ("WAL", "WAL" if mode is Mode.HOT else "DELETE")

    def table(self) -> Mapping[str, object]:
        return {"driver": "sqlite", "paths": [str(path) for path in self.paths]}

    def writers(self) -> Sequence[tuple[str, str, str]]:
        return [("sqlite", str(path), path.stem) for path in self.paths]

    def create(self) -> None:
        from splitmirror.demo.writer import SCHEMA

        for path, journal_mode in zip(self.paths, self._journal_modes, strict=True):
            path.parent.mkdir()
            with closing(sqlite3.connect(path)) as connection:
                connection.execute(f"PRAGMA journal_mode = {journal_mode}")
                for statement in SCHEMA:
                    connection.execute(statement)

    @contextmanager
    def running(self) -> Iterator[None]:
        """A library has nothing to start."""
        yield

    def fill(self, size: int) -> None:
        with closing(sqlite3.connect(self.paths[0])) as connection, connection:
            connection.execute("CREATE TABLE filler (payload blob)")
            block = 64 << 10
            connection.executemany(
                "INSERT INTO filler VALUES (?)",
                ((os.urandom(block),) for _ in range(size // block)),
            )


@contextmanager
def writing(kind: str, dsn: str, name: str, ledger: Path) -> Iterator[None]:
    """A writer that commits numbered transactions until the block is left, and notes in the ledger
    which of them were acknowledged, and when. Raises SplitmirrorError when it fails."""
    process = subprocess.Popen(
        [*writer.COMMAND, kind, dsn, name, str(ledger)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        begun = process.stdout.readline() == b"ready\n"
        if begun:
            yield
        said = process.communicate(timeout=WRITER_ENDS_S)[1].decode(errors="replace")
        if process.returncode or not begun:
            raise SplitmirrorError(f"the writer {name} failed: {said[-500:]}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _bin(program: str) -> str:
    """A program of the newest PostgreSQL server that is installed, where Debian puts it."""
    found = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{program}"), key=lambda path: int(path.parts[4])
    )
    if found:
        return str(found[-1])
    if path := programs.find(program):
        return path
    raise MissingProgram(f"{program} is not installed", hint="apt-get install postgresql")


def check_postgres_user() -> None:
    """Raises MissingProgram when the user that runs the server does not exist."""
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        raise MissingProgram(
            "there is no user postgres to run the server as", hint="apt-get install postgresql"
        ) from None
