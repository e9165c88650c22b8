"""Every database driver against the contract; the contract against drivers broken on purpose."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from splitmirror.databases import (
    CopyReport,
    Database,
    Layout,
    NoHold,
    RedoFile,
    Root,
    RunningCopy,
    none,
    postgresql,
    sqlite,
)
from splitmirror.drivers import drivers
from splitmirror.errors import DatabaseUnreachable
from splitmirror.model import Finding, Mode, Session
from splitmirror.system import process
from splitmirror.testing.clusters import Cluster, cluster
from splitmirror.testing.databases import CLAIMS, Bench, Claim, Roots


class Room:
    """Scratch directories for a bench."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._numbers = itertools.count()

    def scratch(self) -> Path:
        path = self.directory / f"scratch-{next(self._numbers)}"
        path.mkdir()
        return path


class FilesBench(Room):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.tree = directory / "files"
        self.tree.mkdir(exist_ok=True)

    def database(self) -> Database:
        return none.open_database(none.Settings(paths=[str(self.tree)]))

    def absent(self) -> Database:
        return none.open_database(none.Settings(paths=[str(self.directory / "absent")]))

    def commit(self) -> None:
        (self.tree / str(self.committed())).touch(exist_ok=False)

    def committed(self) -> int:
        return len(list(self.tree.iterdir()))

    def rows(self, copy: RunningCopy, roots: Roots) -> int:
        return len(list(roots[b"files"].iterdir()))

    def damage(self, roots: Roots) -> None:
        shutil.rmtree(roots[b"files"])


class SqliteBench(Room):
    """In WAL mode, where both modes are possible."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.path = directory / "app.db"
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            connection.execute("PRAGMA journal_mode = wal")
            connection.execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, x)")
            connection.execute("CREATE INDEX IF NOT EXISTS by_x ON rows (x)")
            fill = ((n, f"{n:0100d}") for n in range(200))
            connection.executemany("INSERT OR IGNORE INTO rows VALUES (?, ?)", fill)
            connection.commit()

    def database(self) -> Database:
        return sqlite.open_database(sqlite.Settings(paths=[str(self.path)]))

    def absent(self) -> Database:
        return sqlite.open_database(sqlite.Settings(paths=[str(self.directory / "absent.db")]))

    def commit(self) -> None:
        with contextlib.closing(sqlite3.connect(self.path, timeout=1)) as connection, connection:
            connection.execute("INSERT INTO rows (x) VALUES ('more')")

    def committed(self) -> int:
        return self._count(self.path)

    def rows(self, copy: RunningCopy, roots: Roots) -> int:
        return self._count(Path(copy.dsn))

    def damage(self, roots: Roots) -> None:
        with roots[b"db/app.db"].open("r+b") as file:
            file.seek(2 * 4096)
            file.write(b"\x55" * 8192)

    def _count(self, path: Path) -> int:
        with contextlib.closing(sqlite3.connect(path, timeout=1)) as connection:
            return int(connection.execute("SELECT count(*) FROM rows").fetchone()[0])


class PostgresqlBench(Room):
    def __init__(self, directory: Path, live: Cluster) -> None:
        super().__init__(directory)
        self._live = live
        with psycopg.connect(live.dsn()) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS rows (x text)")

    def database(self) -> Database:
        return postgresql.open_database(postgresql.Settings(dsn=self._live.dsn()))

    def absent(self) -> Database:
        dsn = self._live.dsn(host=str(self.directory))
        return postgresql.open_database(postgresql.Settings(dsn=dsn))

    def commit(self) -> None:
        with psycopg.connect(self._live.dsn()) as connection:
            connection.execute("SET lock_timeout = '1s'")
            connection.execute("INSERT INTO rows VALUES (repeat('x', 100))")

    def committed(self) -> int:
        return self._count(self._live.dsn())

    def rows(self, copy: RunningCopy, roots: Roots) -> int:
        return self._count(copy.dsn)

    def damage(self, roots: Roots) -> None:
        for path in (roots[b"data"] / "base").glob("*/1259"):  # pg_class of each database
            with path.open("r+b") as file:
                file.seek(512)
                file.write(b"\x55" * 4096)

    def _count(self, dsn: str) -> int:
        with psycopg.connect(dsn) as connection:
            row = connection.execute("SELECT count(*) FROM rows").fetchone()
            assert row is not None
            return int(row[0])


@pytest.fixture(scope="module")
def live() -> Iterator[Cluster]:
    with cluster() as found:
        yield found


BENCHES: dict[str, Callable[[Path], Bench]] = {"none": FilesBench, "sqlite": SqliteBench}
claims = pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)


@claims
@pytest.mark.parametrize("driver", BENCHES)
def test_the_driver_holds(driver: str, claim: Claim, tmp_path: Path) -> None:
    claim(BENCHES[driver](tmp_path))


@claims
@pytest.mark.real
def test_postgresql_holds(claim: Claim, tmp_path: Path, live: Cluster) -> None:
    claim(PostgresqlBench(tmp_path, live))


def test_every_driver_of_databases_is_held_to_the_contract() -> None:
    assert set(drivers("databases")) == {*BENCHES, "postgresql"}


# --- every claim has been seen to fail: against one of these, each broken in one way


class Broken:
    """The driver of a bench with one method taken over by the class below it."""

    def __init__(self, inner: Database) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class FindsItself(Broken):
    def preflight(self, mode: Mode) -> list[Finding]:
        return [Finding(what="it", problem=DatabaseUnreachable("always", hint="never"))]


class FindsNothing(Broken):
    def preflight(self, mode: Mode) -> list[Finding]:
        return []


class CountsInFacts(Broken):
    def facts(self) -> Mapping[str, Any]:
        return {"files": 3}


class NestsRoots(Broken):
    def layout(self) -> Layout:
        (root,) = self.inner.layout().roots
        return Layout(roots=(root, replace(root, name=root.name + b"/inner")))


class RootsByLink(Broken):
    def layout(self) -> Layout:
        (root,) = self.inner.layout().roots
        link = tempfile.mktemp(dir=os.path.dirname(os.fsdecode(root.path)))
        os.symlink(root.path, link)
        return Layout(roots=(Root(name=root.name, path=os.fsencode(link)),))


class OrdersBackwards(Broken):
    def layout(self) -> Layout:
        return replace(self.inner.layout(), order=lambda name: (-len(name), name))


class NamesStrangers(Broken):
    def titles(self, names: object) -> Mapping[bytes, str]:
        return {b"stranger": "a table"}


class NeverLetsGo(Broken):
    kept: list[object] = []  # noqa: RUF012 - alive until the test ends it

    @contextlib.contextmanager
    def quiesce(self, mode: Mode, deadline_s: float) -> Iterator[Any]:
        held = self.inner.quiesce(mode, deadline_s)
        self.kept.append(held)
        yield held.__enter__()


class SwallowsErrors(Broken):
    @contextlib.contextmanager
    def quiesce(self, mode: Mode, deadline_s: float) -> Iterator[Any]:
        with contextlib.suppress(Exception), self.inner.quiesce(mode, deadline_s) as hold:
            yield hold


class ConfirmsAnything(Broken):
    @contextlib.contextmanager
    def quiesce(self, mode: Mode, deadline_s: float) -> Iterator[Any]:
        with subprocess.Popen(["sleep", "60"]) as child:
            ticks = process.start_ticks(child.pid)
            assert ticks is not None
            one = Session(what="child", pid=child.pid, start_ticks=ticks, signal=signal.SIGKILL)
            yield NoHold(sessions=(one,))


class RedoFromElsewhere(Broken):
    @contextlib.contextmanager
    def quiesce(self, mode: Mode, deadline_s: float) -> Iterator[Any]:
        yield NoHold(redo=(RedoFile(name=b"files/log", copy=Path("/etc/hostname")),))


class LosesRows(Broken):
    def make_ready(self, roots: Roots, facts: Mapping[str, str]) -> None:
        for path in roots[b"files"].iterdir():
            path.unlink()


class StartsAnything(Broken):
    """Takes whatever it gets for a copy, and finds nothing wrong with it."""

    dsn = ""

    @contextlib.contextmanager
    def start_copy(self, *arguments: object) -> Iterator[Any]:
        yield self

    def check(self) -> CopyReport:
        return CopyReport(passed=True, checks=("a look",))


def broken(bench: type[FilesBench] | type[SqliteBench], kind: type[Broken]) -> Any:
    """A bench whose drivers, the one of the absent database too, are broken."""

    class BrokenBench(bench):  # type: ignore[misc, valid-type]
        def database(self) -> Any:
            return kind(super().database())

        def absent(self) -> Any:
            return kind(super().absent())

    return BrokenBench


FAULTS: dict[str, Callable[[Path], Bench]] = {
    "every_mode_that_is_offered_is_possible": broken(FilesBench, FindsItself),
    "a_mode_that_is_not_offered_is_found_to_be_a_problem": broken(FilesBench, FindsNothing),
    "a_database_that_is_not_there_is_a_finding_and_no_exception": broken(FilesBench, FindsNothing),
    "facts_are_text_for_the_record": broken(FilesBench, CountsInFacts),
    "roots_stand_beside_one_another": broken(FilesBench, NestsRoots),
    "roots_are_where_they_really_lie": broken(FilesBench, RootsByLink),
    "any_two_names_can_be_ordered_and_a_directory_comes_first": broken(FilesBench, OrdersBackwards),
    "titles_are_of_names_that_were_asked_for": broken(FilesBench, NamesStrangers),
    "a_hold_is_confirmed_and_then_let_go": broken(SqliteBench, NeverLetsGo),
    "an_error_inside_the_hold_lets_go_and_comes_out": broken(FilesBench, SwallowsErrors),
    "a_hold_whose_session_ends_is_broken": broken(FilesBench, ConfirmsAnything),
    "the_redo_log_is_of_the_set_and_lies_where_it_was_wanted": broken(
        FilesBench, RedoFromElsewhere
    ),
    "a_copy_taken_under_the_hold_is_whole": broken(FilesBench, LosesRows),
    "the_original_is_not_started_as_a_copy": broken(FilesBench, StartsAnything),
    "a_damaged_copy_is_found_out": broken(SqliteBench, StartsAnything),
}


@claims
def test_the_claim_fails_for_a_driver_that_breaks_it(claim: Claim, tmp_path: Path) -> None:
    bench = FAULTS[claim.__name__](tmp_path)
    try:
        with pytest.raises((AssertionError, sqlite3.OperationalError)):
            bench.commit()
            claim(bench)
    finally:
        for held in NeverLetsGo.kept:
            held.__exit__(None, None, None)  # type: ignore[attr-defined]
        NeverLetsGo.kept.clear()
