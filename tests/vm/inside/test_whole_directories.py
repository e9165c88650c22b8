"""A whole backup of a database that lies on no mirror, by Debian's kernel: its data on btrfs, of
which a snapshot is made, and a tablespace on xfs, whose files are cloned."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest
from tests.vm.inside import whole
from tests.vm.inside.whole import MIB, Scene, scene_on

from splitmirror.demo.below import Directories
from splitmirror.demo.lab import Disk, Lab
from splitmirror.model import Mode

pytestmark = pytest.mark.timeout(600)

DISKS = (
    Disk(name="data", fstype="btrfs", size=320 * MIB),
    Disk(name="wal", fstype="xfs", size=320 * MIB),
)


class WithASpace(Directories):
    """The cluster's directory, and one for a tablespace on the other disk."""

    def table(self, lab: Lab) -> str:
        space = lab.mountpoint("wal") / "space"
        return super().table(lab) + f'[[mirror.directories]]\nname = "space"\npath = "{space}"\n'


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with scene_on(WithASpace(), DISKS, no_command, no_command) as made, ExitStack() as undo:
        space = made.lab.mountpoint("wal") / "space"
        space.mkdir()
        shutil.chown(space, "postgres", "postgres")
        session = undo.enter_context(psycopg.connect(made.subject.dsn, autocommit=True))
        session.execute(f"CREATE TABLESPACE space LOCATION '{space}'")
        session.execute("CREATE TABLE far TABLESPACE space AS SELECT generate_series(1, 9999) n")
        yield made


def no_command(lab: Lab, disk: Disk) -> None:
    """Nothing has to be typed: no mirror is split."""


def test_a_backup_comes_back_without_a_pause(scene: Scene) -> None:
    paused: dict[str, object] = {}
    whole.test_a_backup_comes_back_with_every_acknowledged_transaction(
        scene, Mode.HOT, paused.__setitem__
    )
    assert paused["hot_pause_ms"] == 0
    for disk in DISKS:
        left = [path.name for path in scene.lab.mountpoint(disk.name).glob("*@*")]
        assert left == []
