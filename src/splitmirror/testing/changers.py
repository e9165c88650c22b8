"""What every changer must do: claims that a driver's test runs, shipped for outside drivers too.

    from splitmirror.testing.changers import CLAIMS, Bench

    @pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
    def test_my_changer(claim):
        claim(MyBench())

A `Bench` is a small library. A claim raises AssertionError, with what was expected, when the
changer does not hold it. A claim about a trouble that the bench cannot make is passed by with
`Unmakeable`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final, Protocol

from splitmirror.errors import Busy, ChangerError, ChangerNotReady
from splitmirror.media.changer import Changer, Slot, SlotKind, of_kind, serial_of, slot_at
from splitmirror.testing.claiming import raised, same


class Trouble(enum.Enum):
    """What a library can be made to have, at the slot with an address."""

    MOVE_REFUSED = "the arm fails to move anything to or from the slot"
    DRIVE_HOLDS = "the drive in the slot does not let the cartridge out, for it is at work"
    GONE = "the changer remembers a cartridge in the slot, and there is none"
    UNREADABLE = "the barcode of the cartridge in the slot cannot be read"
    DOOR_OPEN = "the library's door is open"


class Unmakeable(Exception):
    """A library cannot be made to have that trouble."""


class Bench(Protocol):
    """A library with two drives, both empty; four storage slots or more, in which are two
    cartridges or more with barcodes that differ, one cleaning cartridge, and nothing in the rest,
    one at least; and an import/export slot or more, empty."""

    def changer(self) -> Changer:
        """Another connection to it."""
        ...

    def make(self, trouble: Trouble, address: int) -> None:
        """Give it a trouble. Raises Unmakeable."""
        ...


Claim = Callable[[Bench], None]
CLAIMS: Final[list[Claim]] = []


def _claim(claim: Claim) -> Claim:
    CLAIMS.append(claim)
    return claim


def _where(changer: Changer) -> dict[int, str]:
    """The barcode in each full slot."""
    return {slot.address: slot.barcode for slot in changer.inventory() if slot.full}


def _data(slots: list[Slot]) -> list[Slot]:
    """The storage slots with cartridges that are not for cleaning."""
    return [s for s in of_kind(slots, SlotKind.STORAGE) if s.full and not s.cleaning]


def _empty(slots: list[Slot], kind: SlotKind) -> Slot:
    return next(slot for slot in of_kind(slots, kind) if not slot.full)


# --- the inventory


@_claim
def every_slot_has_an_address_of_its_own(bench: Bench) -> None:
    slots = bench.changer().inventory()
    addresses = [slot.address for slot in slots]
    same(len(set(addresses)), len(addresses), "different addresses")


@_claim
def drives_storage_and_doors_are_told_apart(bench: Bench) -> None:
    slots = bench.changer().inventory()
    same(len(of_kind(slots, SlotKind.DRIVE)), 2, "drives")
    for kind, least in ((SlotKind.STORAGE, 4), (SlotKind.DOOR, 1)):
        if len(of_kind(slots, kind)) < least:
            raise AssertionError(f"fewer than {least} slots for {kind}: {slots}")


@_claim
def each_cartridge_has_its_barcode(bench: Bench) -> None:
    slots = bench.changer().inventory()
    full = [slot for slot in slots if slot.full]
    barcodes = {slot.barcode for slot in full}
    same(len(barcodes - {""}), len(full), f"different barcodes in {full}")
    for slot in _data(slots):
        if not serial_of(slot.barcode) or slot.barcode != slot.barcode.strip():
            raise AssertionError(f"{slot.barcode!r} does not begin with a serial")


@_claim
def an_empty_slot_has_no_barcode(bench: Bench) -> None:
    changer = bench.changer()
    before = _data(changer.inventory())[0]
    drive = of_kind(changer.inventory(), SlotKind.DRIVE)[0]
    changer.move(before.address, drive.address)
    for slot in changer.inventory():
        if not slot.full:
            same(slot.barcode, "", f"barcode of empty slot {slot.address}")


@_claim
def a_cleaning_cartridge_is_told_and_no_other(bench: Bench) -> None:
    full = [slot for slot in bench.changer().inventory() if slot.full]
    told = {slot.barcode for slot in full if slot.cleaning}
    same(told, {s.barcode for s in full if s.barcode.startswith("CLN")}, "cleaning cartridges")
    same(len(told), 1, "number of cleaning cartridges")


@_claim
def a_look_anew_finds_the_same(bench: Bench) -> None:
    changer = bench.changer()
    before = changer.inventory()
    same(changer.inventory(look=True), before, "inventory after a look")
    same(changer.inventory(), before, "inventory after that")


@_claim
def every_connection_sees_the_same(bench: Bench) -> None:
    one, other = bench.changer(), bench.changer()
    slots = one.inventory()
    one.move(_data(slots)[0].address, of_kind(slots, SlotKind.DRIVE)[1].address)
    same(_where(other), _where(one), "inventory of another connection")
    one.close()
    same(_where(bench.changer()), _where(other), "inventory of a later connection")


# --- moving


def _moved(bench: Bench, source: Slot, destination: Slot) -> Changer:
    """One move, after which the cartridge is where it was put, and the others where they were."""
    changer = bench.changer()
    wanted = _where(changer)
    wanted[destination.address] = wanted.pop(source.address)
    changer.move(source.address, destination.address)
    same(_where(changer), wanted, f"after the move {source.address} to {destination.address}")
    return changer


@_claim
def a_cartridge_goes_into_a_drive_and_back(bench: Bench) -> None:
    slots = bench.changer().inventory()
    home, drive = _data(slots)[0], of_kind(slots, SlotKind.DRIVE)[0]
    changer = _moved(bench, home, drive)
    same(slot_at(changer.inventory(), drive.address).source, home.address, "where it came from")
    _moved(bench, drive, home)


@_claim
def a_cartridge_goes_into_each_drive(bench: Bench) -> None:
    slots = bench.changer().inventory()
    for home, drive in zip(_data(slots), of_kind(slots, SlotKind.DRIVE), strict=False):
        changer = _moved(bench, home, drive)
        same(slot_at(changer.inventory(), home.address).full, False, f"slot {home.address} full")


@_claim
def a_cartridge_goes_to_another_slot(bench: Bench) -> None:
    slots = bench.changer().inventory()
    _moved(bench, _data(slots)[0], _empty(slots, SlotKind.STORAGE))


@_claim
def a_cartridge_goes_to_the_door_and_back(bench: Bench) -> None:
    slots = bench.changer().inventory()
    home, door = _data(slots)[0], _empty(slots, SlotKind.DOOR)
    _moved(bench, home, door)
    _moved(bench, door, home)


@_claim
def a_cleaning_cartridge_can_be_put_elsewhere(bench: Bench) -> None:
    slots = bench.changer().inventory()
    cleaning = next(slot for slot in slots if slot.cleaning)
    _moved(bench, cleaning, _empty(slots, SlotKind.STORAGE))


@_claim
def closing_twice_is_harmless(bench: Bench) -> None:
    changer = bench.changer()
    changer.close()
    changer.close()


# --- what is refused changes nothing


def _refused(
    bench: Bench,
    kind: type[ChangerError] | type[Busy],
    source: int,
    destination: int,
    what: str,
) -> None:
    changer = bench.changer()
    before = _where(changer)
    raised(kind, lambda: changer.move(source, destination), what)
    same(_where(changer), before, f"inventory after {what}")


@_claim
def nothing_is_taken_from_an_empty_slot(bench: Bench) -> None:
    slots = bench.changer().inventory()
    source, drive = _empty(slots, SlotKind.STORAGE), _empty(slots, SlotKind.DRIVE)
    _refused(bench, ChangerError, source.address, drive.address, "moving nothing")


@_claim
def nothing_is_put_onto_a_cartridge(bench: Bench) -> None:
    first, second = _data(bench.changer().inventory())[:2]
    _refused(bench, ChangerError, first.address, second.address, "a move to a full slot")


@_claim
def there_is_no_slot_without_an_address(bench: Bench) -> None:
    slots = bench.changer().inventory()
    source, beyond = _data(slots)[0].address, max(slot.address for slot in slots) + 1
    _refused(bench, ChangerError, source, beyond, "a move to nowhere")
    drive = _empty(slots, SlotKind.DRIVE).address
    _refused(bench, ChangerError, beyond, drive, "a move from nowhere")


# --- troubles


@_claim
def a_move_that_fails_leaves_the_cartridge(bench: Bench) -> None:
    slots = bench.changer().inventory()
    source, drive = _data(slots)[0].address, _empty(slots, SlotKind.DRIVE).address
    bench.make(Trouble.MOVE_REFUSED, source)
    _refused(bench, ChangerError, source, drive, "a move that fails")


@_claim
def a_cartridge_that_is_stuck_stays_in_the_drive(bench: Bench) -> None:
    changer = bench.changer()
    slots = changer.inventory()
    home, drive = _data(slots)[0].address, _empty(slots, SlotKind.DRIVE).address
    changer.move(home, drive)
    bench.make(Trouble.MOVE_REFUSED, drive)
    _refused(bench, ChangerError, drive, home, "taking out a cartridge that is stuck")


@_claim
def a_drive_that_is_at_work_keeps_its_cartridge(bench: Bench) -> None:
    changer = bench.changer()
    slots = changer.inventory()
    home, drive = _data(slots)[0].address, _empty(slots, SlotKind.DRIVE).address
    changer.move(home, drive)
    bench.make(Trouble.DRIVE_HOLDS, drive)
    _refused(bench, Busy, drive, home, "taking a cartridge from a drive that is at work")


@_claim
def a_slot_that_proves_empty_is_told_so(bench: Bench) -> None:
    changer = bench.changer()
    slots = changer.inventory()
    source, drive = _data(slots)[0].address, _empty(slots, SlotKind.DRIVE).address
    bench.make(Trouble.GONE, source)
    raised(ChangerError, lambda: changer.move(source, drive), "moving what is gone")
    same(slot_at(changer.inventory(look=True), source).full, False, "full, after a look")


@_claim
def a_barcode_that_cannot_be_read_is_told_as_none(bench: Bench) -> None:
    changer = bench.changer()
    source = _data(changer.inventory())[0].address
    bench.make(Trouble.UNREADABLE, source)
    slot = slot_at(changer.inventory(look=True), source)
    same((slot.full, slot.barcode), (True, ""), "full and barcode")


@_claim
def nothing_moves_while_the_door_is_open(bench: Bench) -> None:
    changer = bench.changer()
    slots = changer.inventory()
    source, drive = _data(slots)[0].address, _empty(slots, SlotKind.DRIVE).address
    bench.make(Trouble.DOOR_OPEN, source)
    raised(ChangerNotReady, lambda: changer.move(source, drive), "a move past an open door")
