"""The virtual changer against the contract, its drives against the media's; the contract against
changers that are broken on purpose."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest

import splitmirror.media
from splitmirror.errors import Busy, ChangerError, ChangerNotReady
from splitmirror.media import Medium
from splitmirror.media.changer import Changer, Slot, SlotKind, of_kind
from splitmirror.media.scsichanger import ScsiChanger
from splitmirror.media.virtualshelf import ShelfDrive, VirtualShelf
from splitmirror.media.virtualtape import VirtualTape
from splitmirror.testing import media
from splitmirror.testing.changers import CLAIMS, Claim, Trouble
from splitmirror.testing.faulty_changers import FaultyChanger

CARTRIDGES = ("SM0001L8", "SM0002L8", "SM0003L8", "CLN001L1")


def shelf(directory: Path) -> VirtualShelf:
    return VirtualShelf(directory, drives=2, slots=6, doors=2)


class ShelfBench:
    def __init__(
        self, directory: Path, kind: Callable[[VirtualShelf], Changer] = lambda inner: inner
    ) -> None:
        self._directory = directory
        self._kind = kind
        self._troubles: set[tuple[Trouble, int]] = set()
        for barcode in CARTRIDGES:
            (directory / barcode).touch()

    def changer(self) -> Changer:
        return FaultyChanger(self._kind(shelf(self._directory)), self._troubles)

    def make(self, trouble: Trouble, address: int) -> None:
        """A loaded virtual tape is at work by itself; the rest is the wrapper's."""
        if trouble is not Trouble.DRIVE_HOLDS:
            self._troubles.add((trouble, address))
            return
        there = shelf(self._directory)
        self._loaded = ShelfDrive(there, address, VirtualTape.limits, tape)
        self._loaded.load(writable=False)


def tape(path: Path) -> Medium:
    return VirtualTape(path, capacity=None, early_warning=0)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_the_virtual_changer_holds(claim: Claim, tmp_path: Path) -> None:
    claim(ShelfBench(tmp_path))


class DriveBench:
    """The media's contract, for the drives: the same cartridge, by the arm or by another process
    that looks into the same drive."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def blank(self) -> Medium:
        return self._drive(tape)

    def limited(self, size: int) -> Medium:
        framing = 18 * 8
        return self._drive(
            lambda path: VirtualTape(path, capacity=size + framing, early_warning=media.EARLY)
        )

    def second(self, medium: Medium) -> Medium:
        there = shelf(self._directory)
        first, second = there.drives
        # A cartridge that is still loaded stays: that the second drive of a run is refused it is
        # what the claim wants to see
        try:
            there.move(first, second)
        except Busy:
            return ShelfDrive(there, first, VirtualTape.limits, tape)
        return ShelfDrive(there, second, VirtualTape.limits, tape)

    def _drive(self, open_tape: Callable[[Path], Medium]) -> Medium:
        (self._directory / "SM0001L8").touch()
        there = shelf(self._directory)
        storage = next(slot.address for slot in there.inventory() if slot.full)
        there.move(storage, there.drives[0])
        return ShelfDrive(there, there.drives[0], VirtualTape.limits, open_tape)


@pytest.mark.parametrize("claim", media.CLAIMS, ids=lambda claim: claim.__name__)
def test_a_drive_of_the_virtual_library_holds(claim: media.Claim, tmp_path: Path) -> None:
    claim(DriveBench(tmp_path))


def test_every_changer_is_held_to_the_contract() -> None:
    """Here, or in the guest: tests/vm/inside/test_tape_changer.py."""
    names = [each.name for each in pkgutil.iter_modules(splitmirror.media.__path__)]
    modules = [importlib.import_module(f"splitmirror.media.{name}") for name in names]
    changers = {
        found
        for module in modules
        for found in vars(module).values()
        if isinstance(found, type) and found.__module__ == module.__name__
        if all(callable(getattr(found, act, None)) for act in ("inventory", "move", "close"))
    }
    assert changers - {Changer} == {VirtualShelf, ScsiChanger}


# --- every claim has been seen to fail: against one of these, each broken in one way


class Broken:
    """Passes everything on."""

    def __init__(self, inner: VirtualShelf) -> None:
        self._inner = inner

    def inventory(self, *, look: bool = False) -> list[Slot]:
        return self._told(self._inner.inventory(look=look))

    def move(self, source: int, destination: int) -> None:
        self._inner.move(source, destination)

    def close(self) -> None:
        self._inner.close()

    def _told(self, slots: list[Slot]) -> list[Slot]:
        return slots

    def _changed(self, slots: list[Slot], **values: object) -> list[Slot]:
        return [dataclasses.replace(slot, **values) for slot in slots]  # type: ignore[arg-type]


class CountsEachKindFromOne(Broken):
    def _told(self, slots: list[Slot]) -> list[Slot]:
        return [dataclasses.replace(slot, address=slot.address % 100) for slot in slots]


class CallsEverythingStorage(Broken):
    def _told(self, slots: list[Slot]) -> list[Slot]:
        return self._changed(slots, kind=SlotKind.STORAGE)


class PadsBarcodes(Broken):
    def _told(self, slots: list[Slot]) -> list[Slot]:
        return [dataclasses.replace(s, barcode=s.barcode.ljust(32)) for s in slots]


class RemembersTheLastBarcode(Broken):
    def _told(self, slots: list[Slot]) -> list[Slot]:
        return [s if s.full else dataclasses.replace(s, barcode="SM0001L8") for s in slots]


class KnowsNoCleaning(Broken):
    def _told(self, slots: list[Slot]) -> list[Slot]:
        return self._changed(slots, cleaning=False)


class LooksWithoutSeeing(Broken):
    def inventory(self, *, look: bool = False) -> list[Slot]:
        slots = self._inner.inventory()
        return self._changed(slots, full=False, barcode="") if look else slots


class RemembersWhatItSawFirst(Broken):
    seen: list[Slot] | None = None

    def _told(self, slots: list[Slot]) -> list[Slot]:
        self.seen = self.seen or slots
        return self.seen


class ForgetsWhereItCameFrom(Broken):
    def _told(self, slots: list[Slot]) -> list[Slot]:
        return self._changed(slots, source=None)


class HasOneDriveOnly(Broken):
    def move(self, source: int, destination: int) -> None:
        drives = list(self._inner.drives)
        self._inner.move(source, drives[0] if destination in drives else destination)


class MovesToDrivesOnly(Broken):
    def move(self, source: int, destination: int) -> None:
        drives = list(self._inner.drives)
        if source in drives or destination in drives:
            self._inner.move(source, destination)


class LeavesTheDoorAlone(Broken):
    def move(self, source: int, destination: int) -> None:
        doors = of_kind(self._inner.inventory(), SlotKind.DOOR)
        if destination not in [slot.address for slot in doors]:
            self._inner.move(source, destination)


class CannotBeClosedTwice(Broken):
    closed = False

    def close(self) -> None:
        assert not self.closed, "closed already"
        self.closed = True


class SaysNothing(Broken):
    """What cannot be done is not done, and nobody hears of it."""

    def move(self, source: int, destination: int) -> None:
        try:
            self._inner.move(source, destination)
        except (ChangerError, Busy):
            return


class SwapsCartridges(Broken):
    def move(self, source: int, destination: int) -> None:
        slots = {slot.address: slot for slot in self._inner.inventory()}
        if source in slots and destination in slots and slots[destination].full:
            free = next(s.address for s in slots.values() if not s.full)
            self._inner.move(destination, free)
            self._inner.move(source, destination)
            self._inner.move(free, source)
        self._inner.move(source, destination)


BROKEN: dict[str, Callable[[VirtualShelf], Changer]] = {
    "every_slot_has_an_address_of_its_own": CountsEachKindFromOne,
    "drives_storage_and_doors_are_told_apart": CallsEverythingStorage,
    "each_cartridge_has_its_barcode": PadsBarcodes,
    "an_empty_slot_has_no_barcode": RemembersTheLastBarcode,
    "a_cleaning_cartridge_is_told_and_no_other": KnowsNoCleaning,
    "a_look_anew_finds_the_same": LooksWithoutSeeing,
    "every_connection_sees_the_same": RemembersWhatItSawFirst,
    "a_cartridge_goes_into_a_drive_and_back": ForgetsWhereItCameFrom,
    "a_cartridge_goes_into_each_drive": HasOneDriveOnly,
    "a_cartridge_goes_to_another_slot": MovesToDrivesOnly,
    "a_cartridge_goes_to_the_door_and_back": LeavesTheDoorAlone,
    "a_cleaning_cartridge_can_be_put_elsewhere": MovesToDrivesOnly,
    "closing_twice_is_harmless": CannotBeClosedTwice,
    "nothing_is_taken_from_an_empty_slot": SaysNothing,
    "nothing_is_put_onto_a_cartridge": SwapsCartridges,
    "there_is_no_slot_without_an_address": SaysNothing,
}

TROUBLES = {
    "a_move_that_fails_leaves_the_cartridge",
    "a_cartridge_that_is_stuck_stays_in_the_drive",
    "a_drive_that_is_at_work_keeps_its_cartridge",
    "a_slot_that_proves_empty_is_told_so",
    "a_barcode_that_cannot_be_read_is_told_as_none",
    "nothing_moves_while_the_door_is_open",
}


class Unmoved(ShelfBench):
    """A library whose troubles do not come to the changer's ears."""

    def make(self, trouble: Trouble, address: int) -> None:
        return


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_the_claim_fails_on_a_changer_that_breaks_it(claim: Claim, tmp_path: Path) -> None:
    name = claim.__name__
    bench = Unmoved(tmp_path) if name in TROUBLES else ShelfBench(tmp_path, BROKEN[name])
    with pytest.raises((AssertionError, ChangerError)) as told:
        claim(bench)
    assert not isinstance(told.value, ChangerNotReady)


def test_the_broken_changers_are_one_for_each_claim() -> None:
    assert set(BROKEN) | TROUBLES == {claim.__name__ for claim in CLAIMS}
