"""PostgreSQL from the running cluster to the started copy: real backups off the embedded mirror of
a cluster with all its parts elsewhere, as Debian lays it out, while everything in it moves.

One cluster serves both modes. Archiving is on and fails, no WAL sender is allowed, idle sessions
are ended after 300 ms: none of this may matter to a backup.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from tests.real.test_backup import compared_with_leg, configured, rejoined_after

from splitmirror.backup import backup
from splitmirror.catalog import Catalog
from splitmirror.config import Config
from splitmirror.databases import Database, Hold, RedoFile
from splitmirror.demo.lab import Disk, Lab, lab_at, leftovers
from splitmirror.demo.ledger import judge
from splitmirror.demo.subjects import entries
from splitmirror.demo.writer import SCHEMA, committer_postgresql
from splitmirror.drill import drill
from splitmirror.errors import DatabaseUnsuitable, HoldBroken, ProgramFailed
from splitmirror.model import BackupSet, Mode
from splitmirror.progress import Progress, silent
from splitmirror.restore import restore
from splitmirror.system import programs
from splitmirror.testing.clusters import newest_programs

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

DISKS = (
    Disk(name="data", fstype="ext4", size=384 << 20),
    Disk(name="wal", fstype="xfs", size=640 << 20),
    Disk(name="space", fstype="ext4", size=128 << 20),
)
PORT = "5432"  # part of the socket's name
SETTINGS = {
    "listen_addresses": "",
    "wal_level": "replica",
    "max_wal_senders": "0",
    "archive_mode": "on",
    "archive_command": "false",
    "idle_session_timeout": "300ms",
    "idle_in_transaction_session_timeout": "300ms",
    "max_prepared_transactions": "10",
    "shared_buffers": "16MB",
    "temp_buffers": "800kB",
    "max_wal_size": "64MB",
    "min_wal_size": "32MB",
    "autovacuum": "off",  # so that the original is still while a copy is looked at
}
PATIENT = "-c idle_session_timeout=0 -c idle_in_transaction_session_timeout=0"


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A cluster as Debian has it: configuration, data, WAL and a tablespace each elsewhere."""

    lab: Lab
    bin_dir: Path = field(default_factory=newest_programs)

    @property
    def data(self) -> Path:
        return self.lab.mountpoint("data") / "postgresql/main"

    @property
    def wal(self) -> Path:
        return self.lab.mountpoint("wal") / "pg_wal"

    @property
    def spaces(self) -> tuple[Path, ...]:
        """On a disk of its own; on the data's disk."""
        return self.lab.mountpoint("space") / "far", self.lab.mountpoint("data") / "near"

    @property
    def etc(self) -> Path:
        return self.lab.base / "etc/postgresql/main"

    @property
    def key(self) -> Path:
        """Of the server's certificate: root's own, readable to the server's group, behind a link as
        certbot makes them."""
        return self.lab.base / "etc/ssl/archive/key3.pem"

    @property
    def certificate(self) -> Path:
        return self.lab.base / "etc/ssl/server.crt"

    @property
    def sockets(self) -> Path:
        return self.lab.base / "run"

    def dsn(self, **more: str) -> str:
        known = {"host": str(self.sockets), "port": PORT, "user": "postgres", "dbname": "postgres"}
        return make_conninfo(**{**known, **more})

    def connect(self, **more: str) -> psycopg.Connection[Any]:
        return psycopg.connect(self.dsn(**{"options": PATIENT, **more}), autocommit=True)

    def do(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run them in one session; the rows of the last."""
        with self.connect() as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def create(self) -> None:
        places = (self.lab.mountpoint(disk.name) for disk in self.lab.disks)
        for path in (*places, self.data.parent, *self.spaces, self.etc / "conf.d", self.sockets):
            path.mkdir(parents=True, exist_ok=True)
            shutil.chown(path, "postgres", "postgres")
        argv = [str(self.bin_dir / "initdb"), "-D", str(self.data), "-X", str(self.wal), "-A"]
        argv += ["trust", "-U", "postgres", "--no-sync", "--data-checksums"]
        argv += ["--wal-segsize=1"]  # MiB: what fails to be archived stays
        programs.run(argv, timeout_s=60, user="postgres")
        for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
            shutil.move(self.data / name, self.etc / name)
        values = {
            **SETTINGS,
            "data_directory": str(self.data),
            "hba_file": str(self.etc / "pg_hba.conf"),
            "ident_file": str(self.etc / "pg_ident.conf"),
            "external_pid_file": str(self.sockets / "main.pid"),
            "unix_socket_directories": str(self.sockets),
            "port": PORT,
            "ssl": "on",
            "ssl_cert_file": str(self.certificate),
            "ssl_key_file": str(self.certificate.with_name("key.pem")),
        }
        with (self.etc / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in values.items())
            file.write("include_dir = 'conf.d'\ninclude 'site.conf'\n")  # the first is empty
        (self.etc / "site.conf").write_text("work_mem = '5MB'\n")
        (self.etc / "pg_hba.conf").write_text("local all @keepers trust\nlocal all all trust\n")
        (self.etc / "keepers").write_text("keeper\n")
        (self.etc / "start.conf").write_text("auto\n")  # beside Debian's
        (self.etc / "environment").touch()
        for path in self.etc.iterdir():
            shutil.chown(path, "postgres", "postgres")
        self.certify()

    def certify(self) -> None:
        self.key.parent.mkdir(parents=True)
        argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x"]
        argv += ["-keyout", str(self.key), "-out", str(self.certificate)]
        programs.run(argv, timeout_s=60)
        self.certificate.with_name("key.pem").symlink_to("archive/key3.pem")
        shutil.chown(self.key, "root", "postgres")
        self.key.chmod(0o640)

    def start(self, more: str = "") -> None:
        self.control("start", "-o", f"-c config_file={self.etc / 'postgresql.conf'} {more}")

    def stop(self) -> None:
        self.control("stop", "-m", "fast")

    def control(self, *words: str, data: Path | None = None) -> None:
        argv = [str(self.bin_dir / "pg_ctl"), "-D", str(data or self.data), "-w", "-s"]
        log = self.lab.base / ("postgresql.log" if data is None else "copy.log")
        log.touch()
        shutil.chown(log, "postgres", "postgres")
        try:
            programs.run([*argv, "-l", str(log), *words], timeout_s=60, user="postgres")
        except ProgramFailed as error:
            error.add_note(log.read_text()[-2000:])
            raise


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="sm-whole-") as directory:
        Path(directory).chmod(0o711)
        base = Path(directory) / "lab"
        with lab_at(base, DISKS) as made:
            yield made
        assert [left for left in leftovers(base) if not left.startswith("directory")] == []


@pytest.fixture(scope="module")
def live(lab: Lab) -> Iterator[Whole]:
    found = Whole(lab=lab)
    found.create()
    found.start()
    try:
        far, near = found.spaces
        found.do(
            *SCHEMA,
            f"CREATE TABLESPACE far LOCATION '{far}'",
            f"CREATE TABLESPACE near LOCATION '{near}'",
            "CREATE TABLE kept (id int PRIMARY KEY, note text) TABLESPACE far",
            "INSERT INTO kept SELECT g, repeat(md5(g::text), 30) FROM generate_series(1, 5000) g",
            "CREATE INDEX kept_near ON kept (note) TABLESPACE near",
            "CREATE TABLE locked AS SELECT generate_series(1, 1000) AS id",
            "CREATE TABLE prepared (id int)",
            "CREATE TABLE lasting (id int)",
            "CREATE UNLOGGED TABLE forgotten (id int) TABLESPACE near",
            "INSERT INTO forgotten VALUES (1)",
            "CREATE DATABASE elsewhere TABLESPACE far",
            "CREATE ROLE keeper LOGIN REPLICATION",
            "GRANT pg_read_all_settings, pg_checkpoint TO keeper",
            "GRANT EXECUTE ON FUNCTION pg_backup_start(text,boolean) TO keeper",
            "GRANT EXECUTE ON FUNCTION pg_backup_stop(boolean) TO keeper",
        )
        yield found
    finally:
        with contextlib.suppress(Exception):
            found.control("stop", "-m", "immediate")


# --- what goes on meanwhile

CHURN: dict[str, tuple[str, ...]] = {
    "rewritten": (
        "CREATE TABLE rewritten AS SELECT g, repeat('x', 200) AS x FROM generate_series(1, 2000) g",
        "CREATE INDEX ON rewritten (g)",
        "DELETE FROM rewritten WHERE g % 2 = 0",
        "VACUUM FULL rewritten",
        "ALTER TABLE rewritten SET TABLESPACE far",
        "REINDEX TABLE rewritten",
        "TRUNCATE rewritten",
        "DROP TABLE rewritten",
    ),
    "databases": (
        "CREATE DATABASE come_and_go STRATEGY wal_log",
        "DROP DATABASE come_and_go",
        "CREATE DATABASE come_and_go STRATEGY file_copy TABLESPACE near",
        "DROP DATABASE come_and_go",
    ),
    "prepared": (
        "BEGIN",
        "INSERT INTO prepared VALUES (0)",
        "PREPARE TRANSACTION 'churned'",
        "COMMIT PREPARED 'churned'",
    ),
    "temporary": (
        "CREATE TEMP TABLE IF NOT EXISTS mine AS SELECT g, repeat('x', 500) AS x "
        "FROM generate_series(1, 5000) g",
        "UPDATE mine SET x = x || 'y' WHERE g % 100 = 0",
        "SELECT count(*) FROM (SELECT * FROM mine ORDER BY x, g) s",
        "UPDATE kept SET note = note || 'z' WHERE id % 500 = 0",
        "VACUUM kept",
    ),
}


class Load:
    """Writers with a ledger, and everything of CHURN, each in a session of its own."""

    def __init__(self, live: Whole) -> None:
        self._live = live
        self._ended = threading.Event()
        self.noted: dict[str, dict[int, float]] = {"alpha": {}, "beta": {}}
        self.rounds = dict.fromkeys(CHURN, 0)
        self.errors: list[Exception] = []
        self._threads = [
            *(threading.Thread(target=self._write, args=[name]) for name in self.noted),
            *(threading.Thread(target=self._churn, args=[name]) for name in CHURN),
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.await_rounds(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)

    def await_rounds(self, more: int) -> None:
        """Until each kind of churn has gone round so often again."""
        wanted = {name: count + more for name, count in self.rounds.items()}
        until_s = time.monotonic() + 60
        while any(self.rounds[name] < count for name, count in wanted.items()):
            assert not self.errors and time.monotonic() < until_s, (self.errors, self.rounds)
            time.sleep(0.01)

    def acknowledged(self, before_s: float) -> dict[str, set[int]]:
        return {
            name: {number for number, at_s in numbers.items() if at_s < before_s}
            for name, numbers in self.noted.items()
        }

    def _write(self, name: str) -> None:
        try:
            commit = committer_postgresql(self._live.dsn(options=PATIENT), name)
            while not self._ended.is_set():
                number = len(self.noted[name]) + 1
                commit(number)
                self.noted[name][number] = time.monotonic()
                self._ended.wait(0.002)
        except psycopg.Error as error:
            self.errors.append(error)

    def _churn(self, name: str) -> None:
        try:
            with self._live.connect() as connection:
                while not self._ended.is_set():
                    for statement in CHURN[name]:
                        connection.execute(statement)
                        self._ended.wait(0.01)  # the disk for the WAL is small
                    self.rounds[name] += 1
        except psycopg.Error as error:
            self.errors.append(error)


@dataclass
class Watched:
    """A database driver during whose hold `within` happens; knows when the stop point came at the
    earliest: before the freeze, or in hot mode before the hold's confirmation."""

    database: Database
    within: Callable[[], None]
    stop_s: float = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.database, name)

    @contextlib.contextmanager
    def quiesce(self, mode: Mode, deadline_s: float) -> Iterator[Hold]:
        with self.database.quiesce(mode, deadline_s) as hold:
            self.within()
            self.stop_s = time.monotonic()
            yield _WatchedHold(hold, self) if mode is Mode.HOT else hold


class _WatchedHold:
    def __init__(self, hold: Hold, watched: Watched) -> None:
        self._hold, self._watched = hold, watched

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hold, name)

    def confirm(self, into: Path) -> tuple[RedoFile, ...]:
        self._watched.stop_s = time.monotonic()
        return self._hold.confirm(into)


def backed_up(loaded: Config, within: Callable[[], None]) -> tuple[BackupSet, float]:
    """A backup within whose hold something happens, and its earliest stop point."""
    watched = Watched(loaded.open_database(), within)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Config, "open_database", lambda _: watched)
        return backup(loaded), watched.stop_s


def table(live: Whole, **more: str) -> dict[str, object]:
    return {"driver": "postgresql", "dsn": live.dsn(**more)}


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A backup that was made under load, and all of it as the leg had it, in `plain`."""

    live: Whole
    loaded: Config
    made: BackupSet
    plain: Path
    acknowledged: dict[str, set[int]]

    def restored(self, target: Path | None, *patterns: bytes, **options: Any) -> None:
        with Catalog.open(self.loaded.catalog_path) as catalog:
            database = self.loaded.open_database()
            restore(
                self.loaded.open_supply(), catalog, self.made.set_id, patterns, target,
                database=database, **options,
            )  # fmt: skip

    def names(self) -> set[bytes]:
        with Catalog.open(self.loaded.catalog_path) as catalog:
            return set(catalog.kinds(self.made.set_id))

    def require_state(self, dsn: str, prepared: Sequence[str] = ("locking", "waiting")) -> None:
        """A recovered copy has what was committed before the stop point, and nothing else."""
        assert judge(self.acknowledged, *entries("postgresql", dsn)).lost == 0
        assert judge(self.acknowledged, *entries("postgresql", dsn)).torn == 0
        with psycopg.connect(dsn, autocommit=True) as connection:

            def one(query: str) -> Any:
                row = connection.execute(query).fetchone()
                return row[0] if row else None

            assert one("SELECT count(*) FROM kept") == 5000
            assert one("SELECT count(*) FROM lasting") == 0, "it was not committed"
            assert one("SELECT count(*) FROM forgotten") == 0, "unlogged: empty after recovery"
            assert one("SELECT count(*) FROM prepared WHERE id = 1") == 0
            gids = connection.execute("SELECT gid FROM pg_prepared_xacts").fetchall()
            assert {gid for (gid,) in gids} - {"churned"} == set(prepared)
            databases = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
            assert {"born", "elsewhere"} <= databases and "doomed" not in databases
            assert one("SHOW data_checksums") == "on"


@pytest.fixture(scope="module", params=["hot", "freeze"])
def taken(live: Whole, request: pytest.FixtureRequest) -> Iterator[Taken]:
    for (gid,) in live.do("SELECT gid FROM pg_prepared_xacts"):  # as the last restore left it
        live.do(f"ROLLBACK PREPARED '{gid}'")
    live.do(
        "DROP DATABASE IF EXISTS born",
        "DROP DATABASE IF EXISTS half_dropped",
        "DROP DATABASE IF EXISTS come_and_go",
        "DROP TABLE IF EXISTS rewritten",
        "CREATE DATABASE doomed TABLESPACE near",
        "CREATE DATABASE half_dropped",  # as a split within its DROP leaves it
        "UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'half_dropped'",
        "TRUNCATE first, second",
    )
    loaded = configured(live.lab, table(live), mode=request.param, cleanup="leave-split")
    with contextlib.ExitStack() as undo:
        lasting = undo.enter_context(live.connect())
        lasting.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        lasting.execute("INSERT INTO lasting VALUES (1)")
        for gid, statement in (("waiting", "INSERT INTO prepared VALUES (1)"),
                               ("locking", "TRUNCATE locked")):  # fmt: skip
            live.do("BEGIN", statement, f"PREPARE TRANSACTION '{gid}'")
            undo.callback(live.do, f"ROLLBACK PREPARED '{gid}'")
        with Load(live) as load:

            def within() -> None:
                live.do("CREATE DATABASE born", "DROP DATABASE doomed", "SELECT pg_switch_wal()")
                load.await_rounds(1)

            made, stop_s = backed_up(loaded, within)
        assert load.errors == []
        lasting.execute("COMMIT")
        live.do("TRUNCATE lasting")
        place = Path(tempfile.mkdtemp(dir=live.lab.base.parent))
        undo.callback(shutil.rmtree, place)
        with rejoined_after(loaded, made):
            assert compared_with_leg(loaded, made, place / "plain") > 900
        found = Taken(
            live=live,
            loaded=loaded,
            made=made,
            plain=place / "plain",
            acknowledged=load.acknowledged(stop_s),
        )
        assert all(len(numbers) > 20 for numbers in found.acknowledged.values())
        yield found


def test_the_set_holds_no_lock_file_and_keeps_emptied_directories(taken: Taken) -> None:
    names = taken.names()
    assert not {name for name in names if name.endswith((b"postmaster.pid", b"postmaster.opts"))}
    assert not {name for name in names if b"pgsql_tmp" in name or b"/t3_" in name}
    for emptied in (b"pg_replslot", b"pg_stat_tmp", b"pg_notify", b"pg_subtrans"):
        assert b"data/" + emptied in names
        assert not {name for name in names if name.startswith(b"data/%s/" % emptied)}
    outside = {os.fsdecode(name) for name in names if name.startswith(b"outside/")}
    files = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf", "site.conf", "keepers"]
    files += ["start.conf", "environment"]
    assert {f"outside{taken.live.etc}/{name}" for name in files} <= outside
    assert {f"outside{path}" for path in (taken.live.key, taken.live.certificate)} <= outside
    assert (b"data/backup_label" in names) == (taken.made.mode is Mode.HOT)


def test_one_table_restored_by_a_glob_is_the_legs(taken: Taken, tmp_path: Path) -> None:
    ((path,),) = taken.live.do("SELECT pg_relation_filepath('kept')")
    pattern = os.fsencode(str(path).replace("pg_tblspc", "tblspc") + "*")
    taken.restored(tmp_path / "one", pattern)
    files = [file for file in (tmp_path / "one").rglob("*") if file.is_file()]
    assert len(files) >= 2, "the main fork and the free space map"
    for file in files:
        leg = taken.plain / file.relative_to(tmp_path / "one")
        assert file.read_bytes() == leg.read_bytes()


def fingerprint(*places: Path) -> dict[str, tuple[int, ...] | str]:
    """Every file's size and times; its digest too where a careless copy would write."""
    found: dict[str, tuple[int, ...] | str] = {}
    for path in (each for place in places for each in (place, *place.rglob("*"))):
        status = path.lstat()
        found[str(path)] = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if path.name == "pg_control" or ("PG_" in str(path) and path.is_file()):
            found[f"{path} digest"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@contextlib.contextmanager
def untouched(live: Whole) -> Iterator[None]:
    """The running original is the same file for file, before and after; but for the segment that
    it writes its own log to, a line every 15 s at the most (LogStandbySnapshot)."""
    live.do("CHECKPOINT")
    places = (live.data, live.wal, *live.spaces, live.etc, live.sockets)
    ((segment,),) = live.do("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
    before = fingerprint(*places)
    yield
    after = fingerprint(*places)
    for found in (before, after):
        assert found.pop(str(live.wal / segment))
    assert after == before


@contextlib.contextmanager
def started_by_hand(live: Whole, target: Path, sockets: Path) -> Iterator[str]:
    """What a DBA types. The restored postgresql.conf names the original's data directory,
    pg_hba.conf, sockets and archive: each is overridden, on the command line, which wins."""
    etc = target / f"outside{live.etc}"
    values = {
        "config_file": etc / "postgresql.conf",
        "data_directory": target / "data",
        "hba_file": etc / "pg_hba.conf",
        "ident_file": etc / "pg_ident.conf",
        "unix_socket_directories": sockets,
        "external_pid_file": sockets / "main.pid",
        "ssl_cert_file": target / f"outside{live.certificate}",
        "ssl_key_file": target / f"outside{live.key}",
        "archive_mode": "off",
    }
    words = " ".join(f"-c {name}={value}" for name, value in values.items())
    live.control("start", "-o", words, data=target / "data")
    try:
        yield live.dsn(host=str(sockets), options=PATIENT)
    finally:
        live.control("stop", "-m", "fast", data=target / "data")


def amcheck(live: Whole, dsn: str, *databases: str) -> None:
    """Every index against its table, wherever no prepared transaction locks it."""
    parameters = psycopg.conninfo.conninfo_to_dict(dsn)
    argv = [str(live.bin_dir / "pg_amcheck"), "--heapallindexed", "--install-missing"]
    argv += ["--host", str(parameters["host"]), "--port", PORT, "--username", "postgres"]
    argv += ["--exclude-table", "public.locked", *(f"--database={name}" for name in databases)]
    programs.run(argv, timeout_s=120, env={"PGOPTIONS": "-c client_min_messages=error"})


def test_a_whole_set_restored_elsewhere_is_started_by_hand_and_the_original_is_untouched(
    taken: Taken,
) -> None:
    live = taken.live
    place = live.lab.base.parent / f"dba-{taken.made.mode.value}"
    place.mkdir()
    shutil.chown(place, "postgres", "postgres")
    try:
        with untouched(live):
            target = place / "restored"  # made by the restore
            taken.restored(target)
            links = [target / "data/pg_wal", *(target / "data/pg_tblspc").iterdir()]
            assert len(links) == 3
            assert all(link.readlink().is_relative_to(target) for link in links)
            with started_by_hand(live, target, place) as dsn:
                taken.require_state(dsn)
                amcheck(live, dsn, "postgres", "elsewhere", "born")
                with psycopg.connect(dsn, autocommit=True) as connection:
                    connection.execute("COMMIT PREPARED 'waiting'")
                    left = connection.execute("SELECT gid FROM pg_prepared_xacts").fetchall()
                    for (gid,) in left:  # the churn's own too, if the split came within it
                        connection.execute(f"ROLLBACK PREPARED '{gid}'")
                    connection.execute("UPDATE kept SET note = 'of the copy'")
                    connection.execute("DROP TABLE prepared")
                    connection.execute("CREATE DATABASE late TABLESPACE far")
                    connection.execute("CHECKPOINT")
                    assert connection.execute("SHOW work_mem").fetchone() == ("5MB",)
                    assert connection.execute("SHOW ssl").fetchone() == ("on",)
            assert owner_and_mode(target / f"outside{live.key}") == owner_and_mode(live.key)
    finally:
        shutil.rmtree(place)


def owner_and_mode(path: Path) -> tuple[int, int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid, status.st_mode


def test_a_drill_passes_with_transactions_prepared_and_the_running_original_is_untouched(
    taken: Taken, tmp_path: Path
) -> None:
    with untouched(taken.live), Catalog.open(taken.loaded.catalog_path) as catalog:
        report = drill(
            taken.loaded.open_supply(),
            catalog,
            taken.made.set_id,
            taken.loaded.open_database(),
            scratch=tmp_path,
            probe=lambda copy: taken.require_state(copy.dsn, ["waiting"]),
        )
    report.require_passed()
    assert "prepared transaction 'locking' rolled back: it locked a table" in report.checks
    assert list(tmp_path.iterdir()) == []


def names_in(directory: Path, *below: str) -> set[str]:
    return {str(path.relative_to(directory)) for each in below for path in directory.glob(each)}


def test_a_stopped_original_comes_back_in_place_as_it_was(taken: Taken) -> None:
    live = taken.live
    newer = "00000001000000AA00000001"
    live.do(
        "DROP TABLE first",
        "CREATE TABLE newer TABLESPACE far AS SELECT generate_series(1, 1000)",
        "CREATE DATABASE newer TABLESPACE far",
        "SELECT pg_switch_wal()",
    )
    live.stop()
    (live.wal / newer).write_bytes(b"\0" * 4096)
    (live.wal / "archive_status" / f"{newer}.ready").touch()
    (live.data / "base/5/999999").write_bytes(b"stale")
    (live.data / "backup_label.old").touch()
    (live.data / "recovery.signal").touch()
    (live.etc / "site.conf").write_text("work_mem = '6MB'\n")
    key = owner_and_mode(live.key)
    gone = ("postgresql.conf", "keepers", "start.conf", "environment")
    for path in (live.key, live.certificate, *(live.etc / name for name in gone)):
        path.unlink()
    (live.etc / "conf.d").rmdir()
    try:
        taken.restored(None, original=True)
        assert {path.name for path in live.wal.iterdir() if path.is_file()} == {
            path.name for path in (taken.plain / "wal").iterdir() if path.is_file()
        }
        assert not (live.wal / "archive_status" / f"{newer}.ready").exists()
        for root, restored in ((live.data, "data"), *self_named(taken)):
            below = ("base/*/*", "global/*", "*.signal", "backup_label*", "PG_*/*/*")
            assert names_in(root, *below) == names_in(taken.plain / restored, *below)
    finally:
        live.start()
    taken.require_state(live.dsn(options=PATIENT))
    amcheck(live, live.dsn(), "postgres", "elsewhere", "born")
    assert live.do("SHOW work_mem") == [("5MB",)]
    assert live.do("SHOW ssl") == [("on",)]
    assert owner_and_mode(live.key) == key
    assert live.certificate.with_name("key.pem").is_symlink()
    assert (live.etc / "start.conf").read_text() == "auto\n"
    assert (live.etc / "environment").exists()


def self_named(taken: Taken) -> Iterator[tuple[Path, str]]:
    """The tablespaces' directories, and their names in the set."""
    for name, path in taken.made.trees:
        if name.startswith(b"tblspc/"):
            yield Path(os.fsdecode(path)), os.fsdecode(name)


def test_an_in_place_restore_that_is_cut_off_leaves_no_cluster_that_starts(live: Whole) -> None:
    """Half old and half restored: with the old pg_control, whose checkpoint is in a segment that
    the set holds too, it would start, and be corrupt."""
    loaded = configured(live.lab, table(live), mode="freeze")
    live.stop()
    live.start("-c archive_mode=off")  # else the server begins a segment when it stops
    live.do("SELECT pg_switch_wal()")
    made, _ = backed_up(loaded, lambda: None)
    live.do("UPDATE kept SET note = 'newer' WHERE id = 1")
    live.stop()

    def restored(progress: Progress = silent) -> None:
        with Catalog.open(loaded.catalog_path) as catalog:
            restore(
                loaded.open_supply(), catalog, made.set_id, (), None,
                original=True, database=loaded.open_database(), progress=progress,
            )  # fmt: skip

    def cut_off(done: int, total: int) -> None:
        if done > total // 4:
            raise InterruptedError

    try:
        with pytest.raises(InterruptedError):
            restored(cut_off)
        assert not (live.data / "global/pg_control").exists()
        with pytest.raises(ProgramFailed):
            live.start()
    finally:
        restored()
        live.start()
    assert live.do("SELECT count(*) FROM kept WHERE note = 'newer'") == [(0,)]


# --- who may back up, and what must not happen meanwhile


def test_a_role_with_just_the_granted_functions_makes_a_hot_backup(live: Whole) -> None:
    loaded = configured(live.lab, table(live, user="keeper"), mode="hot")
    made, _ = backed_up(loaded, lambda: None)
    assert made.complete
    assert live.do("SELECT count(*) FROM pg_replication_slots") == [(0,)]


@pytest.mark.parametrize("mode", ["hot", "freeze"])
@pytest.mark.parametrize("dropped", [False, True], ids=["kept", "dropped"])
def test_a_tablespace_made_within_the_hold_voids_the_backup_even_when_it_is_dropped_again(
    live: Whole, mode: str, dropped: bool
) -> None:
    """Its making is in the WAL with its path on this host: a copy would make it there again. A
    superuser's session keeps it from happening; this role cannot."""
    place = live.lab.mountpoint("data") / "late"
    place.mkdir()
    shutil.chown(place, "postgres", "postgres")
    loaded = configured(live.lab, table(live, user="keeper"), mode=mode)

    def within() -> None:
        live.do(f"CREATE TABLESPACE late LOCATION '{place}'")
        if dropped:
            live.do("DROP TABLESPACE late")

    try:
        with pytest.raises(HoldBroken, match="tablespace"):
            backed_up(loaded, within)
    finally:
        live.do("DROP TABLESPACE IF EXISTS late")
        place.rmdir()


def test_wal_that_max_slot_wal_keep_size_gave_up_voids_the_backup(live: Whole) -> None:
    live.do("ALTER SYSTEM SET max_slot_wal_keep_size = '8MB'", "SELECT pg_reload_conf()",
            "CHECKPOINT")  # fmt: skip
    loaded = configured(live.lab, table(live), mode="hot")

    def within() -> None:
        for _ in range(16):
            live.do("CREATE TABLE filling AS SELECT 1", "DROP TABLE filling",
                    "SELECT pg_switch_wal()")  # fmt: skip
        live.do("CHECKPOINT")

    try:
        with pytest.raises(HoldBroken):
            backed_up(loaded, within)
    finally:
        live.do("ALTER SYSTEM RESET max_slot_wal_keep_size", "SELECT pg_reload_conf()")
    assert live.do("SELECT count(*) FROM pg_replication_slots") == [(0,)]


@pytest.mark.skipif(programs.find("pgbouncer") is None, reason="pgbouncer is not installed")
def test_a_backup_through_a_pooler_is_refused(live: Whole) -> None:
    home = live.lab.base / "pooler"
    home.mkdir()
    shutil.chown(home, "postgres", "postgres")
    ini = home / "pgbouncer.ini"
    ini.write_text(
        f"[databases]\n* = host={live.sockets} user=postgres\n"
        f"[pgbouncer]\nlisten_port=6432\nunix_socket_dir={home}\nauth_type=any\n"
        f"pool_mode=session\nlogfile={home}/log\npidfile={home}/pid\n"
    )
    pooler = programs.start(["pgbouncer", str(ini)], log=home / "out", user="postgres")
    try:
        until_s = time.monotonic() + 10
        while not (home / ".s.PGSQL.6432").exists():
            assert time.monotonic() < until_s and pooler.poll() is None
        loaded = configured(live.lab, table(live, host=str(home), port="6432"))
        with pytest.raises(DatabaseUnsuitable, match="pgbouncer"):
            backup(loaded)
    finally:
        pooler.terminate()
        pooler.wait(10)
