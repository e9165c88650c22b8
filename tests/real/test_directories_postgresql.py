"""A PostgreSQL cluster under load directly on xfs or btrfs, its directory split by clones or as a
snapshot."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.real.directories_lab import HOSTS, MIB, Directories, directories_on
from tests.real.ledgered import judged

from splitmirror.backup import backup
from splitmirror.demo.lab import Lab
from splitmirror.demo.subjects import PostgreSQL, writing

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", params=HOSTS)
def running(request: pytest.FixtureRequest) -> Iterator[tuple[Directories, PostgreSQL]]:
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


@pytest.mark.parametrize("check", ["quiesced", "released"])
def test_a_cluster_under_load_comes_back_whole(
    running: tuple[Directories, PostgreSQL], tmp_path: Path, check: str
) -> None:
    places, cluster = running
    loaded = places.configured(dict(cluster.table()), mode="hot", check=check)
    with writing("postgresql", cluster.dsn, f"writer-{check}", places.ledger):
        made = backup(loaded)

    verdict = judged(loaded, made, places.ledger, tmp_path)
    assert (verdict.lost, verdict.torn) == (0, 0)
    assert verdict.acknowledged_before_split > 0
    assert places.legs() == []
