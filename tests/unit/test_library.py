"""The library over the virtual changer: what is brought, what is left alone, who is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.library_lab import CLEANING, LibraryLab, Operator

from splitmirror.errors import (
    Busy,
    ChangerError,
    ChangerNotReady,
    ConfigError,
    MediumError,
    NoSuchVolume,
    PrivilegeError,
    WrongMedium,
)
from splitmirror.media import Medium
from splitmirror.media.leases import Leases
from splitmirror.media.library import Library
from splitmirror.media.memory import Cartridge, Memory
from splitmirror.media.volume import label_volume, open_for_append
from splitmirror.media.walking import VolumeReader
from splitmirror.testing.changers import Trouble
from splitmirror.testing.faulty_media import Fault, FaultKind, FaultyMedium

HOME = 1000  # the first storage slot; the lab's cartridges lie in it and those behind it
DOOR = 100


# --- bringing


def test_a_volume_is_brought_loaded_and_is_the_one(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    with lab.library().lease() as (bay,):
        library = lab.library()
        library.bring(bay, "SM0002", writable=True)
        assert VolumeReader(bay.medium).serial == "SM0002"
        bay.medium.locate(1)
        bay.medium.write([b"more"])  # it can be written


def test_the_volume_before_goes_back_to_its_slot(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    home = lab.where()
    library = lab.library()
    with library.lease() as (bay,):
        library.bring(bay, "SM0002", writable=False)
        library.bring(bay, "SM0001", writable=False)
        assert lab.where() == home | {"SM0001L8": bay.address}
        library.put_away(bay)
        assert lab.where() == home
        library.put_away(bay)  # of an empty drive: harmless


def test_a_drive_that_holds_the_volume_is_used_as_it_is(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    lab.move("SM0003L8", 1)
    lab.troubles |= {(Trouble.MOVE_REFUSED, 1)}  # it need not be moved
    library = lab.library()
    with library.lease() as (bay,):
        library.bring(bay, "SM0003", writable=True)
        library.bring(bay, "SM0003", writable=False)


def test_a_lease_takes_the_drive_that_holds_a_wanted_volume(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    lab.move("SM0003L8", 2)
    library = lab.library()
    with library.lease(rather=["SM0003"]) as (bay,):
        assert bay.address == 2


def test_a_volume_that_idles_in_another_drive_is_fetched_from_there(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    lab.move("SM0003L8", 2)
    library = lab.library()
    with library.lease() as (bay,):
        library.bring(bay, "SM0003", writable=True)
        assert lab.where()["SM0003L8"] == bay.address == 1


def test_a_volume_in_a_drive_that_another_uses_is_busy(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    library, other = lab.library(), lab.library()
    with other.lease() as (theirs,), library.lease() as (ours,):
        other.bring(theirs, "SM0001", writable=True)
        with pytest.raises(Busy, match=f"SM0001L8 is in .*drive1, which process {os.getpid()} "):
            library.bring(ours, "SM0001", writable=False)
        library.bring(ours, "SM0002", writable=False)  # and the rest of the library is free
        assert VolumeReader(theirs.medium).serial == "SM0001"


def test_a_volume_is_taken_straight_from_the_door(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    lab.move("SM0001L8", DOOR)
    library = lab.library()
    with library.lease() as (bay,):
        library.bring(bay, "SM0001", writable=False)
        library.put_away(bay)
        assert lab.where()["SM0001L8"] == HOME + 1  # that of the cleaning cartridge is before it


def test_a_full_library_has_no_room_for_what_is_in_the_drive(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path, labelled=2, slots=3)
    home = lab.where()["SM0001L8"]
    lab.move("SM0001L8", 1)
    lab.hand_in("SM0008L8", home)
    library = lab.library()
    with library.lease() as (bay,), pytest.raises(ChangerError, match="no free storage slot"):
        library.bring(bay, "SM0002", writable=False)
    assert lab.where()["SM0001L8"] == 1


# --- the label has the last word


def test_a_label_that_is_not_what_the_barcode_says_is_the_wrong_medium(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    lab.labelled("SM0007L8", "SM0009")
    library = lab.library()
    with library.lease() as (bay,):
        with pytest.raises(WrongMedium, match=r"SM0007L8 is not volume SM0007.*says SM0009"):
            library.bring(bay, "SM0007", writable=True)
        with pytest.raises(MediumError):  # and it is not loaded, least of all writable
            bay.medium.tell()


@pytest.mark.parametrize(
    ("contents", "why"), [(b"", "blank"), (b"another program's" * 10, "not a label|no virtual")]
)
def test_a_volume_without_our_label_is_the_wrong_medium_and_left_as_it_is(
    contents: bytes, why: str, tmp_path: Path
) -> None:
    lab = LibraryLab(tmp_path)
    (lab.directory / "SM0007L8").write_bytes(contents)
    library = lab.library()
    told = pytest.raises(WrongMedium, match=f"SM0007L8 is not volume SM0007.*({why})")
    with library.lease() as (bay,), told:
        library.bring(bay, "SM0007", writable=True)
    assert (lab.directory / "SM0007L8").read_bytes() == contents


def test_two_cartridges_that_could_be_the_volume_are_an_error(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    lab.labelled("SM0001L7", "SM0001")
    library = lab.library()
    with library.lease() as (bay,), pytest.raises(ChangerError, match="more than one cartridge"):
        library.bring(bay, "SM0001", writable=False)


# --- blanks


def test_a_blank_is_brought_and_can_be_labelled_with_its_barcode(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path, blank=2)
    library = lab.library()
    with library.lease() as (bay,):
        serial = library.bring_blank(bay, {"SM0001", "SM0002", "SM0003"})
        assert serial == "SM0004"
        label_volume(bay.medium, serial)
        bay.medium.unload()
        with open_for_append(bay.medium, serial):
            pass
        assert library.bring_blank(bay, {"SM0001", "SM0002", "SM0003"}) == "SM0005"


def test_what_is_not_blank_is_passed_over_and_left_as_it_is(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path, blank=1)
    (lab.directory / "AA0001L8").write_bytes(b"of another program" * 9)
    before = {each.name: each.read_bytes() for each in lab.directory.glob("[A-Z]*L8")}
    library = lab.library()
    with library.lease() as (bay,):
        assert library.bring_blank(bay, ()) == "SM0004"  # the catalogue knew of none of the others
    assert {each.name: each.read_bytes() for each in lab.directory.glob("[A-Z]*L8")} == before


def test_a_blank_is_never_a_cleaning_cartridge_and_one_is_asked_for(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path, labelled=0)
    operator = Operator(lambda: lab.hand_in("SM0020L8"))
    library = lab.library(operator)
    with library.lease() as (bay,):
        assert library.bring_blank(bay, ()) == "SM0020"
    assert len(operator.asked) == 1
    assert "blank" in operator.asked[0]


def test_a_cartridge_that_cannot_be_read_is_passed_over_and_two_are_the_drive(
    tmp_path: Path,
) -> None:
    lab = LibraryLab(tmp_path, labelled=0, blank=2)
    times: list[int | None] = [1, None]
    for strikes in times:
        fault = Fault(kind=FaultKind.READ_ERROR, object=0, times=strikes)
        drive = FaultyMedium(lab.drives()[0], [fault])
        library = Library([drive], lab.shelf, leases=lab.leases, ask=Operator())
        with library.lease() as (bay,):
            if strikes is not None:
                assert library.bring_blank(bay, ()) == "SM0002"
                continue
            with pytest.raises(MediumError):
                library.bring_blank(bay, ())


# --- cleaning cartridges


def test_a_cleaning_cartridge_is_not_loaded(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    library = lab.library()
    with library.lease() as (bay,):
        for what in (CLEANING, str(lab.where()[CLEANING])):
            with pytest.raises(ChangerError, match="cleaning cartridge"):
                library.fetch(bay, what)
        with pytest.raises(NoSuchVolume):
            library.bring(bay, CLEANING[:6], writable=False)
    assert lab.where()[CLEANING] >= HOME


def test_a_drive_that_is_being_cleaned_is_busy(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    lab.move(CLEANING, 1)
    library = lab.library()
    with library.lease() as (bay,):
        with pytest.raises(Busy, match="being cleaned"):
            library.bring(bay, "SM0001", writable=False)
        with pytest.raises(Busy, match="being cleaned"):
            library.put_away(bay)
    assert lab.where()[CLEANING] == 1


# --- troubles


def test_a_volume_that_is_not_in_the_library_is_asked_for(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    elsewhere = tmp_path / "SM0001L8"
    (lab.directory / "SM0001L8").rename(elsewhere)

    def put_in() -> None:
        lab.hand_in("SM0001L8")
        elsewhere.rename(lab.directory / "SM0001L8")

    operator = Operator(lambda: None, put_in)
    library = lab.library(operator)
    with library.lease() as (bay,):
        library.bring(bay, "SM0001", writable=False)
    assert len(operator.asked) == 2
    assert "volume SM0001" in operator.asked[0]


def test_a_volume_that_nobody_brings_is_none(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    library = lab.library()
    with library.lease() as (bay,), pytest.raises(NoSuchVolume, match="SM0099"):
        library.bring(bay, "SM0099", writable=False)


def test_an_open_door_is_asked_to_be_closed(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    operator = Operator(lab.troubles.clear)
    library = lab.library(operator)
    with library.lease() as (bay,):
        lab.troubles.add((Trouble.DOOR_OPEN, 0))
        library.bring(bay, "SM0001", writable=False)
    assert "the door is open" in operator.asked[0]


def test_an_open_door_that_nobody_closes_is_in_the_error(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    library = lab.library()
    with library.lease() as (bay,):
        lab.troubles.add((Trouble.DOOR_OPEN, 0))
        with pytest.raises(NoSuchVolume, match="the door is open") as told:
            library.bring(bay, "SM0001", writable=False)
    assert isinstance(told.value.__context__, ChangerNotReady)


@pytest.mark.parametrize("trouble", [Trouble.MOVE_REFUSED, Trouble.GONE])
def test_a_move_that_fails_is_told_and_moves_nothing(trouble: Trouble, tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    home = lab.where()
    lab.troubles.add((trouble, home["SM0001L8"]))
    library = lab.library()
    with library.lease() as (bay,):
        with pytest.raises(ChangerError, match=str(home["SM0001L8"])):
            library.bring(bay, "SM0001", writable=True)
        assert lab.where() == home
        lab.troubles.clear()
        library.bring(bay, "SM0001", writable=True)  # and all goes on when it is put right


def test_a_cartridge_that_is_stuck_in_the_drive_is_told_and_the_other_drive_goes_on(
    tmp_path: Path,
) -> None:
    lab = LibraryLab(tmp_path)
    library = lab.library()
    with library.lease(2) as (one, two):
        library.bring(one, "SM0001", writable=True)
        lab.troubles.add((Trouble.MOVE_REFUSED, 1))
        with pytest.raises(ChangerError, match="fails at slot 1"):
            library.bring(one, "SM0002", writable=True)
        library.bring(two, "SM0002", writable=True)
        library.bring(one, "SM0001", writable=False)  # it can still be read where it is


def test_a_drive_that_holds_on_to_its_cartridge_is_busy(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    library = lab.library()
    with library.lease() as (bay,):
        library.bring(bay, "SM0001", writable=True)
        lab.troubles.add((Trouble.DRIVE_HOLDS, 1))
        with pytest.raises(Busy):
            library.bring(bay, "SM0002", writable=True)


def test_a_barcode_that_cannot_be_read_among_others_is_not_guessed_at(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    address = lab.where()["SM0002L8"]
    lab.troubles.add((Trouble.UNREADABLE, address))
    operator = Operator()
    library = lab.library(operator)
    with library.lease() as (bay,):
        with pytest.raises(NoSuchVolume):
            library.bring(bay, "SM0002", writable=False)
        assert f"no barcode can be read in slot {address}" in operator.asked[0]
        assert lab.where()["SM0002L8"] == address
        library.fetch(bay, str(address))  # an operator may, by the slot
        assert library.look(bay) == "SM0002"


def test_a_library_without_barcodes_is_searched_by_labels(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    (lab.directory / CLEANING).unlink()
    home = lab.where()
    lab.troubles |= {(Trouble.UNREADABLE, at) for at in [*range(1, 3), *home.values()]}
    library = lab.library()
    with library.lease() as (bay,):
        library.bring(bay, "SM0003", writable=False)
        assert VolumeReader(bay.medium).serial == "SM0003"
        assert lab.where() == home | {"SM0003L8": bay.address}
        with pytest.raises(NoSuchVolume, match="SM0004"):
            library.bring(bay, "SM0004", writable=False)
        with pytest.raises(NoSuchVolume, match="reads no barcodes"):
            library.bring_blank(bay, ())


# --- leases


def test_two_leases_never_share_a_drive(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    with lab.library().lease() as (one,), lab.library().lease(2) as others:
        assert [bay.name for bay in others] != [one.name]
        assert len(others) == 1
        with pytest.raises(Busy, match="no drive is free"), lab.library().lease():
            pass
    with lab.library().lease(5) as all_of_them:
        assert len(all_of_them) == 2


HOLDER = """
import sys
from pathlib import Path
from tests.unit.library_lab import LibraryLab
lab = LibraryLab.__new__(LibraryLab)
lab.directory, lab.leases = Path(sys.argv[1]), Path(sys.argv[2])
lab.troubles, lab._shape = set(), (2, 8, 1)
library = lab.library()
with library.lease() as (bay,):
    library.bring(bay, sys.argv[3], writable=True)
    print(bay.name, flush=True)
    sys.stdin.read()
"""


def test_another_process_is_refused_the_drive_and_its_volume_until_it_is_dead(
    tmp_path: Path,
) -> None:
    lab = LibraryLab(tmp_path)
    command = [sys.executable, "-c", HOLDER, str(lab.directory), str(lab.leases), "SM0001"]
    library = lab.library()
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        theirs = other.stdout.readline().strip()
        with library.lease(2) as bays:
            assert theirs not in [bay.name for bay in bays]
            with pytest.raises(Busy, match=f"process {other.pid}"):
                library.bring(bays[0], "SM0001", writable=False)
            with pytest.raises(Busy, match=f"process {other.pid}"):
                library.to_door("SM0001")
            with pytest.raises(Busy, match=f"process {other.pid}"), library.lease(name=theirs):
                pass
        other.kill()
        other.wait()
    with library.lease(rather=["SM0001"]) as (bay,):
        assert bay.name == theirs
        library.bring(bay, "SM0001", writable=True)


def test_processes_that_want_a_blank_at_once_get_two(tmp_path: Path) -> None:
    """Again and again: from the inventory in which a process has found one on to the move, nobody
    else moves anything."""
    lab = LibraryLab(tmp_path, labelled=0, blank=3)
    home = lab.where()
    rounds = HOLDER.replace(
        "    library.bring(bay, sys.argv[3], writable=True)\n",
        "    for _ in range(int(sys.argv[3])):\n"
        "        library.bring_blank(bay, ())\n"
        "        library.put_away(bay)\n",
    ).replace("    sys.stdin.read()\n", "")
    command = [sys.executable, "-c", rounds, str(lab.directory), str(lab.leases), "25"]
    started = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(60) for process in started] == [0, 0]
    assert lab.where() == home


def test_a_turn_is_waited_for_and_not_for_ever(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    with leases.turn("changer", 0.1):
        with (
            pytest.raises(Busy, match=f"process {os.getpid()} has been moving"),
            leases.turn("changer", 0.1),
        ):
            pass
        assert leases.user("changer") == f"process {os.getpid()}"
    assert leases.user("changer") is leases.user("never taken") is None
    with leases.turn("changer", 0.1):
        pass


def test_leases_need_a_directory_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PrivilegeError, match="cannot be written"):
        Leases(tmp_path / "file").take("drive")


def test_a_drive_can_be_asked_for_by_name_or_number(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    library = lab.library()
    second = library.bays[1]
    for name in ("2", second.name):
        with library.lease(name=name) as (bay,):
            assert bay == second
    with pytest.raises(ConfigError, match="no drive 3"), library.lease(name="3"):
        pass


# --- the door


def test_a_cartridge_is_laid_into_the_door_and_fetched_from_it(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    library = lab.library()
    with library.lease() as (bay,):
        library.bring(bay, "SM0001", writable=False)
    assert library.to_door("SM0001").address == DOOR  # out of a drive that nobody uses
    assert library.to_door("SM0001L8").address == DOOR  # it is there
    with pytest.raises(ChangerError, match="no import/export slot is free: SM0001L8"):
        library.to_door("SM0002")
    ((before, after),) = library.from_door()
    assert (before.address, after.barcode) == (DOOR, "SM0001L8")
    assert lab.where()["SM0001L8"] == after.address >= HOME
    with pytest.raises(ChangerError, match="SM0077 is not in the library"):
        library.to_door("SM0077")


def test_a_library_without_a_door_says_so(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path, doors=0)
    with pytest.raises(ChangerError, match="no import/export slot"):
        lab.library().to_door("SM0001")


# --- drives that are not the changer's


def test_drives_that_the_changer_does_not_have_are_refused(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    lab, other = LibraryLab(tmp_path / "one"), LibraryLab(tmp_path / "other")
    with pytest.raises(ChangerError, match=r"other/shelf:drive1.* none of the changer's drives"):
        Library(other.drives(), lab.shelf, leases=lab.leases, ask=Operator())
    unknown: list[Medium] = [Memory(Cartridge()) for _ in range(3)]  # they tell no serial number
    assert len(Library(unknown[:2], lab.shelf, leases=lab.leases, ask=Operator()).bays) == 2
    with pytest.raises(ChangerError, match="drive3 is none"):
        Library(unknown, lab.shelf, leases=lab.leases, ask=Operator())


def test_drives_are_found_by_serial_number_in_whatever_order(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    library = Library(lab.drives()[::-1], lab.shelf, leases=lab.leases, ask=Operator())
    assert [bay.address for bay in library.bays] == [2, 1]


def test_a_drive_named_twice_is_refused(tmp_path: Path) -> None:
    lab = LibraryLab(tmp_path)
    with pytest.raises(ConfigError, match="twice"):
        Library([lab.drives()[0]] * 2, lab.shelf, leases=lab.leases, ask=Operator())


def test_a_drive_that_is_named_by_a_link_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "other-name").symlink_to(tmp_path / "drive")
    one, other = (LibraryLab.tape(tmp_path / name) for name in ("drive", "other-name"))
    libraries = [Library([t], None, leases=tmp_path, ask=Operator()) for t in (one, other)]
    with libraries[0].lease(), pytest.raises(Busy), libraries[1].lease():
        pass
    with pytest.raises(ConfigError, match="twice"):
        Library([one, other], None, leases=tmp_path, ask=Operator())
