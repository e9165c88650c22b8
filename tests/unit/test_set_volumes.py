"""What is told of a set's volumes: in the catalogue, in the set's own, on the terminal; and the one
volume that needs no library."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.made_sets import a_set, blank, file, write_set
from tests.unit.test_catalog_volumes import of_version_1

from splitmirror import config
from splitmirror.archive.set_catalogue import set_document, set_of
from splitmirror.catalog import Catalog, Lookup
from splitmirror.cli import show
from splitmirror.errors import ConfigError, EndOfMedium, WrongMedium
from splitmirror.media.memory import Memory
from splitmirror.media.supply import OneVolume
from splitmirror.model import WARNING, BackupSet, VolumeUse

USES = (
    VolumeUse(
        volume="SM0001", parts=12, bytes=96 << 30, full=True, stalls=3, stalled_s=12.5,
        notes=("the leg gave 80.0 MiB/s, the drive needs 112.0 MiB/s to stream",),
    ),
    VolumeUse(volume="SM0002", parts=1, bytes=5 << 20),
)  # fmt: skip


@pytest.fixture
def made() -> BackupSet:
    return a_set("orders-1", volumes=USES)


def test_the_catalogue_gives_back_what_was_recorded_of_the_volumes(
    made: BackupSet, tmp_path: Path
) -> None:
    with Catalog.open(tmp_path / "catalog.db") as catalog:
        catalog.record(made, [], [])
        assert catalog.get("orders-1") == made


def test_a_catalogue_of_the_first_version_gets_the_column(made: BackupSet, tmp_path: Path) -> None:
    path = of_version_1(tmp_path / "catalog.db")
    with Lookup.open_to_read(path) as looked:
        assert [known.volumes for known in looked.sets()] == [(), ()]
    with Catalog.open(path) as catalog:
        catalog.record(made, [], [])
        assert catalog.get("orders-1") == made


def test_the_sets_own_catalogue_names_the_volumes(made: BackupSet) -> None:
    line = set_document(made)
    assert [use["volume"] for use in json.loads(line)["volumes"]] == ["SM0001", "SM0002"]
    assert set_of(line) == made
    document = json.loads(line)
    del document["volumes"]  # as it was before there were several
    assert set_of(json.dumps(document).encode()).volumes == ()


def test_a_person_is_told_of_stalls_and_why(
    made: BackupSet, capsys: pytest.CaptureFixture[str]
) -> None:
    show.print_set(made)
    said = capsys.readouterr().out
    assert "volume SM0001: 12 parts, 96.0 GiB, full; its drive stood still 3 times, 12.5 s" in said
    assert "the drive needs 112.0 MiB/s to stream" in said
    assert "volume SM0002: 1 part, 5.0 MiB\n" in said


def test_a_person_is_told_why_a_set_is_not_whole(
    made: BackupSet, capsys: pytest.CaptureFixture[str]
) -> None:
    left = replace(made, complete=False, facts={WARNING: "given up behind 3 parts: no volume"})
    show.print_set(left)
    assert "\n  given up behind 3 parts: no volume\n" in capsys.readouterr().out


@pytest.mark.parametrize("streams", [0, -1, 17])
def test_a_number_of_streams_that_cannot_be_is_refused(streams: int) -> None:
    with pytest.raises(ConfigError, match="streams"):
        config.BackupOptions(streams=streams)


# --- one volume in one drive


@pytest.fixture
def drive() -> Memory:
    medium = blank()
    write_set(medium, [[file(b"data/a", b"a")]])
    return medium


def test_the_volume_in_the_drive_is_at_hand_and_is_let_go(drive: Memory) -> None:
    supply = OneVolume(drive)
    assert supply.at_hand() == ["SM0001"]
    with supply.to_read("SM0001") as (medium, volume):
        assert medium is drive and volume.serial == "SM0001"
    Memory(drive.cartridge).load(writable=True)


def test_another_volume_is_wanted_by_name(drive: Memory) -> None:
    supply = OneVolume(drive)
    with pytest.raises(WrongMedium, match="volume SM0002, and volume SM0001 is loaded"):
        supply.to_read("SM0002").__enter__()
    with pytest.raises(WrongMedium, match="volumes SM0002, SM0003") as caught:
        supply.require(["SM0001", "SM0002", "SM0003"])
    assert caught.value.hint
    supply.require(["SM0001"])


def test_it_is_labelled_when_it_is_first_written_and_never_when_a_run_goes_on() -> None:
    supply = OneVolume(blank(), "SM0009")
    with pytest.raises(WrongMedium, match="blank"):
        supply.again(0, "SM0009")
    assert supply.next_volume(0, ()).serial == "SM0009"
    supply.close()
    assert supply.again(0, "SM0009").serial == "SM0009"
    with pytest.raises(WrongMedium, match="SM0001 is wanted"):
        supply.again(0, "SM0001")


def test_there_is_no_other_when_it_is_full(drive: Memory) -> None:
    supply = OneVolume(drive, "SM0001")
    with pytest.raises(EndOfMedium, match="SM0001 is full, and it is the only one") as caught:
        supply.next_volume(0, {"SM0001"})
    assert caught.value.hint


def test_before_a_backup_it_is_looked_at_and_left_as_it_is(drive: Memory) -> None:
    before = list(drive.cartridge.objects)
    OneVolume(drive, "SM0001").look()
    OneVolume(blank(), "SM0001").look()
    with pytest.raises(WrongMedium, match="SM0007 is wanted"):
        OneVolume(drive, "SM0007").look()
    assert drive.cartridge.objects == before
