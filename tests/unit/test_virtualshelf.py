"""The virtual library: its directory, and the state that every process sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitmirror.errors import ChangerError, NoSuchVolume
from splitmirror.media.virtualshelf import ShelfDrive, VirtualShelf
from splitmirror.media.virtualtape import VirtualTape

FIRST, DOOR, DRIVE = 1000, 100, 1


def shelf(directory: Path, *, drives: int = 1, slots: int = 3, doors: int = 1) -> VirtualShelf:
    return VirtualShelf(directory, drives=drives, slots=slots, doors=doors)


def where(there: VirtualShelf) -> dict[str, int]:
    return {slot.barcode: slot.address for slot in there.inventory() if slot.full}


def cartridges(directory: Path, *barcodes: str) -> None:
    for barcode in barcodes:
        (directory / barcode).touch()


def test_files_named_as_barcodes_are_cartridges_and_others_are_not(tmp_path: Path) -> None:
    cartridges(tmp_path, "SM0001L8", "CLN001L1", "SM0001L8.idx", "notes.txt", ".hidden", "sm0002")
    assert where(shelf(tmp_path)) == {"CLN001L1": FIRST, "SM0001L8": FIRST + 1}


def test_what_is_new_takes_nobodys_place(tmp_path: Path) -> None:
    cartridges(tmp_path, "B00001")
    there = shelf(tmp_path, slots=2)
    assert where(there) == {"B00001": FIRST}
    there.move(FIRST, DRIVE)
    cartridges(tmp_path, "A00001", "C00001", "D00001")
    # The last but one is laid into the door, and for the last there is no room
    assert where(there) == {"B00001": DRIVE, "A00001": FIRST + 1, "C00001": DOOR}
    there.move(DRIVE, FIRST)
    assert where(there)["B00001"] == FIRST


def test_what_was_taken_out_is_gone_and_comes_back_as_new(tmp_path: Path) -> None:
    cartridges(tmp_path, "A00001", "B00001")
    there = shelf(tmp_path)
    there.move(FIRST, DRIVE)
    (tmp_path / "A00001").unlink()
    assert where(there) == {"B00001": FIRST + 1}
    cartridges(tmp_path, "A00001")
    assert where(there) == {"B00001": FIRST + 1, "A00001": FIRST}


def test_slots_that_the_configuration_has_no_more_are_emptied(tmp_path: Path) -> None:
    cartridges(tmp_path, "A00001", "B00001")
    larger = shelf(tmp_path, drives=2)
    larger.move(FIRST, 2)
    assert where(shelf(tmp_path, drives=1)) == {"A00001": FIRST, "B00001": FIRST + 1}


def test_a_damaged_state_is_told_and_nothing_is_guessed(tmp_path: Path) -> None:
    cartridges(tmp_path, "A00001")
    there = shelf(tmp_path)
    there.inventory()
    state = tmp_path / ".library.json"
    state.write_bytes(state.read_bytes()[:-3])
    with pytest.raises(ChangerError, match="damaged") as told:
        there.inventory()
    assert "Remove it" in told.value.hint
    state.unlink()
    assert where(there) == {"A00001": FIRST}


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ChangerError, match="No such file"):
        shelf(tmp_path / "nowhere").inventory()


def test_a_drive_without_a_cartridge_has_no_volume(tmp_path: Path) -> None:
    cartridges(tmp_path, "A00001")
    there = shelf(tmp_path)
    limits = VirtualTape.limits
    drive = ShelfDrive(
        there, DRIVE, limits, lambda path: VirtualTape(path, capacity=None, early_warning=0)
    )
    with pytest.raises(NoSuchVolume, match="no cartridge"):
        drive.load(writable=True)
    there.move(FIRST, DRIVE)
    drive.load(writable=True)
    drive.write([b"record"])
    drive.eject()
    drive.eject()
    there.move(DRIVE, FIRST)
    with pytest.raises(NoSuchVolume, match="no cartridge"):
        drive.load(writable=False)
    assert (tmp_path / "A00001").stat().st_size > 0
