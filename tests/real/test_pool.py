"""Whole backups onto a pool of volumes in a virtual library, by the configuration alone.

The lab is the demo's: one ext4 disk behind the embedded mirror, plain files as the database. Each
cartridge takes less than half of a set, so that every set goes over several.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from tests.crash.killed_backup import was_killed
from tests.unit.test_cli_library import Shell

from splitmirror import config, journal
from splitmirror.backup import backup
from splitmirror.catalog import Catalog
from splitmirror.config import Config
from splitmirror.demo.lab import Disk, Lab, configuration, lab_at, leftovers
from splitmirror.errors import Busy, DriveLost, NeedsRecovery, NoSuchVolume
from splitmirror.journal import Record
from splitmirror.media import Medium
from splitmirror.media.shelf import VolumeState
from splitmirror.model import BackupSet
from splitmirror.recover import recover
from splitmirror.restore import restore
from splitmirror.run import unfinished
from splitmirror.testing.faulty_media import Fault, FaultKind, FaultyMedium
from splitmirror.verify import verify

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

MIB = 1 << 20
CARTRIDGES = ("SM0001L8", "SM0002L8", "SM0003L8", "SM0004L8", "SM0005L8", "SM0006L8", "CLN001L1")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="sm-pool-") as directory:
        base = Path(directory) / "lab"
        with lab_at(base, (Disk(name="data", fstype="ext4", size=96 * MIB),)) as made:
            yield made
        assert [left for left in leftovers(base) if not left.startswith("directory")] == []


@pytest.fixture
def files(lab: Lab) -> dict[str, bytes]:
    """18 MiB that no compression would make less."""
    source, some = lab.mountpoint("data") / "set", random.Random(7)
    source.mkdir(exist_ok=True)
    found = {f"set/file{number:02d}": some.randbytes(MIB) for number in range(18)}
    for name, content in found.items():
        (source.parent / name).write_bytes(content)
    return found


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    directory = tmp_path / "shelf"
    directory.mkdir()
    for barcode in CARTRIDGES:
        (directory / barcode).touch()
    return directory


def configured(lab: Lab, shelf: Path, tmp_path: Path, streams: int, rules: str) -> Config:
    """Two drives, cartridges of 8 MiB, parts of 2."""
    options = {"mode": "freeze", "part_size": "2MiB", "block_size": "64KiB", "streams": streams}
    source = str(lab.mountpoint("data") / "set")
    text = configuration(lab, {"driver": "none", "paths": [source]}, options)
    text = text.replace(
        f'path = "{lab.tape}"\n',
        f'shelf = "{shelf}"\ndrives = 2\nslots = 8\ncapacity = "8MiB"\nearly_warning = "512KiB"\n',
    )
    text = text.replace(f'"{lab.base}/state"\n', f'"{tmp_path}/state"\npool = "daily"\n')
    path = tmp_path / "splitmirror.toml"
    path.write_text(f"{text}\n[pools.daily]\n{rules}\n")
    return config.load(path)


def volumes_of(made: BackupSet) -> list[str]:
    return [use.volume for use in made.volumes]


def restored(loaded: Config, made: BackupSet, target: Path, *names: bytes) -> dict[str, bytes]:
    with Catalog.open(loaded.catalog_path) as catalog:
        restore(loaded.open_supply(), catalog, made.set_id, names, target)
    found = [path for path in target.rglob("*") if path.is_file()]
    return {str(path.relative_to(target)): path.read_bytes() for path in found}


@pytest.mark.parametrize("streams", [1, 2])
def test_a_set_over_the_volumes_of_a_pool_comes_back(
    lab: Lab, shelf: Path, tmp_path: Path, files: dict[str, bytes], streams: int
) -> None:
    loaded = configured(lab, shelf, tmp_path, streams, "")
    made = backup(loaded)
    assert made.complete
    assert len(volumes_of(made)) >= 3
    assert "CLN001" not in volumes_of(made)
    verify(loaded.open_supply(), made.set_id, among=volumes_of(made)).require_sound()
    assert restored(loaded, made, tmp_path / "whole") == files
    one = restored(loaded, made, tmp_path / "one", b"set/file11")
    assert one == {"set/file11": files["set/file11"]}
    with Catalog.open(loaded.catalog_path) as catalog:
        known = {volume.serial: volume for volume in catalog.volumes()}
    assert set(known) == set(volumes_of(made))
    assert {volume.pool for volume in known.values()} == {"daily"}
    full = [use.volume for use in made.volumes if use.full]
    assert {s for s, v in known.items() if v.state is VolumeState.FULL} == set(full)


def test_what_has_expired_is_written_anew_and_nothing_else(
    lab: Lab, shelf: Path, tmp_path: Path, files: dict[str, bytes]
) -> None:
    loaded = configured(lab, shelf, tmp_path, 1, "keep_sets = 1")
    first, second = backup(loaded), backup(loaded)
    third = backup(loaded)  # there are six cartridges: this one needs those of the first
    assert set(volumes_of(third)) & set(volumes_of(first))
    assert not set(volumes_of(third)) & set(volumes_of(second)) - {volumes_of(second)[-1]}
    assert restored(loaded, second, tmp_path / "second") == files
    assert restored(loaded, third, tmp_path / "third") == files
    with Catalog.open(loaded.catalog_path) as catalog:
        left = {one.set_id: one.complete for one in catalog.sets()}
    assert left[second.set_id] and left[third.set_id]
    assert not left.get(first.set_id, False)


def test_without_rules_nothing_expires_and_a_full_library_stops_the_backup_by_name(
    lab: Lab, shelf: Path, tmp_path: Path, files: dict[str, bytes]
) -> None:
    loaded = configured(lab, shelf, tmp_path, 1, "")
    kept = [backup(loaded), backup(loaded)]
    with pytest.raises(NoSuchVolume, match="blank"):
        backup(loaded)
    for made in kept:
        verify(loaded.open_supply(), made.set_id, among=volumes_of(made)).require_sound()


def test_a_catalogue_made_anew_from_the_library_holds_every_volume(
    lab: Lab,
    shelf: Path,
    tmp_path: Path,
    files: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for barcode in ("SM0007L8", "SM0008L8"):
        (shelf / barcode).touch()
    loaded = configured(lab, shelf, tmp_path, 2, "keep_sets = 1")
    made = backup(loaded)
    loaded.catalog_path.unlink()
    monkeypatch.setattr(sys, "argv", ["splitmirror"])
    shell = Shell(tmp_path / "splitmirror.toml", capsys)
    assert shell.json("catalog", "rebuild")["sets"][0]["set_id"] == made.set_id
    volumes = shell.json("media", "list")["volumes"]
    assert {v["serial"]: bool(v["held"]) for v in volumes} == dict.fromkeys(volumes_of(made), True)
    assert restored(loaded, made, tmp_path / "whole") == files
    assert not {*volumes_of(backup(loaded))} & {*volumes_of(made)}
    shell("media", "release", "--all")
    assert {*volumes_of(backup(loaded))} & {*volumes_of(made)}


# --- cut off


def cut_off(loaded: Config, path: Path) -> list[Record]:
    """A backup that was killed when the first of its volumes was full; its journal."""
    assert was_killed(path, "volume full", "after")
    (directory,) = unfinished(loaded.state, loaded.source)
    return journal.read(directory)


def begun_on(records: list[Record]) -> str:
    """The volume that a run was writing to and that is not full."""
    full = {record.facts["volume"] for record in records if record.kind == "volume full"}
    (serial,) = {r.facts["volume"] for r in records if r.kind == "writing"} - full
    return str(serial)


@pytest.mark.parametrize("drives", [1, 2])
def test_a_run_of_two_streams_that_was_cut_off_is_taken_up_with_the_drives_that_are_free(
    lab: Lab, shelf: Path, tmp_path: Path, files: dict[str, bytes], drives: int
) -> None:
    for barcode in ("SM0007L8", "SM0008L8"):
        (shelf / barcode).touch()
    loaded = configured(lab, shelf, tmp_path, 2, "keep_sets = 1")
    earlier = backup(loaded)
    records = cut_off(loaded, tmp_path / "splitmirror.toml")
    assert {one.facts["stream"] for one in records if one.kind == "writing"} == {0, 1}
    with loaded.open_library() as library, ExitStack() as leases:
        if drives == 1:
            needed = library.bay_with(begun_on(records))
            assert needed is not None
            with library.lease(name=needed.name) as (bay,):
                with pytest.raises(Busy, match=begun_on(records)):
                    recover(loaded)
                library.put_away(bay)
            leases.enter_context(library.lease(name=needed.name))
        (run,) = recover(loaded)
    assert run.finished is not None, run.done
    after = journal.read(loaded.state / "runs" / run.set_id)
    streams = {one.facts["stream"] for one in after[len(records) :] if one.kind == "writing"}
    assert len(streams) == drives
    parts = [record.facts["number"] for record in after if record.kind == "part"]
    assert sorted(parts) == list(range(1, len(parts) + 1)), "none was written twice"
    assert not set(volumes_of(run.finished)) & {use.volume for use in earlier.volumes if use.full}
    for number, made in enumerate((earlier, run.finished)):
        assert restored(loaded, made, tmp_path / f"target{number}") == files


# --- failed


def test_what_a_failed_run_left_is_known_and_its_volumes_are_written_anew(
    lab: Lab, shelf: Path, tmp_path: Path, files: dict[str, bytes]
) -> None:
    loaded = configured(lab, shelf, tmp_path, 1, "keep_sets = 2")
    whole = [backup(loaded), backup(loaded)]
    with pytest.raises(NoSuchVolume, match="blank") as failed:
        backup(loaded)
    (said,) = failed.value.__notes__
    assert unfinished(loaded.state, loaded.source) == []
    with Catalog.open(loaded.catalog_path) as catalog:
        (left,) = [one for one in catalog.sets() if not one.complete]
    assert left.set_id in said and "incomplete" in said
    assert (left.source, left.database) == ("demo", "none")
    assert "blank" in left.facts["warning"]
    (last,) = volumes_of(left)  # it filled up the one on which the second set ended
    assert last == volumes_of(whole[1])[-1]
    some = restored(loaded, left, tmp_path / "some", *map(str.encode, list(files)[:2]))
    assert some.items() <= files.items() and len(some) == 2
    (shelf / "SM0007L8").touch()
    loaded = configured(lab, shelf, tmp_path, 1, "keep_sets = 1")
    for _ in range(4):  # round all cartridges, that one too
        made = backup(loaded)
    with Catalog.open(loaded.catalog_path) as catalog:
        volumes = {volume.serial: volume for volume in catalog.volumes()}
        assert left.set_id not in [one.set_id for one in catalog.sets()]
    assert [volume.held for volume in volumes.values()] == [""] * 7
    assert volumes[last].recycled > 0
    assert restored(loaded, made, tmp_path / "made") == files


class LosingConfig(Config, frozen=True, kw_only=True):
    """Its drives do not know any more where they stand, behind an object in the second part."""

    def open_drives(self) -> list[Medium]:
        lost = Fault(kind=FaultKind.LOST_POSITION, object=60, times=1)
        return [FaultyMedium(drive, [lost]) for drive in super().open_drives()]


def test_a_run_whose_drive_was_lost_waits_for_recover_and_is_gone_on_with(
    lab: Lab, shelf: Path, tmp_path: Path, files: dict[str, bytes]
) -> None:
    loaded = configured(lab, shelf, tmp_path, 1, "")
    losing = LosingConfig(**msgspec.structs.asdict(loaded))
    earlier = backup(loaded)
    with pytest.raises(DriveLost):
        backup(losing)
    with pytest.raises(NeedsRecovery):
        backup(loaded)
    (run,) = recover(loaded)
    assert run.finished is not None
    assert restored(loaded, run.finished, tmp_path / "whole") == files
    assert restored(loaded, earlier, tmp_path / "earlier") == files


def test_what_a_run_left_that_is_given_up_is_known(
    lab: Lab, shelf: Path, tmp_path: Path, files: dict[str, bytes]
) -> None:
    loaded = configured(lab, shelf, tmp_path, 1, "")
    cut_off(loaded, tmp_path / "splitmirror.toml")
    (run,) = recover(loaded, give_up=True)
    assert run.finished is None
    with Catalog.open(loaded.catalog_path) as catalog:
        (left,) = [one for one in catalog.sets() if not one.complete]
    assert left.set_id == run.set_id
    assert any(left.set_id in done for done in run.done)
    assert restored(loaded, backup(loaded), tmp_path / "next") == files
