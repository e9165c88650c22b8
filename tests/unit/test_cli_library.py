"""The `media` commands for drives and the changer, and what doctor says of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.library_lab import CLEANING, LibraryLab, config_of

from splitmirror import config, doctor
from splitmirror.cli import main
from splitmirror.errors import ChangerError
from splitmirror.media.librarycheck import examine
from splitmirror.media.virtualtape import VirtualTape
from splitmirror.media.volume import label_volume
from splitmirror.model import Finding
from splitmirror.testing.changers import Trouble


class Shell:
    """Runs commands in this process."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self._capsys = capsys

    def __call__(self, *words: str, status: int = 0) -> str:
        """What the command says, on standard error too."""
        return "".join(self._run(*words, status=status))

    def json(self, *words: str, status: int = 0) -> Any:
        said, _ = self._run(*words, "--json", status=status)
        return json.loads(said.splitlines()[-1])

    def _run(self, *words: str, status: int) -> tuple[str, str]:
        sys.argv[1:] = [*words, "--config", str(self.path)]
        with pytest.raises(SystemExit) as ended:
            main()
            sys.exit(0)
        told = self._capsys.readouterr()
        assert (ended.value.code or 0) == status, told
        return told.out, told.err


@pytest.fixture
def lab(tmp_path: Path) -> LibraryLab:
    lab = LibraryLab(tmp_path, blank=1, doors=2)
    lab.leases = tmp_path / "state" / "leases"
    return lab


@pytest.fixture
def shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    """On the library, where there is one, else on one virtual tape."""
    monkeypatch.setattr(sys, "argv", ["splitmirror"])
    path = tmp_path / "splitmirror.toml"
    shelf = tmp_path / "shelf"
    medium = f"path = '{tmp_path}/one.tap'\n"
    if shelf.exists():
        medium = f"shelf = '{shelf}'\ndrives = 2\nslots = 8\ndoors = 2\n"
    path.write_text(config_of(tmp_path / "state", f'driver = "virtualtape"\n{medium}'))
    return Shell(path, capsys)


# --- with a changer


def test_the_inventory_shows_every_slot(lab: LibraryLab, shell: Shell) -> None:
    lab.move("SM0002L8", 2)
    with lab.library().lease(name="2"):
        said = shell("media", "inventory", "--look")
        found = shell.json("media", "inventory")
    rows = {line.split()[0]: line for line in said.splitlines()}
    assert len(rows) == 1 + 2 + 2 + 8
    assert rows["1"].split()[1:3] == ["drive", "-"]
    assert "SM0002L8" in rows["2"]
    assert "shelf:drive2, process" in rows["2"]
    assert f"from slot {lab.shelf.inventory()[1].source}" in rows["2"]
    assert rows["100"].split()[1] == "import/export"
    assert rows["1000"].split()[2:] == [CLEANING, "for", "cleaning"]
    assert [drive["user"] is None for drive in found["drives"]] == [True, False]
    assert {slot["barcode"] for slot in found["slots"] if slot["full"]} == set(lab.where())


def test_load_and_unload(lab: LibraryLab, shell: Shell) -> None:
    home = lab.where()
    assert "SM0002L8 is in" in (said := shell("media", "load", "SM0002", "--drive", "2"))
    assert said.endswith("drive2: volume SM0002\n")
    assert lab.where()["SM0002L8"] == 2
    assert shell.json("media", "load", "SM0002L8")["drive"].endswith("drive2")  # it is there
    told = shell.json("media", "load", str(home["SM0004L8"]), "--drive", "1")
    assert (told["barcode"], told["label"]) == ("SM0004L8", "a blank volume is in it")
    unloaded = shell.json("media", "unload", "SM0002")["unloaded"]
    assert [(each["barcode"], each["slot"]) for each in unloaded] == [
        ("SM0002L8", home["SM0002L8"])
    ]
    assert "SM0004L8 is in slot" in shell("media", "unload")
    assert lab.where() == home
    assert "nothing to unload" in shell("media", "unload")
    assert "is in none of the drives" in shell("media", "unload", "SM0002", status=55)


def test_load_leaves_a_drive_alone_that_a_run_uses(lab: LibraryLab, shell: Shell) -> None:
    library = lab.library()
    with library.lease() as (bay,):
        library.bring(bay, "SM0001", writable=True)
        assert "which process" in shell("media", "load", "SM0001", status=20)
        assert "no drive is free" in shell("media", "load", "SM0002", "--drive", "1", status=20)
        assert "drive2" in shell("media", "load", "SM0002")
        assert lab.where()["SM0001L8"] == bay.address
        assert "SM0002L8" in shell("media", "unload")  # that of the run stays
        assert lab.where()["SM0001L8"] == bay.address


def test_load_tells_a_label_that_is_not_what_the_barcode_says(
    lab: LibraryLab, shell: Shell
) -> None:
    lab.labelled("SM0007L8", "SM0009")
    said = shell("media", "load", "SM0007", status=52)
    assert "SM0007L8 is not what its barcode says: its label says SM0009" in said


def test_what_is_not_in_the_library_is_not_waited_for_without_a_notice(
    lab: LibraryLab, shell: Shell
) -> None:
    told = shell.json("media", "load", "SM0099", status=54)["error"]
    assert "Put volume SM0099 into the library" in told["message"]
    assert "notify" in told["hint"]


def test_a_cleaning_cartridge_is_not_loaded(lab: LibraryLab, shell: Shell) -> None:
    assert "cleaning cartridge" in shell("media", "load", CLEANING, status=55)


def test_eject_and_import(lab: LibraryLab, shell: Shell) -> None:
    shell("media", "load", "SM0001")
    assert "SM0001L8 is in import/export slot 100: take it out" in shell("media", "eject", "SM0001")
    assert shell.json("media", "eject", CLEANING)["slot"] == 101
    assert "no import/export slot is free" in shell("media", "eject", "SM0002", status=55)
    imported = shell.json("media", "import")["imported"]
    assert [(each["from"], each["barcode"]) for each in imported] == [
        (100, "SM0001L8"),
        (101, CLEANING),
    ]
    assert "nothing to import" in shell("media", "import")
    assert "say which" in shell("media", "eject", status=2)


# --- one virtual tape


def test_one_virtual_tape_is_a_drive_that_is_fed_by_hand(tmp_path: Path, shell: Shell) -> None:
    tape = VirtualTape(tmp_path / "one.tap", capacity=None, early_warning=0)
    label_volume(tape, "SM0001")
    tape.unload()
    (drive,) = shell.json("media", "inventory")["drives"]
    assert (drive["name"], drive["label"]) == (f"{tmp_path}/one.tap", "SM0001")
    assert shell("media", "inventory") == f"{tmp_path}/one.tap: volume SM0001\n"
    assert "volume SM0001" in shell("media", "load", "SM0001")
    assert "Put volume SM0002" in shell("media", "load", "SM0002", status=54)
    assert "let out" in shell("media", "unload")
    assert "let out" in shell("media", "eject")
    assert "there is no changer" in shell("media", "import", status=55)
    with config.load(shell.path, needed=config.TO_READ).open_library() as library, library.lease():
        assert "process" in shell("media", "inventory")


# --- doctor


def told(findings: list[Finding]) -> str:
    return "\n".join(f"{each.what}: {each.problem or ''}" for each in findings)


def found(shell: Shell) -> list[Finding]:
    """What doctor says of the medium."""
    return list(doctor._medium(config.load(shell.path, needed=config.TO_READ)))


def test_doctor_tells_the_changer_its_drives_and_where_the_volume_is(
    lab: LibraryLab, shell: Shell
) -> None:
    before = lab.where()
    findings = found(shell)
    assert not [each for each in findings if each.problem is not None]
    said = told(findings)
    assert "changer: 8 storage and 2 import/export slots, 5 cartridges" in said
    assert "shelf:drive2: the changer's 2" in said
    assert "volume SM0001: SM0001L8 in storage slot" in said
    assert lab.where() == before


def test_doctor_tells_that_the_volume_is_not_there(lab: LibraryLab, shell: Shell) -> None:
    (lab.directory / "SM0001L8").unlink()
    problems = [each for each in found(shell) if each.problem is not None]
    assert [str(each.problem) for each in problems] == ["volume SM0001 is not in the library"]
    assert not problems[0].warning


def test_doctor_looks_for_the_volumes_of_a_pool_or_for_a_blank_one(
    lab: LibraryLab, shell: Shell
) -> None:
    text = shell.path.read_text().replace('volume = "SM0001"', 'pool = "daily"')
    shell.path.write_text(text + "[pools.daily]\nkeep_sets = 2\n")
    (lab.directory / "SM0004L8").touch()  # nothing of it is known, so it may be a blank one
    findings = found(shell)
    assert not [each for each in findings if each.problem is not None]
    assert "a blank volume: SM0001L8 in storage slot" in told(findings)
    for cartridge in lab.directory.glob("SM*"):
        cartridge.unlink()
    problems = [str(each.problem) for each in found(shell) if each.problem is not None]
    assert problems == ["a blank volume is not in the library"]


def test_doctor_tells_that_the_changer_cannot_be_reached(lab: LibraryLab, shell: Shell) -> None:
    lab.directory.rename(lab.directory.with_name("elsewhere"))
    with pytest.raises(ChangerError, match="cannot be used"):
        found(shell)
    loaded = config.load(shell.path, needed=config.TO_READ)
    assert doctor._left_on_medium(loaded) is None  # that is told once


@pytest.mark.parametrize(
    ("spoil", "said", "warning"),
    [
        (lambda lab: lab.unread("SM0002L8"), "no barcode can be read in slot", True),
        (lambda lab: lab.fill(), "no free storage slot for SM0003L8", True),
    ],
)
def test_what_could_keep_the_library_from_working_is_a_warning(
    spoil: Callable[[Any], None], said: str, warning: bool, tmp_path: Path
) -> None:
    lab = Spoilt(tmp_path)
    spoil(lab)
    problems = [each for each in examine(lab.library(), ["SM0001"]) if each.problem is not None]
    assert [said in str(each.problem) for each in problems] == [True]
    assert problems[0].warning is warning


class Spoilt(LibraryLab):
    def unread(self, barcode: str) -> None:
        self.troubles.add((Trouble.UNREADABLE, self.where()[barcode]))

    def fill(self) -> None:
        self.move("SM0003L8", 1)
        while free := [s for s in self.shelf.inventory() if s.address >= 1000 and not s.full]:
            self.hand_in(f"XX{len(free):04}L8", free[0].address)


def test_a_blank_will_do_for_a_pool(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path, labelled=1, blank=1)
    (*_, last) = examine(lab.library(), [], taken=["SM0001"])
    assert (last.what, last.problem) == (f"a blank volume: SM0002L8 in storage slot {1002}", None)
    (*_, last) = examine(lab.library(), ["SM0008"], taken=["SM0001", "SM0002"])
    assert str(last.problem) == "volume SM0008 is not in the library"


def test_a_library_without_barcodes_is_not_said_to_lack_the_volume(tmp_path: Path) -> None:
    lab = Spoilt(tmp_path)
    for barcode in lab.where():
        lab.unread(barcode)
    (*_, last) = examine(lab.library(), ["SM0001"])
    assert last.problem is None
    assert "reads no barcodes" in last.what
