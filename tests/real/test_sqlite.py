"""SQLite held by its own process: real locks, real writers, real kills."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitmirror.databases.sqlite import Settings, Sqlite, open_database
from splitmirror.errors import (
    ConfigError,
    DatabaseUnreachable,
    DatabaseUnsuitable,
    DeadlineExceeded,
    HoldBroken,
)
from splitmirror.model import Mode
from splitmirror.system import process

pytestmark = pytest.mark.real


def make(path: Path, journal: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal}")
        connection.execute("CREATE TABLE rows (x)")
        connection.commit()
    return path


def driver(*paths: Path) -> Sqlite:
    return open_database(Settings(paths=[str(path) for path in paths]))


def refused(path: Path) -> bool:
    """Whether another process's writer is refused. A process of its own: SQLite, too, loses locks
    when one process opens a file twice without it knowing."""
    script = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)\n"
        "connection.execute('BEGIN IMMEDIATE')\n"
        "connection.execute('INSERT INTO rows VALUES (1)')\n"
        "connection.execute('COMMIT')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
    assert done.returncode == 0 or "database is locked" in done.stderr, done.stderr
    return done.returncode != 0


def look_into(path: Path) -> None:
    """Open, map and close every file of the database, as mapping its extents does and worse."""
    for file in path.parent.iterdir():
        if file.stat().st_size:
            with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as m:
                assert m[:1]


@pytest.mark.parametrize("journal", ["wal", "delete", "persist"])
def test_a_second_writer_is_refused_while_the_files_are_opened_and_mapped(
    tmp_path: Path, journal: str
) -> None:
    path = make(tmp_path / "db" / "app.db", journal)
    with driver(path).quiesce(Mode.FREEZE, 10) as hold:
        look_into(path)
        assert refused(path)
        assert hold.blocked_writers_since_s is not None
        hold.confirm(tmp_path)
        assert refused(path), "the confirmation let go"
    assert not refused(path)


def test_the_lock_would_be_lost_in_a_process_that_opens_the_file(tmp_path: Path) -> None:
    """The reason for the process of its own: without it, the test above fails."""
    path = make(tmp_path / "db" / "app.db", "delete")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert refused(path)
        look_into(path)
        assert not refused(path)


def test_hot_mode_lets_writers_commit_and_keeps_the_wal(tmp_path: Path) -> None:
    path = make(tmp_path / "db" / "app.db", "wal")
    with driver(path).quiesce(Mode.HOT, 10) as hold:
        assert not refused(path)
        assert not refused(path)
        assert hold.blocked_writers_since_s is None
        names = [root.name for root in driver(path).layout().roots]
        assert names == [b"db/app.db", b"db/app.db-wal"]
        hold.confirm(tmp_path)


@contextlib.contextmanager
def holder_process(path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    script = (
        "import sys, time\n"
        "from splitmirror.databases.sqlite import Settings, open_database\n"
        "from splitmirror.model import Mode\n"
        "driver = open_database(Settings(paths=[sys.argv[1]]))\n"
        "with driver.quiesce(Mode.FREEZE, 10) as hold:\n"
        "    print(hold.sessions[0].pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    argv = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            yield parent, int(parent.stdout.readline())
        finally:
            parent.kill()


def test_kill_9_of_the_backup_lets_go(tmp_path: Path) -> None:
    path = make(tmp_path / "db" / "app.db", "wal")
    with holder_process(path) as (parent, pid):
        ticks = process.start_ticks(pid)
        assert ticks is not None and refused(path)
        os.kill(parent.pid, signal.SIGKILL)
        assert process.wait_gone(pid, ticks, 10)
    assert not refused(path)


def test_a_stopped_backup_is_ended_through_its_session(tmp_path: Path) -> None:
    path = make(tmp_path / "db" / "app.db", "delete")
    with holder_process(path) as (parent, pid):
        os.kill(parent.pid, signal.SIGSTOP)
        ticks = process.start_ticks(pid)
        assert ticks is not None and refused(path)
        os.kill(pid, signal.SIGKILL)
        assert process.wait_gone(pid, ticks, 10)
        assert not refused(path)


def test_a_hold_whose_process_was_killed_is_broken(tmp_path: Path) -> None:
    path = make(tmp_path / "db" / "app.db", "wal")
    with driver(path).quiesce(Mode.HOT, 10) as hold:
        (session,) = hold.sessions
        process.end(session)
        with pytest.raises(HoldBroken):
            hold.confirm(tmp_path)


@pytest.mark.parametrize("mode", Mode)
def test_a_database_that_was_replaced_breaks_the_hold(tmp_path: Path, mode: Mode) -> None:
    path = make(tmp_path / "db" / "app.db", "wal")
    other = make(tmp_path / "other" / "app.db", "wal")
    with driver(path).quiesce(mode, 10) as hold:
        for ending in ("", "-shm"):
            other.with_name(other.name + ending).touch()
            os.replace(f"{other}{ending}", f"{path}{ending}")
        with pytest.raises(HoldBroken, match="replaced"):
            hold.confirm(tmp_path)


def test_a_writer_that_does_not_end_is_waited_for_until_the_deadline(tmp_path: Path) -> None:
    path, other = (make(tmp_path / name / "app.db", "delete") for name in ("one", "two"))
    with contextlib.closing(sqlite3.connect(other, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        began_s = time.monotonic()
        held = driver(path, other).quiesce(Mode.FREEZE, 1.0)
        with pytest.raises(DeadlineExceeded, match=r"two/app\.db"), held:
            raise AssertionError("it was held")
        assert 0.9 < time.monotonic() - began_s < 5
    assert not refused(path)
    assert not refused(other)


def test_a_rollback_journal_is_refused_for_hot_mode(tmp_path: Path) -> None:
    path = make(tmp_path / "db" / "app.db", "delete")
    (finding,) = driver(path).preflight(Mode.HOT)
    assert isinstance(finding.problem, DatabaseUnsuitable) and not finding.warning
    assert [each.problem for each in driver(path).preflight(Mode.FREEZE)] == [None]


def test_several_files_in_hot_mode_bring_a_warning(tmp_path: Path) -> None:
    paths = [make(tmp_path / name / "app.db", "wal") for name in ("one", "two")]
    warnings = [each for each in driver(*paths).preflight(Mode.HOT) if each.problem]
    assert [each.warning for each in warnings] == [True]


def test_what_is_no_database_is_told_from_what_is_missing(tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_text("not a database, but long enough to have a header" * 4)
    findings = driver(text, tmp_path / "gone.db").preflight(Mode.FREEZE)
    assert [type(each.problem) for each in findings] == [DatabaseUnsuitable, DatabaseUnreachable]


def test_looking_changes_nothing_beside_the_database(tmp_path: Path) -> None:
    path = make(tmp_path / "db" / "app.db", "wal")
    before = {file.name: file.stat().st_mtime_ns for file in path.parent.iterdir()}
    driver(path).preflight(Mode.HOT)
    assert {file.name: file.stat().st_mtime_ns for file in path.parent.iterdir()} == before


def test_equal_names_are_told_apart_and_shared_memory_is_never_in_the_set(tmp_path: Path) -> None:
    paths = [make(tmp_path / name / "app.db", "wal") for name in ("one", "two")]
    with driver(*paths).quiesce(Mode.HOT, 10):
        names = [root.name for root in driver(*paths).layout().roots]
        assert (tmp_path / "one" / "app.db-shm").exists()
    assert names == [b"db/app.db", b"db/app.db-wal", b"db/app.db~2", b"db/app.db~2-wal"]


def test_stale_siblings_go_when_a_database_is_restored_over_another(tmp_path: Path) -> None:
    path = make(tmp_path / "db" / "app.db", "delete")
    for ending in ("-wal", "-shm", "-journal"):
        path.with_name(path.name + ending).write_text("of the older database")
    driver(path).make_ready({b"db/app.db": path}, {})
    assert [file.name for file in path.parent.iterdir()] == ["app.db"]


def test_the_wal_of_the_set_stays_beside_its_database(tmp_path: Path) -> None:
    path = make(tmp_path / "db" / "app.db", "wal")
    wal = path.with_name("app.db-wal")
    wal.write_text("of the set")
    driver(path).make_ready({b"db/app.db": path, b"db/app.db-wal": wal}, {})
    assert wal.exists()


def test_no_path_and_a_relative_path_are_refused() -> None:
    for paths in ([], ["app.db"]):
        with pytest.raises(ConfigError):
            open_database(Settings(paths=paths))
