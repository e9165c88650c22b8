"""A PostgreSQL cluster under load on image files, its data and its log on two, split by reflink."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.real.ledgered import judged
from tests.real.reflink_lab import HOSTS, MIB, Images, images_on, with_filesystems

from splitmirror.backup import backup
from splitmirror.demo.lab import Lab
from splitmirror.demo.subjects import PostgreSQL, writing

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

SIZES = {"data": 512 * MIB, "wal": 400 * MIB}


@pytest.fixture(scope="module", params=HOSTS)
def running(request: pytest.FixtureRequest) -> Iterator[tuple[Images, PostgreSQL]]:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="sm-reflink-") as directory:
        base = Path(directory)
        base.chmod(0o711)  # the server's user goes through it
        with (
            images_on(base, request.param, SIZES, host_size=4 << 30) as bare,
            with_filesystems(bare, ("ext4", "xfs")) as images,
        ):
            cluster = PostgreSQL(Lab(base=base, disks=()))  # where it lies is as in a lab
            cluster.create()
            with cluster.running():
                cluster.fill(24 * MIB)
                yield images, cluster


@pytest.mark.parametrize("mode", ["hot", "freeze"])
def test_a_cluster_under_load_comes_back_whole(
    running: tuple[Images, PostgreSQL], tmp_path: Path, mode: str
) -> None:
    images, cluster = running
    loaded = images.configured(dict(cluster.table()), mode=mode)
    name = f"writer-{mode}"
    with writing("postgresql", cluster.dsn, name, images.ledger):
        made = backup(loaded)

    verdict = judged(loaded, made, images.ledger, tmp_path)
    assert (verdict.lost, verdict.torn) == (0, 0)
    assert verdict.acknowledged_before_split > 0
    assert images.legs() == []
