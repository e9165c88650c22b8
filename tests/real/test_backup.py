"""Whole backups of changing files and running databases on real mirrors, held against their legs.

The lab is the demo's: ext4 and xfs on two disks behind the embedded mirror. Between the early map
and the split everything happens to files that can; then each restored byte is compared with the leg
that the set was read from, which stays split for it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.real.relocating import relocate

from splitmirror import config, journal
from splitmirror.backup import backup
from splitmirror.catalog import Catalog
from splitmirror.config import Config
from splitmirror.databases import Database, Hold
from splitmirror.demo.lab import Disk, Lab, configuration, lab_at, leftovers
from splitmirror.demo.subjects import PostgreSQL
from splitmirror.errors import Busy, HoldBroken, NotOnMirror
from splitmirror.extents.changes import Changed, Changes
from splitmirror.extents.trees import plan_trees
from splitmirror.extents.views import LegView
from splitmirror.freeze import Freeze
from splitmirror.model import BackupSet, Kind, Mode, Origin, Tree
from splitmirror.restore import restore
from splitmirror.run import Run
from splitmirror.system.qmp import Monitor

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

DISKS = (
    Disk(name="data", fstype="ext4", size=512 << 20),
    Disk(name="wal", fstype="xfs", size=400 << 20),
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="sm-backup-") as directory:
        Path(directory).chmod(0o711)
        base = Path(directory) / "lab"
        with lab_at(base, DISKS) as made:
            yield made
        assert [left for left in leftovers(base) if not left.startswith("directory")] == []


@dataclass
class Disturbed:
    """A database driver to which something happens between the early map and the quiesce."""

    database: Database
    disturb: Callable[[], None]
    happened: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.database, name)

    @contextmanager
    def quiesce(self, mode: Mode, deadline_s: float) -> Iterator[Hold]:
        self.disturb()
        self.happened.append("disturbed")
        with self.database.quiesce(mode, deadline_s) as hold:
            yield hold


def backed_up(
    monkeypatch: pytest.MonkeyPatch, loaded: Config, disturb: Callable[[], None]
) -> BackupSet:
    """A backup in whose middle `disturb` happens; its leg stays split."""
    disturbed = Disturbed(loaded.open_database(), disturb)
    monkeypatch.setattr(Config, "open_database", lambda _: disturbed)
    made = backup(loaded)
    assert disturbed.happened == ["disturbed"]
    return made


def configured(lab: Lab, database: dict[str, object], **options: object) -> Config:
    lab.config_path.write_text(configuration(lab, database, options))
    return config.load(lab.config_path)


@contextmanager
def rejoined_after(loaded: Config, made: BackupSet) -> Iterator[None]:
    try:
        yield
    finally:
        with closing(loaded.open_mirror()) as mirror:
            mirror.rejoin(made.set_id)


def compared_with_leg(loaded: Config, made: BackupSet, target: Path) -> int:
    """Restore the set and compare every member that was read off the leg with the leg; how many."""
    compared = 0
    with (
        Catalog.open(loaded.catalog_path) as catalog,
        closing(loaded.open_mirror()) as mirror,
    ):
        restore(loaded.open_supply(), catalog, made.set_id, (), target)
        layout = loaded.open_database()
        layout.preflight(loaded.backup.mode)
        found = layout.layout()
        trees = plan_trees(found.roots, mirror.volumes(), found.keep)
        by_name = {tree.name: tree for tree in trees}
        with LegView(mirror.leg(made.set_id, 60), trees) as view:
            for _, record in catalog.members(made.set_id):
                if record.origin is not Origin.LEG or record.attributes.kind is not Kind.FILE:
                    continue
                tree = by_name[_tree_name(record.name, by_name)]
                inside = record.name[len(tree.name) + 1 :]
                root = view.open_tree(tree)
                fd = os.open(inside, os.O_RDONLY, dir_fd=root) if inside else os.dup(root)
                try:
                    restored = target / os.fsdecode(record.name)
                    assert restored.stat().st_size == os.fstat(fd).st_size, record.name
                    with restored.open("rb") as ours, os.fdopen(os.dup(fd), "rb") as legs:
                        while block := legs.read(1 << 20):
                            assert ours.read(len(block)) == block, record.name
                finally:
                    os.close(fd)
                    os.close(root)
                compared += 1
    return compared


def _tree_name(name: bytes, trees: dict[bytes, Any]) -> bytes:
    return max((t for t in trees if name == t or name.startswith(t + b"/")), key=len)


# --- every change that can come between map and split


def populate(directory: Path) -> None:
    directory.mkdir()
    for name in ("kept", "changed", "grown", "truncated", "punched", "deleted", "renamed",
                 "moved", "mapped", "preallocated"):  # fmt: skip
        (directory / name).write_bytes(os.urandom(300_000))
    (directory / "folder").mkdir()
    (directory / "folder" / "inside").write_bytes(os.urandom(50_000))
    fragmented(directory / "moved")
    with (directory / "mapped").open("r+b") as file:
        file.truncate(1 << 20)  # its second half is a hole
    with (directory / "preallocated").open("r+b") as file:
        os.posix_fallocate(file.fileno(), 300_000, 700_000)
    os.sync()


def fragmented(path: Path) -> None:
    """A file in many extents, for the defragmenter to move."""
    other = path.with_name("between")
    with path.open("wb") as file, other.open("wb") as filler:
        for _ in range(30):
            for handle in (file, filler):
                handle.write(os.urandom(16384))
                handle.flush()
                os.fsync(handle.fileno())
    other.unlink()


def disturb(directory: Path, fstype: str) -> None:
    """One of each: what the early map cannot know."""
    with (directory / "changed").open("r+b") as file:
        file.seek(100_000)
        file.write(os.urandom(50_000))
    with (directory / "grown").open("ab") as end:
        end.write(os.urandom(3_000_000))
    os.truncate(directory / "truncated", 1234)
    subprocess.run(["fallocate", "-p", "-o", "65536", "-l", "65536", directory / "punched"],
                   check=True)  # fmt: skip
    (directory / "deleted").unlink()
    (directory / "renamed").rename(directory / "renamed-now")
    (directory / "folder").rename(directory / "folder-now")
    (directory / "created").write_bytes(os.urandom(777_777))
    with (directory / "preallocated").open("r+b") as file:
        file.seek(400_000)
        file.write(os.urandom(9_999))  # into unwritten extents, not synced
    with (directory / "mapped").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[600_000:600_100] = b"m" * 100
    before = extents_of(directory / "moved")
    relocate(directory / "moved", fstype)
    assert extents_of(directory / "moved") != before, "the defragmenter moved nothing"


def extents_of(path: Path) -> bytes:
    from splitmirror.system.fiemap import fiemap

    ctypes.CDLL(None).sync()
    with path.open("rb") as file:
        return fiemap(file.fileno(), path.stat().st_size).packed


def cannot_watch(changes: Changes, trees: Sequence[Tree]) -> None:
    """As where the kernel has no such watch."""
    changes.state = "not here"


def nothing_told(changes: Changes, trees: Sequence[Tree]) -> Changed:
    """As if every note had been lost without a word."""
    return Changed(frozenset(), frozenset())


def facts_of(loaded: Config, made: BackupSet, kind: str) -> list[dict[str, Any]]:
    """What the run's journal has of one kind of record."""
    records = journal.read(loaded.state / "runs" / made.set_id)
    return [record.facts for record in records if record.kind == kind]


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "unwatched"])
@pytest.mark.parametrize("check", ["quiesced", "released"])
def test_files_are_backed_up_as_they_were_at_the_split_whatever_happened_since_the_early_map(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, check: str, watched: bool
) -> None:
    if not watched:
        monkeypatch.setattr(Changes, "arm", cannot_watch)
    places = {
        lab.mountpoint("data") / f"ext4-{check}-{watched}": "ext4",
        lab.mountpoint("wal") / f"xfs-{check}-{watched}": "xfs",
    }
    for place in places:
        populate(place)
    loaded = configured(
        lab,
        {"driver": "none", "paths": [str(place) for place in places]},
        mode="freeze",
        check=check,
        cleanup="leave-split",
    )

    def change() -> None:
        for place, fstype in places.items():
            disturb(place, fstype)

    made = backed_up(monkeypatch, loaded, change)
    with rejoined_after(loaded, made):
        assert compared_with_leg(loaded, made, tmp_path / "back") == 2 * 11
    assert made.maps.new == 2 * 3, "created, renamed-now and folder-now/inside, on each disk"
    assert made.maps.gone == 2 * 3
    assert made.maps.renewed >= 2 * 6
    assert made.complete
    assert made.watch == ("armed" if watched else "not here")
    (read,) = facts_of(loaded, made, "read")
    if watched and check == "quiesced":
        assert read["renewed"] >= 2 * 2, "what gives no note was to be found when it was read"
    else:
        assert read["renewed"] == 0, "the check has missed a map"


def test_what_the_watch_missed_is_found_on_the_leg(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = lab.mountpoint("data") / "missed"
    populate(place)
    loaded = configured(
        lab, {"driver": "none", "paths": [str(place)]}, mode="freeze", cleanup="leave-split"
    )
    monkeypatch.setattr(Changes, "told", nothing_told)

    made = backed_up(monkeypatch, loaded, lambda: disturb(place, "ext4"))

    with rejoined_after(loaded, made):
        assert compared_with_leg(loaded, made, tmp_path / "back") == 11
    (missed,) = facts_of(loaded, made, "missed by the watch")
    assert missed["directory"] == "missed"
    assert (made.maps.new, made.maps.gone) == (3, 3)


def test_a_set_that_did_not_change_is_backed_up_without_a_look_at_its_files_in_the_hold(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = lab.mountpoint("data") / "still"
    populate(place)
    loaded = configured(lab, {"driver": "none", "paths": [str(place)]}, mode="freeze")
    opened: list[object] = []
    freeze, thaw, plain = Freeze.freeze, Freeze.thaw, os.open

    def watched_open(path: object, *arguments: Any, **named: Any) -> int:
        opened.append(path)
        return plain(path, *arguments, **named)  # type: ignore[arg-type]

    def freezing(held: Freeze) -> None:
        monkeypatch.setattr(os, "open", watched_open)
        freeze(held)

    def thawing(held: Freeze) -> None:
        monkeypatch.setattr(os, "open", plain)
        thaw(held)

    monkeypatch.setattr(Freeze, "freeze", freezing)
    monkeypatch.setattr(Freeze, "thaw", thawing)
    made = backup(loaded)

    assert made.complete
    names = {os.fsencode(path.name) for path in place.iterdir()}
    assert not [path for path in opened if isinstance(path, bytes) and path in names]


# --- the hold


@pytest.mark.parametrize("mode", ["hot", "freeze"])
@pytest.mark.parametrize("check", ["quiesced", "released"])
def test_nothing_is_imported_while_the_database_is_held(
    lab: Lab, cluster: PostgreSQL, mode: str, check: str
) -> None:
    """In a process of its own: here the tests have imported everything."""
    configured(lab, dict(cluster.table()), mode=mode, check=check)
    code = (
        "import sys; from pathlib import Path\n"
        "from splitmirror import config; from splitmirror.backup import backup\n"
        "from splitmirror.hold import Hold\n"
        "quiesce, release, before = Hold.quiesce, Hold.release, set()\n"
        "def quiescing(hold):\n"
        "    before.update(sys.modules); quiesce(hold)\n"
        "def releasing(hold, into):\n"
        "    redo = release(hold, into); print(sorted(set(sys.modules) - before)); return redo\n"
        "Hold.quiesce, Hold.release = quiescing, releasing\n"
        "backup(config.load(Path(sys.argv[1])))\n"
    )
    argv = [sys.executable, "-c", code, str(lab.config_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120)

    assert done.stdout == "[]\n"


@pytest.mark.parametrize(("mode", "check"), [("hot", "quiesced"), ("freeze", "released")])
def test_the_parts_of_the_pause_make_up_the_pause(
    lab: Lab, cluster: PostgreSQL, mode: str, check: str
) -> None:
    made = backup(configured(lab, dict(cluster.table()), mode=mode, check=check))

    assert sum(made.pause_parts.values()) <= made.write_pause_s + 0.001
    assert min(made.pause_parts.values()) > 0


def test_between_freeze_and_thaw_of_a_hot_backup_the_daemon_is_told_one_thing(
    lab: Lab, cluster: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = configured(lab, dict(cluster.table()), mode="hot")
    told: list[str] = []
    execute, freeze, thaw = Monitor.execute, Freeze.freeze, Freeze.thaw

    def telling(monitor: Monitor, command: str, arguments: Any = None) -> Any:
        told.append(command)
        return execute(monitor, command, arguments)

    def freezing(held: Freeze) -> None:
        freeze(held)
        told.clear()
        told.append("frozen")

    def thawing(held: Freeze) -> None:
        told.append("thawed")
        thaw(held)

    monkeypatch.setattr(Monitor, "execute", telling)
    monkeypatch.setattr(Freeze, "freeze", freezing)
    monkeypatch.setattr(Freeze, "thaw", thawing)
    backup(loaded)

    assert told[: told.index("thawed")] == ["frozen", "transaction"]


# --- PostgreSQL


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Iterator[PostgreSQL]:
    made = PostgreSQL(lab)
    made.create()
    with made.running():
        made.fill(24 << 20)
        yield made


@pytest.mark.parametrize("check", ["quiesced", "released"])
@pytest.mark.parametrize("mode", ["hot", "freeze"])
def test_a_cluster_in_which_tables_come_and_go_is_backed_up_as_its_leg_has_it(
    lab: Lab,
    cluster: PostgreSQL,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    mode: str,
    check: str,
) -> None:
    loaded = configured(lab, dict(cluster.table()), mode=mode, check=check, cleanup="leave-split")

    beside = cluster.data / f"beside-{mode}-{check}"  # what else lies there belongs to the set
    populate(beside)

    def tables_come_and_go() -> None:
        disturb(beside, "ext4")
        with psycopg.connect(cluster.dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE doomed AS SELECT generate_series(1, 20000)")
            connection.execute("CHECKPOINT")
            connection.execute("VACUUM FULL filler_1")
            connection.execute("UPDATE filler_2 SET payload = 'changed' WHERE id % 7 = 0")
            connection.execute("DROP TABLE doomed")

    made = backed_up(monkeypatch, loaded, tables_come_and_go)
    with rejoined_after(loaded, made):
        assert compared_with_leg(loaded, made, tmp_path / "back") > 900
    shutil.rmtree(beside)
    assert made.maps.renewed >= 6
    assert made.maps.new >= 3
    assert made.maps.gone >= 3
    with Catalog.open(loaded.catalog_path) as catalog:
        titles = {record.title for _, record in catalog.members(made.set_id)}
    assert "postgres.public.filler_1" in titles


def test_a_tablespace_off_the_mirror_that_appears_after_the_map_fails_by_name_and_releases(
    lab: Lab, cluster: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = configured(lab, dict(cluster.table()))
    place = lab.base / "off-the-mirror"
    place.mkdir()
    os.chown(place, lab.mountpoint("data").stat().st_uid, -1)

    def a_tablespace_appears() -> None:
        with psycopg.connect(cluster.dsn, autocommit=True) as connection:
            connection.execute(f"CREATE TABLESPACE late LOCATION '{place}'")

    try:
        with pytest.raises(NotOnMirror, match="off-the-mirror"):
            backed_up(monkeypatch, loaded, a_tablespace_appears)
    finally:
        with psycopg.connect(cluster.dsn, autocommit=True) as connection:
            connection.execute("DROP TABLESPACE IF EXISTS late")
    with psycopg.connect(cluster.dsn, autocommit=True) as connection:
        row = connection.execute("SELECT count(*) FROM pg_replication_slots").fetchone()
        assert row == (0,), "the backup's slot is left"
        connection.execute("CREATE TABLE after_the_release AS SELECT 1")
        connection.execute("DROP TABLE after_the_release")


def test_a_hot_backup_whose_session_is_ended_in_its_window_is_void_and_the_mirror_is_rejoined(
    lab: Lab, cluster: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    from splitmirror import backup as recipe

    loaded = configured(lab, dict(cluster.table()))
    prepare = recipe.prepare

    def session_is_ended(*arguments: Any) -> None:
        prepare(*arguments)
        with psycopg.connect(cluster.dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots")

    monkeypatch.setattr(recipe, "prepare", session_is_ended)
    with pytest.raises(HoldBroken):
        backup(loaded)
    with closing(loaded.open_mirror()) as mirror:
        assert mirror.state().split_id is None


def test_a_second_backup_of_the_same_source_is_refused_while_one_runs(
    lab: Lab, cluster: PostgreSQL
) -> None:
    loaded = configured(lab, dict(cluster.table()))
    with Run.begin(loaded.state, loaded.source), pytest.raises(Busy, match="going on"):
        backup(loaded)


# --- SQLite


def test_a_sqlite_database_with_its_wal_is_whole_in_the_set(lab: Lab, tmp_path: Path) -> None:
    path = lab.mountpoint("data") / "whole.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as open_all_along:
        open_all_along.execute("PRAGMA journal_mode = WAL")
        open_all_along.execute("PRAGMA wal_autocheckpoint = 0")
        open_all_along.execute("CREATE TABLE t (n)")
        open_all_along.execute("INSERT INTO t VALUES (41)")
        loaded = configured(lab, {"driver": "sqlite", "paths": [str(path)]})
        made = backup(loaded)
        with Catalog.open(loaded.catalog_path) as catalog:
            names = {record.name for _, record in catalog.members(made.set_id)}
            restore(
                loaded.open_supply(), catalog, made.set_id, (), tmp_path / "back",
                database=loaded.open_database(),
            )  # fmt: skip
    assert any(name.endswith(b"-wal") for name in names)
    assert not any(name.endswith(b"-shm") for name in names)
    (restored,) = (tmp_path / "back").rglob("whole.sqlite")
    with closing(sqlite3.connect(restored)) as connection:
        assert connection.execute("SELECT n FROM t").fetchall() == [(41,)]
