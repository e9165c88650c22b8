"""A PostgreSQL cluster under load directly on xfs or btrfs, its directory split by clones or as a
snapshot."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.real.directories_lab import HOSTS, MIB, Directories, directories_on
from tests.real.killing import killed_at
from tests.real.ledgered import judged

from splitmirror import backup as recipe
from splitmirror.backup import backup
from splitmirror.catalog import Catalog
from splitmirror.config import Config
from splitmirror.demo.lab import Lab
from splitmirror.demo.subjects import PostgreSQL, writing
from splitmirror.errors import LegError, NotOnMirror
from splitmirror.model import BackupSet
from splitmirror.recover import recover

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

Running = tuple[Directories, PostgreSQL]


@pytest.fixture(scope="module", params=HOSTS)
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="sm-directories-") as directory:
        base = Path(directory)
        base.chmod(0o711)  # the server's user goes through it
        with directories_on(base, request.param, ["data"], size=2 << 30) as places:
            (places.host.path / "wal").mkdir()
            cluster = PostgreSQL(Lab(base=base, disks=()))  # where it lies is as in a lab
            cluster.create()
            with cluster.running():
                cluster.fill(24 * MIB)
                yield places, cluster
        assert not (base / "host" / "mnt").is_mount()


def configured(running: Running, **options: object) -> Config:
    places, cluster = running
    return places.configured(dict(cluster.table()), mode="hot", **options)


def judge(running: Running, loaded: Config, made: BackupSet, scratch: Path) -> None:
    places, _ = running
    verdict = judged(loaded, made, places.ledger, scratch)
    assert (verdict.lost, verdict.torn) == (0, 0)
    assert verdict.acknowledged_before_split > 0
    assert places.legs() == []


@pytest.mark.parametrize("check", ["quiesced", "released"])
def test_a_cluster_under_load_comes_back_whole(
    running: Running, tmp_path: Path, check: str
) -> None:
    places, cluster = running
    loaded = configured(running, check=check)
    with writing("postgresql", cluster.dsn, f"writer-{check}", places.ledger):
        made = backup(loaded)
    judge(running, loaded, made, tmp_path)
    assert made.write_pause_s == 0
    assert made.maps.early > 900 and made.maps.renewed < 100, "hardly any map is stale"


@pytest.mark.parametrize(
    ("where", "legs", "finished"),
    [
        ("splitmirror.mirrors.directories:DirectoryMirror.split", 0, False),
        ("splitmirror.system.reflink:clone_live", 1, False),
        ("splitmirror.hold:Hold.release", 1, False),
        ("splitmirror.backup:plan_writing", 1, True),
        ("splitmirror.backup:clean_up", 1, True),
    ],
)
def test_a_backup_that_was_killed_is_put_right(
    running: Running, tmp_path: Path, where: str, legs: int, finished: bool
) -> None:
    places, cluster = running
    if where.endswith("clone_live") and places.host.fstype == "btrfs":
        where = "splitmirror.mirrors.directories:_proven"  # there the snapshot is made at once
    loaded = configured(running)
    writer = f"killed-{where.rpartition(':')[2]}"
    with writing("postgresql", cluster.dsn, writer, places.ledger):
        killed_at(places.config_path, where)
        assert len(places.legs()) == legs
        (recovered,) = recover(loaded)
    assert (recovered.finished is not None) == finished
    if recovered.finished is not None:
        judge(running, loaded, recovered.finished, tmp_path)
    assert places.legs() == []
    with psycopg.connect(cluster.dsn) as connection:
        (left,) = connection.execute("SELECT count(*) FROM pg_replication_slots").fetchall()
    assert left == (0,), "the backup's slot is still there"


def test_a_leg_that_was_given_back_while_it_was_read_makes_no_set(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On xfs its files are read by their maps, and nothing fails when their blocks are freed."""
    places, _ = running
    loaded = configured(running)
    confirm = recipe.confirm_leg

    def given_back(mirror: Any, split_id: str) -> None:
        mirror.rejoin(split_id)
        confirm(mirror, split_id)

    monkeypatch.setattr(recipe, "confirm_leg", given_back)
    with pytest.raises(LegError, match="void"):
        backup(loaded)
    with Catalog.open(loaded.catalog_path) as catalog:
        assert [made.complete for made in catalog.sets()][-1:] == [False]
    assert places.legs() == []


def test_a_tablespace_on_the_other_filesystem_belongs_to_the_set(
    running: Running, tmp_path: Path
) -> None:
    places, cluster = running
    other = next(fstype for fstype in HOSTS if fstype != places.host.fstype)
    base = places.base / "other"
    base.mkdir()
    with directories_on(base, other, ["space"]) as beside:
        subprocess.run(["chown", "postgres:", beside.path("space")], check=True)
        with closing(psycopg.connect(cluster.dsn, autocommit=True)) as connection:
            connection.execute(f"CREATE TABLESPACE beside LOCATION '{beside.path('space')}'")
            connection.execute(
                "CREATE TABLE far TABLESPACE beside AS SELECT generate_series(1, 200000) AS n"
            )
            try:
                with pytest.raises(NotOnMirror) as refused:
                    backup(configured(running))
                assert "[[mirror.directories]]" in refused.value.hint

                both = replace(places, directories=(*places.directories, *beside.directories))
                loaded = configured((both, cluster))
                with writing("postgresql", cluster.dsn, "tablespace", places.ledger):
                    made = backup(loaded)
                judge(running, loaded, made, tmp_path)
                assert beside.legs() == []
                assert any(b"tblspc" in name for name, _ in made.trees)
            finally:
                connection.execute("DROP TABLE far")
                connection.execute("CHECKPOINT")
                connection.execute("DROP TABLESPACE beside")
