"""PostgreSQL held and copied: a real server, real sessions, real kills."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from splitmirror.databases import RunningCopy, _pg_preflight, _pg_server, _pg_session
from splitmirror.databases.postgresql import Postgresql, Settings, open_database
from splitmirror.errors import (
    Busy,
    CopyFailed,
    DatabaseError,
    DatabaseRefused,
    DatabaseUnreachable,
    DatabaseUnsuitable,
    DeadlineExceeded,
    HoldBroken,
    SplitmirrorError,
)
from splitmirror.model import Mode
from splitmirror.system import process, programs
from splitmirror.testing.clusters import Cluster, cluster
from splitmirror.testing.databases import add_redo, copy_members

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def live() -> Iterator[Cluster]:
    """With a tablespace, pg_wal on its own, and the configuration elsewhere, as on Debian."""
    with cluster(own_wal=True, outside=True) as found:
        space = found.directory("space")
        with psycopg.connect(found.dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE TABLESPACE space LOCATION '{space}'")
            connection.execute("CREATE TABLE spaced (x text) TABLESPACE space")
            connection.execute("INSERT INTO spaced VALUES ('original')")
            connection.execute("CREATE TABLE numbers (number int PRIMARY KEY, filler text)")
            connection.execute("CREATE ROLE nobody LOGIN")
            connection.execute("CREATE DATABASE closed ALLOW_CONNECTIONS false")
            connection.execute("CREATE DATABASE guarded")
            connection.execute("REVOKE CONNECT ON DATABASE guarded FROM public")
        yield found


def driver(live: Cluster, mode: Mode = Mode.HOT) -> Postgresql:
    found = open_database(Settings(dsn=live.dsn()))
    problems = [each for each in found.preflight(mode) if each.problem and not each.warning]
    assert not problems
    return found


def problem(dsn: str, mode: Mode = Mode.HOT, os_user: str = "") -> SplitmirrorError:
    """What preflight finds; exactly one thing is wrong."""
    findings = open_database(Settings(dsn=dsn, os_user=os_user)).preflight(mode)
    (found,) = [each.problem for each in findings if each.problem and not each.warning]
    assert found.hint
    return found


def ask(dsn: str, query: str) -> Any:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(query).fetchone()
        assert row is not None
        return row[0]


def directory(path: Path) -> Path:
    path.mkdir()
    return path


def taken(live: Cluster, tmp_path: Path, mode: Mode = Mode.HOT) -> dict[bytes, Path]:
    database = driver(live, mode)
    target = directory(tmp_path / "target")
    with database.quiesce(mode, 30) as hold:
        roots = copy_members(database.layout(), target)
        redo = hold.confirm(directory(tmp_path / "redo"))
    add_redo(redo, target)
    return roots


@contextlib.contextmanager
def copy_of(live: Cluster, roots: dict[bytes, Path], tmp_path: Path) -> Iterator[RunningCopy]:
    database = driver(live)
    hide = [Path(os.fsdecode(root.path)) for root in database.layout().roots]
    scratch = directory(tmp_path / "scratch")
    with database.start_copy(roots, database.facts(), hide, scratch) as copy:
        yield copy


# --- held


class Writer(threading.Thread):
    """Commits numbered rows and knows the last one that was acknowledged."""

    def __init__(self, dsn: str) -> None:
        super().__init__(daemon=True)
        self._dsn = dsn
        self.acknowledged = 0
        self.stop = threading.Event()

    def run(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute("TRUNCATE numbers")
            while not self.stop.is_set():
                number = self.acknowledged + 1
                connection.execute("INSERT INTO numbers VALUES (%s, repeat('x', 2000))", [number])
                self.acknowledged = number

    def wait_for(self, number: int) -> None:
        until = time.monotonic() + 30
        while self.acknowledged < number:
            assert time.monotonic() < until and self.is_alive()
            time.sleep(0.01)


def test_a_copy_taken_in_hot_mode_under_a_writer_has_all_that_was_acknowledged(
    live: Cluster, tmp_path: Path
) -> None:
    """cp takes each file at another time: only the WAL of the window makes the copy whole."""
    writer = Writer(live.dsn())
    writer.start()
    writer.wait_for(100)
    database = driver(live)
    target = directory(tmp_path / "target")
    with database.quiesce(Mode.HOT, 30) as hold:
        roots = copy_members(database.layout(), target)
        writer.wait_for(writer.acknowledged + 100)
        acknowledged = writer.acknowledged
        redo = hold.confirm(directory(tmp_path / "redo"))
    writer.stop.set()
    writer.join(10)
    names = {file.name for file in redo}
    assert {b"data/backup_label", b"data/tablespace_map"} <= names
    assert any(name.startswith(b"wal/0000") for name in names)
    add_redo(redo, target)
    with copy_of(live, roots, tmp_path) as copy:
        query = "SELECT array[count(*), max(number)] FROM numbers"
        count, last = ask(copy.dsn, query)
        assert count == last >= acknowledged
        assert copy.check().passed


def test_without_its_wal_a_hot_copy_does_not_start_and_the_error_shows_the_log(
    live: Cluster, tmp_path: Path
) -> None:
    roots = taken(live, tmp_path)
    for segment in roots[b"wal"].glob("0000*"):
        segment.unlink()
    started = copy_of(live, roots, tmp_path)
    with pytest.raises(CopyFailed, match="could not locate required checkpoint record"), started:
        pass


def test_the_temporary_slot_is_there_while_held_and_gone_afterwards(
    live: Cluster, tmp_path: Path
) -> None:
    query = "SELECT count(*) FROM pg_replication_slots"
    with driver(live).quiesce(Mode.HOT, 30):
        assert ask(live.dsn(), query) == 1
    assert ask(live.dsn(), query) == 0


@pytest.mark.parametrize("mode", Mode)
def test_a_terminated_session_breaks_the_hold(live: Cluster, tmp_path: Path, mode: Mode) -> None:
    with driver(live, mode).quiesce(mode, 30) as hold:
        (session,) = hold.sessions
        ask(live.dsn(), f"SELECT pg_terminate_backend({session.pid}, 10000)")
        with pytest.raises(HoldBroken):
            hold.confirm(tmp_path)


@pytest.mark.parametrize("mode", Mode)
def test_nobody_makes_a_tablespace_while_held(live: Cluster, mode: Mode) -> None:
    """Recovery would make it again at its path on this host, which is the original's."""
    other = psycopg.connect(live.dsn(), autocommit=True)
    with driver(live, mode).quiesce(mode, 30), other as connection:
        connection.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            connection.execute(f"CREATE TABLESPACE late LOCATION '{live.home}/late'")


def test_kill_9_of_the_backup_ends_session_and_slot(live: Cluster) -> None:
    script = (
        "import sys, time\n"
        "from splitmirror.databases.postgresql import Settings, open_database\n"
        "from splitmirror.model import Mode\n"
        "database = open_database(Settings(dsn=sys.argv[1]))\n"
        "database.preflight(Mode.HOT)\n"
        "with database.quiesce(Mode.HOT, 30) as hold:\n"
        "    print(hold.sessions[0].pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    argv = [sys.executable, "-c", script, live.dsn()]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        ticks = process.start_ticks(pid)
        assert ticks is not None
        os.kill(parent.pid, signal.SIGKILL)
        assert process.wait_gone(pid, ticks, 10)
    assert ask(live.dsn(), "SELECT count(*) FROM pg_replication_slots") == 0


@contextlib.contextmanager
def in_a_pid_namespace_of_its_own() -> Iterator[Cluster]:
    """A server that calls itself process 1, as in a container."""
    with cluster(outside=True) as found:
        found.stop()
        argv = ["unshare", "--pid", "--fork", "setpriv", "--reuid=postgres"]
        argv += ["--regid=postgres", "--clear-groups", str(found.bin_dir / "postgres")]
        argv += ["-D", str(found.data), "-c", f"config_file={found.config_file}"]
        wrapper = programs.start(argv, log=found.log)
        try:
            until = time.monotonic() + 10
            while not _lets_in(found):
                assert time.monotonic() < until, found.log.read_text()
            assert (found.data / "postmaster.pid").read_text().startswith("1\n")
            yield found
        finally:
            children = Path(f"/proc/{wrapper.pid}/task/{wrapper.pid}/children")
            for pid in children.read_text().split():
                os.kill(int(pid), signal.SIGINT)  # pg_ctl would believe postmaster.pid
            wrapper.wait(30)


@pytest.mark.parametrize("mode", Mode)
def test_the_session_of_a_server_in_a_container_is_known_by_its_number_here(
    mode: Mode, tmp_path: Path
) -> None:
    """What the server calls it may be any process of this host; that one is never ended."""
    with in_a_pid_namespace_of_its_own() as found:
        with driver(found, mode).quiesce(mode, 30) as hold:
            (session,) = hold.sessions
            query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'splitmirror'"
            assert session.pid != ask(found.dsn(), query)
            assert Path(f"/proc/{session.pid}/comm").read_text() == "postgres\n"
            hold.confirm(tmp_path)
        assert not process.alive(session.pid, session.start_ticks)
        with driver(found, mode).quiesce(mode, 30) as hold:
            process.end(hold.sessions[0])  # as the guard would
            assert process.wait_gone(hold.sessions[0].pid, hold.sessions[0].start_ticks, 10)
            with pytest.raises(HoldBroken):
                hold.confirm(tmp_path)


def test_a_server_that_cannot_be_shown_to_be_the_one_of_the_data_directory_is_refused(
    live: Cluster, tmp_path: Path
) -> None:
    with _pg_session.connect(live.dsn()) as connection:
        session = _pg_server.processes_of(connection, live.data).session
        assert session.pid == connection.info.backend_pid
        with pytest.raises(DatabaseUnsuitable, match="no server runs"):
            _pg_server.processes_of(connection, tmp_path)
        with pytest.raises(DatabaseUnsuitable, match="not the one behind"):
            _pg_server._processes(live.data, None, os.getpid())


def test_a_quiesce_that_waits_is_cancelled_at_the_deadline(live: Cluster) -> None:
    database = driver(live)
    with psycopg.connect(live.dsn()) as connection:
        connection.execute("LOCK TABLE pg_tablespace IN ROW EXCLUSIVE MODE")
        began_s = time.monotonic()
        with pytest.raises(DeadlineExceeded), database.quiesce(Mode.HOT, 0.5):
            raise AssertionError("it was held")
        assert 0.4 < time.monotonic() - began_s < 5
    with database.quiesce(Mode.HOT, 30):
        pass


def test_no_query_is_made_between_the_checkpoint_and_the_confirmation(
    live: Cluster, tmp_path: Path
) -> None:
    """Shown by stopping the server: whoever asked it anything would hang."""
    database = driver(live, Mode.FREEZE)
    with database.quiesce(Mode.FREEZE, 30) as hold:
        (session,) = hold.sessions
        server = _pg_server.running_in(live.data)
        assert server is not None
        try:
            for pid in (server.pid, session.pid):
                os.kill(pid, signal.SIGSTOP)
            assert database.layout().roots
            assert hold.confirm(tmp_path) == ()
        finally:
            for pid in (server.pid, session.pid):
                os.kill(pid, signal.SIGCONT)


# --- found beforehand


def test_a_server_that_is_not_there_and_a_bad_dsn_are_unreachable(
    live: Cluster, tmp_path: Path
) -> None:
    for dsn in (live.dsn(host=str(tmp_path)), "host", live.dsn(dbname="none")):
        assert isinstance(problem(dsn), DatabaseUnreachable)


@pytest.mark.parametrize("mode", Mode)
def test_a_role_without_rights_is_told_the_statements_that_give_them(
    live: Cluster, tmp_path: Path, mode: Mode
) -> None:
    found = problem(live.dsn(user="nobody"), mode)
    assert isinstance(found, DatabaseRefused)
    for statement in found.hint.replace(";", ";\n").splitlines():
        with psycopg.connect(live.dsn(), autocommit=True) as connection:
            connection.execute(statement)
    database = open_database(Settings(dsn=live.dsn(user="nobody")))
    assert [each for each in database.preflight(mode) if each.problem and not each.warning] == []
    with database.quiesce(mode, 30) as hold:
        hold.confirm(tmp_path)


@contextlib.contextmanager
def authenticated(live: Cluster, line: str) -> Iterator[None]:
    """The server's pg_hba.conf is this line, and it goes by it."""
    hba = live.home / "etc" / "pg_hba.conf"
    before = hba.read_text()

    def reloaded(text: str, *, lets_in: bool) -> None:
        hba.write_text(text)
        argv = [str(live.bin_dir / "pg_ctl"), "-D", str(live.data), "reload"]
        programs.run(argv, timeout_s=10, user="postgres")
        until = time.monotonic() + 10
        while _lets_in(live) != lets_in:
            assert time.monotonic() < until

    try:
        reloaded(line + "\n", lets_in=False)
        yield
    finally:
        reloaded(before, lets_in=True)


def _lets_in(live: Cluster) -> bool:
    try:
        psycopg.connect(live.dsn()).close()
    except psycopg.OperationalError:
        return False
    return True


def test_peer_authentication_works_for_root_through_os_user(live: Cluster) -> None:
    with authenticated(live, "local all all peer"):
        found = problem(live.dsn())
        assert isinstance(found, DatabaseUnreachable)
        assert 'os_user = "postgres"' in found.hint
        database = open_database(Settings(dsn=live.dsn(), os_user="postgres"))
        assert not any(each.problem for each in database.preflight(Mode.HOT))
        assert os.geteuid() == 0


@pytest.mark.parametrize(
    ("wrong", "line", "advice"),
    [
        ({"host": "/nowhere"}, "", "down, or it listens elsewhere"),
        ({"host": "127.0.0.1", "port": "1"}, "", "down, or it listens elsewhere"),
        ({"dbname": "none"}, "", "dbname"),
        ({"user": "stranger"}, "", "`user`"),
        ({"user": "pg_monitor"}, "", "`user`"),
        ({"dbname": "closed"}, "", "dbname"),
        ({"dbname": "guarded", "user": "nobody"}, "", "GRANT CONNECT"),
        ({}, "local all all scram-sha-256", "passfile"),
        ({"password": "wrong"}, "local all all scram-sha-256", "passfile"),
        ({}, "local all stranger trust", "line for it to pg_hba.conf"),
    ],
    ids=str,
)
def test_each_refusal_of_a_connection_has_its_own_advice(
    live: Cluster, wrong: dict[str, str], line: str, advice: str
) -> None:
    with authenticated(live, line) if line else contextlib.nullcontext():
        found = problem(live.dsn(**wrong))
    assert isinstance(found, DatabaseUnreachable)
    assert advice in found.hint


@pytest.mark.parametrize("dsn", ["host", "hosst=/tmp", "postgresql://[", "service=none"])
def test_a_dsn_that_is_none_is_told_from_a_server_that_is_down(dsn: str) -> None:
    assert "`dsn` is not" in problem(dsn).hint


@pytest.mark.parametrize(
    "settings",
    [{"wal_level": "minimal", "max_wal_senders": "0"}, {"max_replication_slots": "0"}],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_that_rule_hot_mode_out_leave_freeze_mode(settings: dict[str, str]) -> None:
    with cluster(settings) as found:
        assert isinstance(problem(found.dsn()), DatabaseUnsuitable)
        with driver(found, Mode.FREEZE).quiesce(Mode.FREEZE, 30):
            pass


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({"max_slot_wal_keep_size": "100MB", "max_wal_size": "128MB"}, True),
        ({"max_slot_wal_keep_size": "0", "max_wal_size": "128MB"}, True),
        ({"max_slot_wal_keep_size": "100MB", "max_wal_size": "32MB"}, True),  # 8 segments of 16
        ({"max_slot_wal_keep_size": "128MB", "max_wal_size": "128MB"}, False),
        ({"max_slot_wal_keep_size": "-1", "max_wal_size": "128MB"}, False),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_a_slot_that_may_lose_wal_in_the_window_is_a_warning_in_hot_mode(
    live: Cluster, settings: dict[str, str], warned: bool
) -> None:
    with psycopg.connect(live.dsn(), autocommit=True) as connection:
        for name, value in settings.items():
            connection.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        connection.execute("SELECT pg_reload_conf()")
    try:
        until = time.monotonic() + 10
        while {name: ask(live.dsn(), f"SHOW {name}") for name in settings} != settings:
            assert time.monotonic() < until
        found = {mode: open_database(Settings(dsn=live.dsn())).preflight(mode) for mode in Mode}
    finally:
        with psycopg.connect(live.dsn(), autocommit=True) as connection:
            for name in settings:
                connection.execute(f"ALTER SYSTEM RESET {name}")
            connection.execute("SELECT pg_reload_conf()")
    named = [each for each in found[Mode.HOT] if each.what == "max_slot_wal_keep_size"]
    assert [each.warning for each in named] == [True] * warned
    assert all("max_wal_size" in each.problem.hint for each in named if each.problem)
    assert not any(each.what == "max_slot_wal_keep_size" for each in found[Mode.FREEZE])
    assert not any(each.problem and not each.warning for each in found[Mode.HOT])


@pytest.mark.skipif(programs.find("pgbouncer") is None, reason="pgbouncer is not installed")
def test_a_pooler_is_refused_by_its_name(live: Cluster, tmp_path: Path) -> None:
    home = live.directory("pooler")
    config = home / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n* = host={live.home} user=postgres\n"
        f"[pgbouncer]\nlisten_port=6432\nunix_socket_dir={home}\nauth_type=any\n"
        f"pool_mode=transaction\nlogfile={home}/log\npidfile={home}/pid\n"
    )
    pooler = programs.start(["pgbouncer", str(config)], log=tmp_path / "log", user="postgres")
    try:
        until = time.monotonic() + 10
        while not (home / ".s.PGSQL.6432").exists():
            assert time.monotonic() < until and pooler.poll() is None
        found = problem(live.dsn(host=str(home), port="6432"))
        assert isinstance(found, DatabaseUnsuitable) and found.facts["pooler"] == "pgbouncer"
    finally:
        pooler.terminate()
        pooler.wait(10)


def test_a_standby_is_refused_for_hot_mode_only(tmp_path: Path) -> None:
    with cluster() as primary:
        with _pg_session.connect(primary.dsn()) as connection:
            server = _pg_server.ask(connection)
        standby = replace(server, in_recovery=True)
        hot, freeze = (
            list(_pg_preflight.settings(standby, mode)) for mode in (Mode.HOT, Mode.FREEZE)
        )
    assert [type(each.problem) for each in hot if not each.warning] == [DatabaseUnsuitable]
    assert all(each.warning for each in freeze)


def test_files_are_called_by_their_tables(live: Cluster) -> None:
    path = ask(live.dsn(), "SELECT pg_relation_filepath('numbers')")
    space = str(ask(live.dsn(), "SELECT pg_relation_filepath('spaced')"))
    names = [f"data/{path}_fsm".encode(), space.replace("pg_tblspc", "tblspc").encode()]
    titles = driver(live).titles([*names, b"data/global/1262", b"data/base/5/1"])
    assert list(titles.values()) == [
        "postgres.public.numbers",
        "postgres.public.spaced",
        "pg_catalog.pg_database",
    ]


# --- copies


def digests(path: Path) -> dict[str, str]:
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def test_a_started_copy_writes_to_itself_and_neither_sees_nor_touches_the_original(
    live: Cluster, tmp_path: Path
) -> None:
    roots = taken(live, tmp_path)
    facts = driver(live).facts()
    ask(live.dsn(), "SELECT 1 FROM pg_switch_wal()")
    with psycopg.connect(live.dsn(), autocommit=True) as connection:
        connection.execute("CHECKPOINT")
    before = digests(live.home / "space") | digests(live.home / "etc")
    with copy_of(live, roots, tmp_path) as copy:
        with psycopg.connect(copy.dsn, autocommit=True) as connection:
            connection.execute("UPDATE spaced SET x = 'copy'")
            connection.execute("CHECKPOINT")
        settings = "current_setting('config_file'), current_setting('data_directory')"
        assert str(live.home) not in str(ask(copy.dsn, f"SELECT array[{settings}]"))
        assert ask(copy.dsn, "SELECT current_setting('listen_addresses')") == ""
        assert ask(copy.dsn, "SELECT current_setting('archive_mode')") == "off"
        for hidden in (facts["data_directory"], facts["wal_directory"], f"{live.home}/space"):
            assert ask(copy.dsn, f"SELECT count(*) FROM pg_ls_dir('{hidden}')") == 0
        assert ask(copy.dsn, f"SELECT pg_read_file('{facts['config_file']}')") == ""
        server = _pg_server.running_in(roots[b"data"])
        assert server is not None
        assert Path(f"/proc/{server.pid}").stat().st_uid not in (0, live.data.stat().st_uid)
    assert digests(live.home / "space") | digests(live.home / "etc") == before
    assert ask(live.dsn(), "SELECT x FROM spaced") == "original"
    assert not process.alive(server.pid, server.start_ticks)


def test_a_damaged_table_of_a_copy_that_starts_is_named(live: Cluster, tmp_path: Path) -> None:
    roots = taken(live, tmp_path, Mode.FREEZE)
    path = str(ask(live.dsn(), "SELECT pg_relation_filepath('spaced')"))
    damaged = roots[path.encode().split(b"/PG_")[0].replace(b"pg_tblspc", b"tblspc")]
    with (damaged / path.split("/", 2)[2]).open("r+b") as file:
        file.seek(8000)
        file.write(b"\x55" * 100)
    with copy_of(live, roots, tmp_path) as copy:
        report = copy.check()
    assert not report.passed
    assert "spaced" in " ".join(report.problems)


def test_alter_system_of_the_original_has_no_power_over_the_copy(
    live: Cluster, tmp_path: Path
) -> None:
    roots = taken(live, tmp_path)
    (roots[b"data"] / "postgresql.auto.conf").write_text(
        "shared_preload_libraries = 'none'\narchive_mode = 'on'\nlisten_addresses = '*'\n"
    )
    with copy_of(live, roots, tmp_path) as copy:
        assert ask(copy.dsn, "SELECT current_setting('listen_addresses')") == ""


def test_a_set_without_a_tablespace_is_not_made_ready(live: Cluster, tmp_path: Path) -> None:
    roots = taken(live, tmp_path)
    (space,) = [name for name in roots if name.startswith(b"tblspc/")]
    shutil.rmtree(roots.pop(space))
    database = driver(live)
    with pytest.raises(DatabaseError, match="tablespace"):
        database.make_ready(roots, database.facts())


def test_make_ready_leaves_no_path_that_leads_to_the_original(
    live: Cluster, tmp_path: Path
) -> None:
    roots = taken(live, tmp_path)
    data = roots[b"data"]
    (data / "standby.signal").touch()
    (data / "postmaster.pid").write_text("1\n")
    data.chmod(0o755)
    driver(live).make_ready(roots, driver(live).facts())
    links = [path.readlink() for path in [data / "pg_wal", *(data / "pg_tblspc").iterdir()]]
    assert all(link.is_relative_to(tmp_path) for link in links) and len(links) == 2
    assert str(tmp_path) in (data / "tablespace_map").read_text()
    assert str(live.home) not in (data / "tablespace_map").read_text()
    assert not (data / "standby.signal").exists() and not (data / "postmaster.pid").exists()
    assert data.stat().st_mode & 0o777 == 0o700


def test_a_directory_in_which_a_server_runs_is_not_made_ready(live: Cluster) -> None:
    with pytest.raises(Busy):
        driver(live).make_ready({b"data": live.data}, {})
    assert (live.data / "postmaster.pid").exists()
