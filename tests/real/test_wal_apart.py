"""A cluster whose pg_wal lies on a disk that is not mirrored: hot mode copies its WAL through the
primary, so that disk is neither frozen nor split; in freeze mode it is refused by name."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from tests.real.loopfs import LoopFs, loop_filesystems
from tests.real.test_backup import configured
from tests.real.test_postgresql_whole import backed_up

from splitmirror import journal
from splitmirror.backup import backup
from splitmirror.catalog import Catalog
from splitmirror.config import Config
from splitmirror.demo.lab import Disk, Lab, lab_at
from splitmirror.doctor import examine
from splitmirror.drill import drill
from splitmirror.errors import NotOnMirror
from splitmirror.recover import frozen_by
from splitmirror.restore import restore
from splitmirror.system import programs
from splitmirror.testing.clusters import Cluster, cluster

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

DISK = Disk(name="data", fstype="ext4", size=256 << 20)


@dataclass(frozen=True, kw_only=True)
class Apart:
    """A running cluster. `member`: what its WAL's directory is called in the set."""

    lab: Lab
    live: Cluster
    member: str
    off: Path  # the disk that is not mirrored

    @property
    def wal(self) -> Path:
        return Path(os.path.realpath(self.live.data / "pg_wal"))

    def loaded(self, mode: str) -> Config:
        return configured(self.lab, {"driver": "postgresql", "dsn": self.live.dsn()}, mode=mode)

    def count(self, dsn: str) -> int:
        with psycopg.connect(dsn) as connection:
            row = connection.execute("SELECT count(*) FROM kept").fetchone()
        assert row is not None
        return int(row[0])

    def add(self) -> None:
        with psycopg.connect(self.live.dsn(), autocommit=True) as connection:
            connection.execute("INSERT INTO kept SELECT generate_series(1, 100)")


@pytest.fixture(scope="module", params=["linked", "mounted"])
def apart(request: pytest.FixtureRequest) -> Iterator[Apart]:
    linked = request.param == "linked"
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="sm-apart-") as directory:
        Path(directory).chmod(0o711)
        with (
            lab_at(Path(directory) / "lab", (DISK,)) as lab,
            loop_filesystems(Path(directory) / "off", "xfs") as (disk,),
        ):
            home = lab.mountpoint("data") / "pg"
            home.mkdir()
            shutil.chown(disk.path, "postgres", "postgres")
            if linked:
                (home / "wal").symlink_to(disk.path / "log")  # initdb finds it where it looks
                (disk.path / "log").mkdir(mode=0o700)
                shutil.chown(disk.path / "log", "postgres", "postgres")
            with (
                cluster(home=home, own_wal=linked) as live,
                nullcontext() if linked else mounted(live, disk),
            ):
                found = Apart(
                    lab=lab,
                    live=live,
                    member="wal" if linked else "data/pg_wal",
                    off=disk.path,
                )
                with psycopg.connect(live.dsn(), autocommit=True) as connection:
                    connection.execute("CREATE TABLE kept (id int)")
                yield found


@contextmanager
def mounted(live: Cluster, disk: LoopFs) -> Iterator[None]:
    """The cluster with its pg_wal moved to that disk, mounted in its place."""
    wal = live.data / "pg_wal"
    live.stop()
    for path in wal.iterdir():
        shutil.move(path, disk.path / path.name)
    disk.path.chmod(0o700)
    programs.run(["chown", "-R", "postgres:postgres", disk.mountpoint], timeout_s=10)
    programs.run(["mount", "--bind", disk.mountpoint, str(wal)], timeout_s=10)
    try:
        live.start()
        yield
    finally:
        live.stop("immediate")
        programs.run(["umount", str(wal)], timeout_s=10)


def test_a_hot_backup_has_the_wal_of_its_window_and_comes_back_at_another_place(
    apart: Apart, tmp_path: Path
) -> None:
    loaded = apart.loaded("hot")
    before = apart.count(apart.live.dsn())
    made, _ = backed_up(loaded, apart.add)
    trees = {os.fsdecode(name): os.fsdecode(path) for name, path in made.trees}
    assert trees[apart.member] == str(apart.wal)
    with Catalog.open(loaded.catalog_path) as catalog:
        names = {os.fsdecode(name) for name in catalog.kinds(made.set_id)}
        within = {name for name in names if name.startswith(f"{apart.member}/")}
        assert apart.member in names
        within.remove(f"{apart.member}/archive_status")
        assert within and all(name.startswith(f"{apart.member}/0000") for name in within)
        report = drill(
            loaded.open_supply(), catalog, made.set_id, loaded.open_database(),
            scratch=tmp_path, probe=lambda copy: apart.count(copy.dsn),
        )  # fmt: skip
        report.require_passed()
        assert report.probed == before + 100
        restore(
            loaded.open_supply(), catalog, made.set_id, (), tmp_path / "back",
            database=loaded.open_database(),
        )  # fmt: skip
    restored = tmp_path / "back" / apart.member
    assert restored.stat().st_mode == apart.wal.stat().st_mode
    assert restored.stat().st_uid == apart.wal.stat().st_uid
    assert (tmp_path / "back/data/pg_wal").resolve() == restored


def test_it_comes_back_in_place_as_it_was(apart: Apart) -> None:
    loaded = apart.loaded("hot")
    before = apart.count(apart.live.dsn())
    made, _ = backed_up(loaded, lambda: None)
    apart.add()
    apart.live.stop()
    try:
        with Catalog.open(loaded.catalog_path) as catalog:
            restore(
                loaded.open_supply(), catalog, made.set_id, (), None,
                original=True, database=loaded.open_database(),
            )  # fmt: skip
    finally:
        apart.live.start()
    assert apart.count(apart.live.dsn()) == before
    assert apart.wal.is_relative_to(apart.off) or apart.wal.is_mount()


def test_the_disk_of_the_wal_is_not_frozen_and_doctor_says_so(apart: Apart) -> None:
    loaded = apart.loaded("hot")
    found = [each.what for each in examine(loaded) if each.problem is None]
    assert f"{apart.member}: {apart.wal}, copied from there; neither frozen nor split" in found
    made, _ = backed_up(loaded, lambda: None)
    records = journal.read(loaded.state / "runs" / made.set_id)
    assert frozen_by(records) == [str(apart.lab.mountpoint("data"))]


def test_freeze_mode_refuses_it_by_name_before_anything_is_touched(apart: Apart) -> None:
    loaded = apart.loaded("freeze")
    before = sorted((loaded.state / "runs").glob("*"))
    with pytest.raises(NotOnMirror, match=re.escape(str(apart.wal))):
        backup(loaded)
    ended = sorted(set((loaded.state / "runs").glob("*")) - set(before))
    assert [path.name for run in ended for path in run.iterdir()] == ["journal"]
