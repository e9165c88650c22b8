"""The changer's contract by the kernel's own ch and sg drivers, and real drives found by it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from tests.vm.vtl.library import Library, cartridges
from tests.vm.vtl.service import Shape

from splitmirror.errors import Busy, ChangerError
from splitmirror.media.changer import SlotKind, of_kind
from splitmirror.media.scsichanger import ScsiChanger
from splitmirror.system import programs, sgio
from splitmirror.testing.changers import CLAIMS, Claim, Trouble

DATA = ("SM0001L8", "SM0002L8", "SM0003L8")
CLEANING = "CLN001L1"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    there = (*cartridges(*DATA), *cartridges(CLEANING, cleaning=True))
    shape = Shape(slots=6, doors=2, cartridges=there)
    with Library(shape, tmp_path_factory.mktemp("vtl")) as library:
        yield library


@pytest.fixture
def library(made: Library) -> Library:
    """As it was made, whatever the test before has left."""
    made.changer_fault(
        stuck=False, reserved=False, door_open=False, no_labels=False, no_devices=False
    )
    for generic in made.generic:
        removal(generic, prevented=False)
    for name, home in zip((*DATA, CLEANING), made.slots, strict=False):
        made.set(name, barcode=name)
        if name not in addresses(made):
            made.put_in(1, name)
        there = addresses(made)
        if there[name] == home:
            continue
        if home in there.values():
            made.move(home, next(free for free in made.slots if free not in there.values()))
        made.move(there[name], home)
    return made


def addresses(library: Library) -> dict[str, int]:
    """Where each cartridge is, by its name."""
    places = (("drives", library.bays), ("slots", library.slots), ("doors", library.doors))
    where = library.where()
    return {
        name: address
        for kind, there in places
        for name, address in zip(where[kind], there, strict=True)
        if name is not None
    }


class ScsiBench:
    def __init__(self, library: Library, node: str) -> None:
        self._library = library
        self._node = node

    def changer(self) -> ScsiChanger:
        return ScsiChanger(self._node)

    def make(self, trouble: Trouble, address: int) -> None:
        library = self._library
        if trouble is Trouble.MOVE_REFUSED:
            library.changer_fault(stuck=True)
        elif trouble is Trouble.GONE:
            library.take_unseen(address)
        elif trouble is Trouble.DOOR_OPEN:
            library.changer_fault(door_open=True)
        elif trouble is Trouble.UNREADABLE:
            name = library.where()["slots"][library.slots.index(address)]
            assert name is not None
            library.set(name, barcode="")
        else:
            removal(library.generic[library.bays.index(address)], prevented=True)


def removal(generic: str, *, prevented: bool) -> None:
    """PREVENT ALLOW MEDIUM REMOVAL, as whoever uses a drive does."""
    fd = os.open(generic, os.O_RDWR)
    try:
        for _ in range(2):  # the first may be told that there is a new cartridge
            try:
                sgio.command(fd, bytes([0x1E, 0, 0, 0, prevented, 0]), timeout_s=60)
            except sgio.CommandFailed as error:
                assert error.sense is not None
                assert error.sense.key == 6 or (error.sense.key == 2 and not prevented)
    finally:
        os.close(fd)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_the_changer_holds(claim: Claim, library: Library) -> None:
    claim(ScsiBench(library, library.changer))


def test_the_generic_node_will_do_too(library: Library) -> None:
    node = library.changer_generic
    claims = {claim.__name__: claim for claim in CLAIMS}
    claims["a_cartridge_goes_into_a_drive_and_back"](ScsiBench(library, node))
    claims["nothing_is_taken_from_an_empty_slot"](ScsiBench(library, node))


def test_the_inventory_is_what_mtx_tells(library: Library) -> None:
    changer = ScsiChanger(library.changer)
    changer.move(library.slots[1], library.bays[1])
    changer.move(library.slots[0], library.doors[0])
    status = programs.run(["mtx", "-f", library.changer_generic, "status"], timeout_s=120)
    told = {line.split("VolumeTag")[1].strip(" =") for line in status.splitlines() if "Tag" in line}
    full = [slot for slot in changer.inventory() if slot.full]
    assert {slot.barcode for slot in full} == told == {*DATA, CLEANING}
    assert "Data Transfer Element 1:Full (Storage Element 2 Loaded):VolumeTag = SM0002L8" in status
    (drive,) = [slot for slot in full if slot.kind is SlotKind.DRIVE]
    assert (drive.barcode, drive.source) == ("SM0002L8", library.slots[1])
    assert (drive.address, drive.device) == (library.bays[1], "VTLDRIVE1")


def test_a_drive_is_known_by_its_serial_number(library: Library) -> None:
    drives = of_kind(ScsiChanger(library.changer).inventory(), SlotKind.DRIVE)
    told = [sgio.serial_number(node) for node in library.drives]
    assert told == [slot.device for slot in drives] == ["VTLDRIVE0", "VTLDRIVE1"]
    assert sgio.serial_number("/dev/null") == sgio.serial_number("/dev/nowhere") == ""


def test_a_changer_that_reads_no_barcodes_tells_the_rest(library: Library) -> None:
    library.changer_fault(no_labels=True, no_devices=True)
    changer = ScsiChanger(library.changer)
    slots = changer.inventory()
    assert {(slot.barcode, slot.device, slot.cleaning) for slot in slots} == {("", "", False)}
    assert [slot.address for slot in slots if slot.full] == list(library.slots[:4])
    changer.move(library.slots[0], library.bays[0])
    assert library.where()["drives"] == ["SM0001L8", None]


def test_a_hand_at_the_door_is_no_error(library: Library) -> None:
    changer = ScsiChanger(library.changer)
    changer.move(library.slots[0], library.doors[1])
    assert library.take_out(1) == "SM0001L8"
    changer.move(library.slots[1], library.bays[0])  # a unit attention came before it
    assert addresses(library) == {
        "SM0002L8": library.bays[0],
        "SM0003L8": library.slots[2],
        CLEANING: library.slots[3],
    }


def test_a_changer_that_another_host_has_reserved_is_busy(library: Library) -> None:
    changer = ScsiChanger(library.changer)
    library.changer_fault(reserved=True)
    with pytest.raises(Busy, match="another host has reserved it"):
        changer.move(library.slots[0], library.bays[0])
    with pytest.raises(Busy):
        changer.inventory()


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (lambda library: library.generic[0], "it is a device of type 1"),
        (lambda library: "/dev/null", "it takes no SCSI commands"),
        (lambda library: "/dev/nowhere", "No such file"),
    ],
)
def test_what_is_no_changer_is_told(
    node: Callable[[Library], str], why: str, library: Library
) -> None:
    with pytest.raises(ChangerError, match=why) as told:
        ScsiChanger(node(library))
    assert "lsscsi" in told.value.hint
