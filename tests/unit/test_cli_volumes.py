"""The `media` commands for volumes, as a person and as a program types them, on virtual tapes."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.unit import made_sets
from tests.unit.library_lab import LibraryLab, config_of
from tests.unit.made_sets import Made, file
from tests.unit.test_cli_library import Shell

from splitmirror import config
from splitmirror.catalog import Catalog
from splitmirror.media.volume import label_volume
from splitmirror.media.walking import VolumeReader

NOW = datetime.now(UTC)
POOLS = """
[pools.nightly]
keep_sets = 1
[pools.yearly]
yearly = 10
write_once = true
"""


class Site:
    """A configuration with pools, its catalogue, and one virtual tape or a library of them."""

    def __init__(self, directory: Path, shell: Shell, library: LibraryLab | None) -> None:
        self.directory, self.shell, self.library = directory, shell, library
        medium = f"path = '{directory}/one.tap'\n"
        if library is not None:
            medium = f"shelf = '{library.directory}'\ndrives = 2\nslots = 8\n"
        text = config_of(directory / "state", f'driver = "virtualtape"\n{medium}')
        shell.path.write_text(text.replace('volume = "SM0001"', 'pool = "nightly"') + POOLS)

    @property
    def tape(self) -> Path:
        return self.directory / "one.tap"

    def put_in(self, name: str) -> None:
        """Another tape lies in the drive: another file under its name."""
        for path in (self.tape, self.tape.with_suffix(".idx")):
            path.unlink(missing_ok=True)
        (self.directory / name).touch()
        self.tape.symlink_to(self.directory / name)

    def catalog(self) -> Catalog:
        return Catalog.open(config.load(self.shell.path, needed=()).catalog_path)

    def a_set(
        self,
        set_id: str,
        nights_ago: int,
        *,
        path: Path | None = None,
        record: bool = True,
        complete: bool = True,
    ) -> Made:
        """A set, appended to the tape as a backup would."""
        medium = LibraryLab.tape(path or self.tape)
        started = NOW - timedelta(days=nights_ago)
        parts = [[file(b"data/a", set_id.encode() * 50)]]
        made = made_sets.write_set(medium, parts, set_id=set_id, started=started, complete=complete)
        if record:
            with self.catalog() as catalog:
                catalog.record(made.backup_set, made.parts, made.members)
                for volume in catalog.volumes():
                    catalog.change_volume(
                        volume.serial, lambda known: replace(known, pool=known.pool or "nightly")
                    )
        return made

    def sets_on(self, path: Path | None = None) -> list[str]:
        medium = LibraryLab.tape(path or self.tape)
        medium.load(writable=False)
        try:
            return [found.set_id for found in VolumeReader(medium).sets()]
        finally:
            medium.unload()


@pytest.fixture
def shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    monkeypatch.setattr(sys, "argv", ["splitmirror"])
    return Shell(tmp_path / "splitmirror.toml", capsys)


@pytest.fixture
def site(tmp_path: Path, shell: Shell) -> Site:
    return Site(tmp_path, shell, None)


@pytest.fixture
def library(tmp_path: Path, shell: Shell) -> Site:
    return Site(tmp_path, shell, LibraryLab(tmp_path, labelled=2, blank=2))


# --- a volume's life


def test_a_volume_is_labelled_listed_and_labelled_again_when_its_sets_have_expired(
    site: Site,
) -> None:
    site.put_in("first.tap")
    assert site.shell("media", "label", "SM0001") == "SM0001: labelled\n"
    (new,) = site.shell.json("media", "list")["volumes"]
    assert (new["serial"], new["pool"], new["state"]) == ("SM0001", "nightly", "appendable")
    site.a_set("night-3", 3)
    site.a_set("night-2", 2)
    assert "night-2 on it has not expired" in site.shell("media", "label", "SM0001", status=56)
    said = site.shell("media", "list")
    assert said.splitlines()[1].split()[:3] == ["SM0001", "nightly", "appendable"]
    assert "next in the pool nightly: SM0001 (go on at its end)" in said
    assert "next in the pool yearly: a blank volume" in said
    (listed,) = site.shell.json("media", "list")["volumes"]
    assert (listed["sets"], listed["expired"]) == (["night-3", "night-2"], ["night-3"])
    assert listed["kept_by"] == ["the set night-2 on it has not expired"]
    site.put_in("second.tap")
    site.shell("media", "label", "SM0002")
    site.a_set("night-1", 1)
    assert "may be written anew" in site.shell("media", "list").splitlines()[1]
    assert "blank" not in site.shell("media", "label", "SM0001", status=52)  # that is the other one
    site.put_in("first.tap")
    site.shell("media", "label", "SM0001")
    assert site.sets_on() == []
    assert [one["set_id"] for one in site.shell.json("list")["sets"]] == ["night-1"]
    assert site.shell.json("media", "list")["volumes"][0]["recycled"] == 1


def test_a_volume_is_lost_only_with_its_name_typed_out(site: Site) -> None:
    site.shell("media", "label", "SM0001")
    site.a_set("night-1", 1)
    assert "it is SM0001" in site.shell("media", "label", "SM0002", status=52)
    assert "--lose SM0001" in site.shell("media", "label", "SM0002", status=52)
    site.shell("media", "label", "SM0002", "--lose", "SM0009", status=52)
    assert site.sets_on() == ["night-1"]
    made = site.shell.json("media", "label", "SM0002", "--lose", "SM0001", "--pool", "yearly")
    assert [(one["serial"], one["pool"]) for one in made["volumes"]] == [("SM0002", "yearly")]
    assert site.sets_on() == []
    assert site.shell.json("list")["sets"] == []
    assert "there is no pool 'monthly'" in site.shell(
        "media", "label", "SM0002", "--pool", "monthly", status=10
    )


def test_a_held_volume_withstands_everything_until_it_is_released(site: Site) -> None:
    site.shell("media", "label", "SM0001")
    site.a_set("night-1", 1)
    site.shell("media", "hold", "SM0001", "--why", "for the auditors")
    assert "held: for the auditors" in site.shell("media", "list")
    said = site.shell("media", "label", "SM0001", "--lose", "SM0001", status=56)
    assert "held: for the auditors" in said
    assert site.sets_on() == ["night-1"]
    assert "next in the pool nightly: a blank volume" in site.shell("media", "list")
    released = site.shell.json("media", "release", "--all")["volumes"]
    assert [(one["serial"], one["held"]) for one in released] == [("SM0001", "")]
    assert site.shell("media", "release", "--all") == "no volumes\n"
    site.shell("media", "label", "SM0001", "--lose", "SM0001")
    assert site.sets_on() == []


def test_holding_needs_a_reason_and_releasing_a_name(site: Site) -> None:
    site.shell("media", "label", "SM0001")
    site.shell("media", "hold", "SM0001", status=2)
    site.shell("media", "hold", "SM0001", "--why", " ", status=2)
    site.shell("media", "release", status=2)
    site.shell("media", "release", "SM0001", "--all", status=2)
    said = site.shell("media", "hold", "SM0001", "SM0002", "--why", "both", status=54)
    assert "no volume SM0002" in said
    assert site.shell.json("media", "list")["volumes"][0]["held"] == ""  # none of them


def test_a_retired_volume_is_read_and_not_written(site: Site) -> None:
    site.shell("media", "label", "SM0001")
    site.a_set("night-1", 1)
    assert site.shell("media", "retire", "SM0001") == "SM0001: retired\n"
    assert "retired" in site.shell("media", "label", "SM0001", "--lose", "SM0001", status=56)
    assert "all that is on it is whole" in site.shell("media", "verify", "SM0001")
    site.shell("media", "retire", "SM0001", "--undo")
    assert site.shell.json("media", "list")["volumes"][0]["state"] == "full"
    site.shell("media", "retire", "SM0001", "--undo", "--lost", status=2)
    site.shell("media", "retire", "SM0009", status=54)


def test_a_volume_with_a_set_that_is_not_whole_is_told_until_that_has_expired(site: Site) -> None:
    site.shell("media", "label", "SM0001")
    site.a_set("cut-off", 2, complete=False)
    assert "a set on it is incomplete" in site.shell("media", "list")
    assert site.shell.json("media", "list")["volumes"][0]["expired"] == []
    site.a_set("night-1", 1)
    assert site.shell.json("media", "list")["volumes"][0]["expired"] == ["cut-off"]


def test_what_was_on_a_lost_volume_is_forgotten(site: Site) -> None:
    site.shell("media", "label", "SM0001")
    site.a_set("night-1", 1)
    assert site.shell("media", "retire", "SM0001", "--lost") == "SM0001: forgotten\n"
    assert site.shell("media", "list").splitlines()[0] == "no volumes"
    assert site.shell.json("list")["sets"] == []


# --- what the medium says


def test_a_lost_catalogue_is_rebuilt_and_its_volumes_are_held(site: Site) -> None:
    site.shell("media", "label", "SM0001")
    site.a_set("night-2", 2)
    site.a_set("night-1", 1)
    path = config.load(site.shell.path, needed=()).catalog_path
    for each in path.parent.glob(f"{path.name}*"):
        each.unlink()
    said = site.shell("catalog", "rebuild")
    assert "volume SM0001" in said and "held: read in from the medium" in said
    assert "media release" in said
    (volume,) = site.shell.json("media", "list")["volumes"]
    assert volume["held"] and volume["pool"] == "nightly"
    assert site.shell.json("media", "list")["next"]["nightly"]["volume"] is None
    assert "is held" in site.shell("media", "label", "SM0001", status=56)
    assert site.shell.json("catalog", "rebuild")["sets"][0]["set_id"] == "night-2"
    site.shell("media", "release", "SM0001")
    assert site.shell.json("media", "list")["next"]["nightly"]["volume"] == "SM0001"
    assert "not held" in site.shell("media", "scan")


def test_a_scan_without_a_volume_leaves_no_empty_catalogue(site: Site) -> None:
    site.shell("media", "scan", status=54)
    site.shell("media", "scan", "SM0001", status=54)
    assert not config.load(site.shell.path, needed=()).catalog_path.exists()


def test_a_scan_puts_a_volume_into_a_pool(site: Site) -> None:
    label_volume(tape := LibraryLab.tape(site.tape), "SM0001")
    tape.unload()
    scanned = site.shell.json("media", "scan", "SM0001", "--pool", "yearly")
    assert [(one["pool"], one["medium"]) for one in scanned["volumes"]] == [
        ("yearly", "virtualtape")
    ]
    site.shell("media", "scan", "--pool", "monthly", status=10)
    (listed,) = site.shell.json("media", "list")["volumes"]
    assert listed["write_once"] is True  # all of that pool's are


def test_damage_is_told_by_verify_with_its_report(site: Site) -> None:
    site.a_set("night-1", 1)
    whole = site.shell.json("media", "verify")
    assert (whole["serial"], whole["sets"][0]["damage"]) == ("SM0001", [])
    content = site.tape.read_bytes()
    site.tape.write_bytes(content.replace(b"night-1night-1", b"night-1nIght-1", 1))
    said = site.shell("media", "verify", status=65)
    assert "DAMAGED" in said and "night-1, part 1: data/a" in said
    error = site.shell.json("media", "verify", status=65)["error"]
    assert error["report"]["sets"][0]["set_id"] == "night-1"


def test_a_scan_ends_with_the_damage_of_the_labels(site: Site) -> None:
    site.a_set("night-1", 1, record=False)
    content = site.tape.read_bytes()
    site.tape.write_bytes(content.replace(b"EOF3", b"FOE3"))
    assert "DAMAGED" not in site.shell("media", "scan", status=53)
    assert site.shell.json("media", "scan", status=53)["error"]["kind"] == "MediumDamaged"


def test_everything_on_a_volume_is_told(site: Site) -> None:
    site.a_set("night-1", 1)
    said = site.shell("media", "dump").splitlines()
    assert said[0].split() == ["object", "file", "what"]
    assert said[1].split() == ["0", "0", "VOL1", "volume", "SM0001"]
    assert any("part 1 of the set night-1: complete" in line for line in said)
    assert said[-1].endswith("end of data")
    document = site.shell.json("media", "dump", "SM0001")
    assert [one["thing"] for one in document["objects"][:2]] == ["label", "label"]
    site.tape.write_bytes(b"")
    assert site.shell("media", "dump").splitlines()[1].split()[:2] == ["0", "0"]


def test_a_label_of_another_program_is_shown(site: Site) -> None:
    tape = LibraryLab.tape(site.tape)
    tape.load(writable=True)
    tape.write([b"VOL1PAY001".ljust(80)])
    tape.unload()
    said = site.shell("media", "dump")
    assert "not a label of ours" in said and "VOL1PAY001" in said


# --- with a changer


def test_in_a_library_the_barcode_says_which_cartridge_is_meant(library: Site) -> None:
    lab = library.library
    assert lab is not None
    made = library.shell.json("media", "label", "SM0003")["volumes"][0]
    assert (made["serial"], made["barcode"]) == ("SM0003", "SM0003L8")
    assert library.sets_on(lab.directory / "SM0003L8") == []
    said = library.shell("media", "label", "XY0001", "--cartridge", "SM0004L8", status=52)
    assert "cannot be volume XY0001" in said
    home = lab.where()["SM0004L8"]
    library.shell("media", "label", "SM0004", "--cartridge", str(home))
    assert library.shell.json("media", "list")["volumes"][1]["barcode"] == "SM0004L8"


def test_in_a_library_volumes_are_scanned_verified_and_told_by_serial(library: Site) -> None:
    lab = library.library
    assert lab is not None
    made = library.a_set("night-1", 1, path=lab.directory / "SM0002L8", record=False)
    assert made.parts[0].position is not None and made.parts[0].position.volume == "SM0002"
    scanned = library.shell.json("media", "scan", "SM0002")
    assert [one["set_id"] for one in scanned["sets"]] == ["night-1"]
    assert library.shell.json("media", "verify", "SM0002")["sets"][0]["files"] == 1
    document = library.shell.json("media", "dump", "SM0001L8")
    assert document["barcode"] == "SM0001L8"
    assert document["objects"][0]["words"] == "volume SM0001"
    lab.labelled("SM0007L8", "SM0009")  # not what its barcode says
    library.shell("media", "verify", "SM0007", status=52)
    assert library.shell.json("media", "dump", "SM0007")["objects"][0]["words"] == "volume SM0009"
