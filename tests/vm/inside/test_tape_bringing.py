"""Volumes in drives of st's, brought by a changer of ch's: the library, its leases, commands."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.library_lab import config_of
from tests.vm.vtl.cartridge import MIB
from tests.vm.vtl.library import Library as Emulated
from tests.vm.vtl.library import cartridges
from tests.vm.vtl.service import Shape

from splitmirror import config, doctor
from splitmirror.cli import main
from splitmirror.errors import Busy, WrongMedium
from splitmirror.media.library import Library
from splitmirror.media.scsichanger import ScsiChanger
from splitmirror.media.tape import Settings, open_drives
from splitmirror.media.volume import label_volume
from splitmirror.media.walking import VolumeReader

NAMES = ("SM0001L8", "SM0002L8", "SM0003L8")
OUTSIDE = ("SM0009L8", "SM0010L8")
CLEANING = "CLN001L1"


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulated]:
    """Four slots are full, and two cartridges lie outside; those of NAMES are volumes, but the
    last, which is blank."""
    data = cartridges(*NAMES, capacity=8 * MIB)
    rest = cartridges(*OUTSIDE, capacity=8 * MIB)
    shape = Shape(slots=4, doors=2, cartridges=(*data, *cartridges(CLEANING, cleaning=True), *rest))
    with Emulated(shape, tmp_path_factory.mktemp("vtl")) as emulated:
        yield emulated


@pytest.fixture(scope="module")
def settings(emulated: Emulated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drives in another order than the changer's."""
    directory = tmp_path_factory.mktemp("config")
    path = directory / "splitmirror.toml"
    drives = json.dumps(emulated.drives[::-1])
    medium = f'driver = "tape"\ndrives = {drives}\nchanger = "{emulated.changer}"\n'
    path.write_text(config_of(directory / "state", medium))
    return path


@pytest.fixture
def library(settings: Path) -> Iterator[Library]:
    with config.load(settings, needed=config.TO_READ).open_library() as library:
        yield library


# The tests go on from one another: each leaves the drives empty, and every cartridge in its slot.


def test_drives_are_found_by_their_serial_numbers(emulated: Emulated, library: Library) -> None:
    assert [bay.name for bay in library.bays] == emulated.drives[::-1]
    assert [bay.address for bay in library.bays] == list(emulated.bays[::-1])


def test_blanks_are_brought_and_labelled_by_their_barcodes(
    emulated: Emulated, library: Library
) -> None:
    with library.lease(2) as bays:
        for bay, wanted in zip(bays, ("SM0001", "SM0002"), strict=True):
            assert library.bring_blank(bay, ()) == wanted
            label_volume(bay.medium, wanted)
        assert emulated.where()["drives"] == ["SM0002L8", "SM0001L8"]
        for bay in bays:
            library.put_away(bay)
    assert emulated.where()["slots"] == [*NAMES, CLEANING]


def test_a_volume_is_brought_is_the_one_and_goes_back(emulated: Emulated, library: Library) -> None:
    with library.lease() as (bay,):
        for serial in ("SM0001", "SM0002"):
            library.bring(bay, serial, writable=True)
            assert VolumeReader(bay.medium).serial == serial
        assert emulated.where()["slots"] == ["SM0001L8", None, "SM0003L8", CLEANING]
        library.bring(bay, "SM0002", writable=False)  # it is there
        library.put_away(bay)
    assert emulated.where()["slots"] == [*NAMES, CLEANING]


def test_a_label_that_is_not_the_barcodes_is_the_wrong_medium(
    emulated: Emulated, library: Library
) -> None:
    emulated.set("SM0001L8", barcode="SM0007L8")
    lengths = emulated.lengths("SM0001L8")
    with library.lease() as (bay,):
        with pytest.raises(WrongMedium, match="SM0007L8 is not volume SM0007"):
            library.bring(bay, "SM0007", writable=True)
        library.put_away(bay)
    emulated.set("SM0001L8", barcode="SM0001L8")
    assert emulated.lengths("SM0001L8") == lengths


HOLDER = """
import sys
from pathlib import Path
from splitmirror import config
with config.load(Path(sys.argv[1]), needed=config.TO_READ).open_library() as library:
    with library.lease() as (bay,):
        library.bring(bay, "SM0001", writable=True)
        print(bay.name, flush=True)
        sys.stdin.read()
"""


def test_a_drive_of_another_process_is_refused_until_that_is_killed(
    emulated: Emulated, library: Library, settings: Path
) -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLDER, str(settings)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        theirs = other.stdout.readline().strip()
        with library.lease(2) as (bay,):
            assert bay.name != theirs
            with pytest.raises(Busy, match=f"process {other.pid}"):
                library.bring(bay, "SM0001", writable=False)
        other.kill()
    with library.lease(name=bay.name) as (bay,):
        library.bring(bay, "SM0001", writable=True)  # out of the drive in which it was left
        library.put_away(bay)
    assert emulated.where()["slots"] == [*NAMES, CLEANING]


def test_an_operator_lays_what_is_asked_for_into_the_door(
    emulated: Emulated, settings: Path
) -> None:
    """And leaves the door open meanwhile."""
    asked: list[str] = []

    def operator(wanted: str) -> None:
        asked.append(wanted)
        if len(asked) == 1:
            emulated.changer_fault(door_open=True)
        elif len(asked) == 2:
            emulated.changer_fault(door_open=False)
            emulated.put_in(0, OUTSIDE[0])

    drives = open_drives(Settings(drives=emulated.drives))
    leases = config.load(settings, needed=()).state / "leases"
    with Library(drives, ScsiChanger(emulated.changer), leases=leases, ask=operator) as library:
        with library.lease() as (bay,):
            library.fetch(bay, "SM0009")
            assert library.look(bay) == "a blank volume is in it"
        assert emulated.where()["drives"] == [OUTSIDE[0], None]
        assert "its door is open" in asked[1]
        library.to_door("SM0009")
    assert emulated.take_out(0) == OUTSIDE[0]


def test_the_commands(
    emulated: Emulated,
    settings: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In this process: to start another takes the guest four seconds."""

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["splitmirror", "media", *words, "-c", str(settings)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return capsys.readouterr().out

    emulated.put_in(1, OUTSIDE[1])
    run("eject", "SM0003")
    assert emulated.take_out(0) == "SM0003L8"
    assert f"{OUTSIDE[1]} is in slot" in run("import")
    assert emulated.where()["slots"] == ["SM0001L8", "SM0002L8", OUTSIDE[1], CLEANING]
    said = run("load", "SM0002", "--drive", emulated.drives[0])
    assert said == f"SM0002L8 is in {emulated.drives[0]}: volume SM0002\n"
    shown = json.loads(run("inventory", "--look", "--json"))
    drives = {slot["device"]: slot for slot in shown["slots"] if slot["kind"] == "drive"}
    assert drives["VTLDRIVE0"]["barcode"] == "SM0002L8"
    assert not drives["VTLDRIVE1"]["full"]
    assert "SM0002L8 is in slot" in run("unload")
    assert emulated.where()["drives"] == [None, None]


def test_doctor_tells_the_library(emulated: Emulated, settings: Path) -> None:
    before = emulated.where()
    findings = list(doctor._medium(config.load(settings, needed=config.TO_READ)))
    assert not [each for each in findings if each.problem is not None]
    said = "\n".join(each.what for each in findings)
    assert "4 storage and 2 import/export slots, 4 cartridges" in said
    assert f"drive {emulated.drives[0]}: the changer's {emulated.bays[0]} (VTLDRIVE0)" in said
    assert "volume SM0001: SM0001L8 in storage slot" in said
    assert emulated.where() == before
