"""Whole backups of what lies on btrfs, whose leg has its primary's UUID.

Its maps are not device addresses, so all is read through the leg, mounted beside the primary; where
the kernel gives the primary instead, there must be no set at all.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.real.ledgered import create, judged, writing
from tests.real.qsd_lab import small_filesystem

from splitmirror import backup as recipe
from splitmirror import config
from splitmirror.backup import backup
from splitmirror.catalog import Catalog
from splitmirror.config import Config
from splitmirror.demo.lab import Disk, Lab, configuration, lab_at, leftovers
from splitmirror.errors import UnsupportedStack, WouldFreeze
from splitmirror.extents import views
from splitmirror.model import BackupSet
from splitmirror.restore import restore
from splitmirror.system import detached
from splitmirror.system.detached import mount_detached

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

DISKS = (Disk(name="data", fstype="btrfs", size=512 << 20),)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="sm-btrfs-") as directory:
        base = Path(directory) / "lab"
        with lab_at(base, DISKS) as made:
            yield made
        assert [left for left in leftovers(base) if not left.startswith("directory")] == []


def configured(lab: Lab, database: dict[str, object], **options: object) -> Config:
    lab.config_path.write_text(configuration(lab, database, options))
    return config.load(lab.config_path)


def populate(place: Path) -> None:
    """Files of every kind that btrfs stores in a way of its own."""
    place.mkdir()
    (place / "large").write_bytes(os.urandom(5 << 20))
    (place / "inline").write_bytes(b"12 bytes in.")
    (place / "packed").touch()
    subprocess.run(["btrfs", "property", "set", place / "packed", "compression", "zstd"],
                   check=True)  # fmt: skip
    (place / "packed").write_bytes(b"the same again " * 100_000)
    (place / "uncopied").touch()
    subprocess.run(["chattr", "+C", place / "uncopied"], check=True)
    (place / "uncopied").write_bytes(os.urandom(1 << 20))
    with (place / "holed").open("wb") as file:
        file.seek(3 << 20)
        file.write(os.urandom(100_000))
        file.truncate(8 << 20)
    subprocess.run(["cp", "--reflink=always", place / "large", place / "clone"], check=True)
    with (place / "clone").open("r+b") as file:
        file.seek(1 << 20)
        file.write(os.urandom(200_000))
    (place / "folder").mkdir()
    (place / "folder" / "inside").write_bytes(os.urandom(70_000))
    (place / "link").symlink_to("folder/inside")


def contents(place: Path) -> dict[str, str]:
    return {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in place.rglob("*")
        if path.is_file()
    }


def overwrite(place: Path) -> None:
    """Every byte becomes another, on the disk."""
    for path in place.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.write_bytes(os.urandom(path.stat().st_size))
    os.sync()


@contextmanager
def after_the_release(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> Iterator[None]:
    """Let something happen when the split is made and the database goes on."""
    trust = recipe.trust

    def trusting(*arguments: Any) -> Any:
        act()
        return trust(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(recipe, "trust", trusting)
        yield


def restored(loaded: Config, made: BackupSet, target: Path, **named: Any) -> None:
    with Catalog.open(loaded.catalog_path) as catalog:
        restore(loaded.open_supply(), catalog, made.set_id, (), target, **named)


@pytest.mark.parametrize("check", ["quiesced", "released"])
def test_files_on_btrfs_are_backed_up_as_they_were_at_the_split(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, check: str
) -> None:
    place = lab.mountpoint("data") / f"files-{check}"
    populate(place)
    expected = contents(place)
    loaded = configured(lab, {"driver": "none", "paths": [str(place)]}, mode="freeze", check=check)

    with after_the_release(monkeypatch, lambda: overwrite(place)):
        made = backup(loaded)

    restored(loaded, made, tmp_path / "back")
    assert made.complete
    assert contents(place) != expected, "nothing happened on the primary"
    assert contents(tmp_path / "back" / place.name) == expected
    assert os.readlink(tmp_path / "back" / place.name / "link") == "folder/inside"


@pytest.mark.parametrize("subvolume", [False, True], ids=["directory", "subvolume"])
def test_a_sqlite_database_on_btrfs_that_is_written_meanwhile_comes_back_whole(
    lab: Lab, tmp_path: Path, subvolume: bool
) -> None:
    place = lab.mountpoint("data") / f"db-{subvolume}"
    if subvolume:
        subprocess.run(["btrfs", "-q", "subvolume", "create", place], check=True)
    path = create(place / "db" if subvolume else place, "hot.sqlite", filler=8 << 20)
    loaded = configured(lab, {"driver": "sqlite", "paths": [str(path)]}, mode="hot")
    with writing(path, lab.ledger):
        made = backup(loaded)

    verdict = judged(loaded, made, lab.ledger, tmp_path)
    assert (verdict.lost, verdict.torn) == (0, 0)
    assert verdict.acknowledged_before_split > 0


@pytest.mark.parametrize("mode", ["hot", "freeze"])
@pytest.mark.parametrize("kernel", ["6.6", "6.1"])
def test_where_the_kernel_mounts_the_primary_for_the_leg_there_is_no_set(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, mode: str, kernel: str
) -> None:
    """Before Linux 6.7 a mount of the leg's device gives the filesystem that is mounted already
    under its UUID: here the mount is really of the primary's device. 6.6 can refuse to."""
    if kernel == "6.1":
        monkeypatch.setattr(detached, "_CMD_CREATE_EXCL", detached._CMD_CREATE)
    path = create(lab.mountpoint("data") / f"other-{mode}-{kernel}", "other.sqlite")
    loaded = configured(lab, {"driver": "sqlite", "paths": [str(path)]}, mode=mode)
    with closing(loaded.open_mirror()) as mirror:
        (primary,) = (volume.device for volume in mirror.volumes())
        asked: list[str] = []

        def mounts_the_primary(device: str, fstype: str, options: tuple[str, ...]) -> int:
            asked.append(device)
            return mount_detached(primary, fstype, ())

        monkeypatch.setattr(views, "mount_detached", mounts_the_primary)
        with pytest.raises(UnsupportedStack, match="does not tell the two apart") as refused:
            backup(loaded)

        assert asked and primary not in asked
        assert "reflink" in refused.value.hint
        assert mirror.state().split_id is None, "the mirror is still split"
    with Catalog.open(loaded.catalog_path) as catalog:
        assert refused and not [s for s in catalog.sets() if str(path.parent) in str(s.trees)]
    path.write_bytes(path.read_bytes())  # nothing is frozen


@pytest.mark.parametrize("where", ["beside", "in a subvolume", "in an image"])
def test_a_journal_on_the_btrfs_that_will_be_frozen_is_refused(lab: Lab, where: str) -> None:
    """Its device number, as a file shows it, is another one in each subvolume, and none of them is
    the superblock's."""
    place = lab.mountpoint("data") / where.replace(" ", "-")
    path = create(place, "own.sqlite")
    with ExitStack() as stack:
        state = place / "state"
        if where == "in a subvolume":
            subprocess.run(["btrfs", "-q", "subvolume", "create", state], check=True)
        if where == "in an image":
            state = stack.enter_context(small_filesystem(place, 16 << 20))
        text = configuration(lab, {"driver": "sqlite", "paths": [str(path)]})
        lab.config_path.write_text(text.replace(f"{lab.base}/state", str(state)))
        with pytest.raises(WouldFreeze, match=str(state)):
            backup(config.load(lab.config_path))
