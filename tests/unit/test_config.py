"""The configuration: mistakes are named, with the nearest right word."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitmirror import config
from splitmirror.drivers import Seam, drivers
from splitmirror.errors import ConfigError
from splitmirror.media.changer import SlotKind
from splitmirror.media.pools import Pool
from splitmirror.model import Check, Mode

GOOD = """
source = "prod"
[database]
driver = "none"
paths = ["/srv/files"]
[mirror]
driver = "qsd"
dir = "/var/lib/splitmirror/mirror"
[[mirror.disks]]
name = "data"
primary = "/srv/primary/data.img"
mirror = "/srv/mirror/data.img"
[medium]
driver = "virtualtape"
path = "/backup/SM0001.tap"
"""


def load(tmp_path: Path, text: str) -> config.Config:
    path = tmp_path / "splitmirror.toml"
    path.write_text(text)
    return config.load(path)


def test_defaults_are_hot_mode_checked_before_the_release(tmp_path: Path) -> None:
    loaded = load(tmp_path, GOOD)
    assert (loaded.backup.mode, loaded.backup.check) == (Mode.HOT, Check.QUIESCED)
    assert (loaded.part_size, loaded.block_size) == (1 << 30, 256 << 10)
    assert loaded.catalog_path == Path("/var/lib/splitmirror/catalog.sqlite")


def test_a_pool_and_a_volume_exclude_one_another(tmp_path: Path) -> None:
    pools = "[pools.nightly]\nkeep_sets = 7\n"
    loaded = load(tmp_path, f'pool = "nightly"\n{GOOD}{pools}')
    assert loaded.pool == "nightly"
    assert loaded.pools == {"nightly": Pool(keep_sets=7)}
    with pytest.raises(ConfigError, match="both `volume` and `pool`"):
        load(tmp_path, f'pool = "nightly"\nvolume = "SM0001"\n{GOOD}{pools}')
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f'pool = "nightli"\n{GOOD}{pools}')
    assert "'nightly'" in caught.value.hint


@pytest.mark.parametrize(
    ("wrong", "message", "hint"),
    [
        ("[backup]\nmoed = 'hot'", "moed", "'mode'"),
        ("[backup]\nmode = 'warm'", "warm", "init"),
        ("[backup]\nblock_size = '3KiB'", "block_size", "512"),
        ("[backup]\npart_size = '1MiB'", "part_size", "GiB"),
        ("[backup]\npart_size = 'big'", r"\[backup\] part_size = 'big'", "256M"),
        ("[backup]\nblock_size = 'small'", r"\[backup\] block_size = 'small'", "256M"),
        ("[backup]\npart_size = -1", r"\[backup\] part_size = -1", "256M"),
        ("[backup]\nfreeze_deadline_s = 0", "freeze_deadline_s is 0", "seconds"),
        ("[backup]\nquiesce_deadline_s = -5.0", "quiesce_deadline_s is -5", "seconds"),
        ("[backup]\nmap_deadline_s = nan", "map_deadline_s is nan", "seconds"),
        ("[backup]\nwrite_deadline_s = 1e12", "write_deadline_s is 1e", "seconds"),
        ("[backup]\nleg_deadline_s = inf", "leg_deadline_s is inf", "seconds"),
        ("early_warning = 'some'", r"\[medium\] early_warning = 'some'", "256M"),
        ("early_warning = -1", r"\[medium\] early_warning = -1", "256M"),
        ("capacity = 'lots'", r"\[medium\] capacity = 'lots'", "256M"),
        ("capacity = '1MiB'", "capacity 1MiB is not above", "early_warning"),
        ("[pools.nightly]\nkeep_set = 3", "keep_set", "'keep_sets'"),
        ("[pools.nightly]\nkeep_days = -1", "keep_days is -1", "number"),
        ("[pools.'a b']\nkeep_days = 1", "a b", "letters"),
        ("[", "not TOML", "line"),
    ],
)
def test_a_wrong_value_is_named_with_what_to_write(
    tmp_path: Path, wrong: str, message: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, GOOD + wrong)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ('source = "prod"', 'source = "a/b"', "a/b"),
        ('source = "prod"', 'source = "prod"\nvolume = "tape"', "tape"),
        ('source = "prod"', 'source = "prod"\npool = "nights"', r"no \[pools.nights\]"),
        ('source = "prod"', 'source = "prod"\nstate_dir = "here"', "absolute"),
        ('driver = "none"', 'driver = "oracle"', "oracle"),
        ('driver = "none"', 'driver = "../none"', "none"),
        ('path = "/backup/SM0001.tap"', 'pathh = "/backup/SM0001.tap"', "path"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_when_it_is_read(
    tmp_path: Path, right: str, wrong: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, GOOD.replace(right, wrong))


def test_a_missing_file_is_refused_with_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration") as caught:
        config.load(tmp_path / "nowhere.toml")
    assert f"splitmirror init DIRECTORY --write {tmp_path}/nowhere.toml" in caught.value.hint


def test_every_seam_knows_its_drivers_by_the_files_in_its_folder() -> None:
    assert {"postgresql", "sqlite", "none"} <= set(drivers("databases"))
    assert "qsd" in drivers("mirrors")
    assert "virtualtape" in drivers("media")


@pytest.mark.parametrize(
    ("seam", "right", "test_only"),
    [
        ("mirrors", '"qsd"\ndir = "/var/lib/splitmirror/mirror"', '"memory"\nvolumes = []'),
        ("media", '"virtualtape"\npath = "/backup/SM0001.tap"', '"memory"'),
    ],
)
def test_a_driver_for_tests_is_neither_taken_from_a_file_nor_offered(
    tmp_path: Path, seam: Seam, right: str, test_only: str
) -> None:
    with pytest.raises(ConfigError, match="'memory' is not known") as caught:
        load(tmp_path, GOOD.replace(f"driver = {right}", f"driver = {test_only}"))
    assert "memory" not in caught.value.hint
    assert "memory" not in drivers(seam)
    assert "memory" in drivers(seam, for_tests=True)


SHELF = GOOD.replace('path = "/backup/SM0001.tap"', "shelf = '/shelf'")


def test_a_virtual_library_has_drives_and_a_changer(tmp_path: Path) -> None:
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "SM0001L8").touch()
    text = SHELF.replace("/shelf", str(tmp_path / "shelf")) + "drives = 2\nslots = 3\ndoors = 2\n"
    loaded = load(tmp_path, f"state_dir = '{tmp_path}/state'\n" + text)
    with loaded.open_library() as library:
        kinds = [slot.kind for slot in library.inventory()]
        assert [kinds.count(kind) for kind in SlotKind] == [3, 2, 2]
        with library.lease(2) as bays:
            assert len(bays) == 2
    assert len(list((tmp_path / "state" / "leases").iterdir())) == 2


def test_one_virtual_tape_is_a_library_of_one_drive_without_a_changer(tmp_path: Path) -> None:
    loaded = load(tmp_path, f"state_dir = '{tmp_path}/state'\n" + GOOD)
    with loaded.open_library() as library:
        assert not library.has_changer
        assert [bay.name for bay in library.bays] == ["/backup/SM0001.tap"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("path = '/one.tap'", "either a `path` or a `shelf`"),
        ("drives = 0", r"\[medium\] drives is 0"),
        ("slots = 0", r"\[medium\] slots is 0"),
        ("doors = 100", r"\[medium\] doors is 100"),
        ("notify_poll_s = 0", "notify_poll_s is 0"),
        ("notify = 3", "notify"),
    ],
)
def test_a_wrong_library_is_named(wrong: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, SHELF + wrong)


def test_a_shelf_is_absolute(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shelf = 'shelf' is not absolute"):
        load(tmp_path, SHELF.replace("/shelf", "shelf"))


def test_a_medium_has_a_path_or_a_shelf(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="either a `path` or a `shelf`"):
        load(tmp_path, SHELF.replace("shelf = '/shelf'", ""))
