"""Drives with a changer: which cartridge is moved where, and which is left alone.

A cartridge is chosen by its barcode, whose first six characters are the volume's serial, and proven
by its label. What is decided from an inventory is done before anybody else may move something: one
process at a time has its turn. Cleaning cartridges are not put into a drive. The operator is asked
for what is not in the library; meanwhile others have their turn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from splitmirror.errors import (
    Busy,
    ChangerError,
    ChangerNotReady,
    MediumError,
    NoSuchVolume,
    WrongMedium,
)
from splitmirror.media import END_OF_DATA
from splitmirror.media.asking import Ask
from splitmirror.media.bays import Bay
from splitmirror.media.changer import (
    Changer,
    Slot,
    SlotKind,
    free_slot,
    holding,
    of_kind,
    serial_of,
    slot_at,
)
from splitmirror.media.leases import Leases
from splitmirror.media.walking import VolumeReader, read_record

TURN: Final = "changer"  # the lease of the one who moves cartridges
_TURN_S: Final = 1800.0  # a few moves, and a look into every slot of a large library
_BAD_CARTRIDGES: Final = 2  # so many that cannot be read, and it is the drive

Find = Callable[[list[Slot]], Slot | None]


class ByArm:
    """Moves cartridges between slots and the drives of `bays`."""

    def __init__(self, changer: Changer, bays: Sequence[Bay], leases: Leases, ask: Ask) -> None:
        self._changer = changer
        self._bays = bays
        self._leases = leases
        self._ask = ask
        self._not_blank: set[str] = set()  # barcodes

    # --- for a drive that the caller has leased

    def bring(self, bay: Bay, serial: str, *, writable: bool) -> None:
        """That volume is in the drive, proven by its label, and loaded. Nothing is loaded writable
        before that. Raises NoSuchVolume, Busy, WrongMedium, ChangerError."""
        self.fetch(bay, serial)
        barcode = self._in(bay).cartridge
        try:
            self._prove(bay, serial, barcode)
            if writable:
                bay.medium.load(writable=True)
        except BaseException:
            bay.medium.unload()
            raise

    def fetch(self, bay: Bay, serial: str) -> None:
        """The cartridge of that volume is in the drive, by its barcode or, in a library that reads
        none, by its label; not loaded."""

        def there(slots: list[Slot]) -> Slot | None:
            return holding(filter(_within_reach, slots), serial)

        tried: set[int] = set()
        wanted = f"Put volume {serial} into the library"
        self._until(bay, there, wanted, lambda: self._has_unread(bay, serial, tried))

    def fetch_from(self, bay: Bay, address: int) -> None:
        """The cartridge in that slot, whatever it is, is in the drive; not loaded."""
        with self._turn():
            slots = self._changer.inventory()
            slot = slot_at(slots, address)
            if not slot.full:
                raise ChangerError(
                    f"slot {address} is empty", hint="`splitmirror media inventory` shows all."
                )
            self._put(bay, slot, slots)

    def bring_blank(self, bay: Bay, taken: Collection[str]) -> str:
        """A cartridge that reads as blank is in the drive, loaded writable; its serial. Raises
        NoSuchVolume, Busy, ChangerError, MediumError when the drive cannot read any."""

        def candidate(slots: list[Slot]) -> Slot | None:
            found = [slot for slot in slots if self._may_be_blank(slot, bay, taken)]
            found.sort(key=lambda slot: (slot.address != bay.address, slot.kind is SlotKind.DOOR))
            return found[0] if found else None

        self._require_barcodes()
        bad = 0
        while True:
            self._until(bay, candidate, "Put a blank cartridge with a barcode into the library")
            barcode = self._in(bay).barcode
            try:
                if self._is_blank(bay):
                    bay.medium.load(writable=True)
                    return serial_of(barcode)
            except WrongMedium:
                pass  # nothing that we know, but not blank
            except MediumError:
                bad += 1
                if bad >= _BAD_CARTRIDGES:
                    raise
            self._not_blank.add(barcode)

    def put_away(self, bay: Bay) -> int | None:
        """The cartridge is back in the slot that it came from, or another one; which. None: the
        drive was empty."""
        with self._turn():
            slots = self._changer.inventory()
            if slot_at(slots, _address(bay)).full:
                return self._clear(bay, slots)
        bay.medium.unload()
        return None

    # --- for everybody

    def inventory(self, *, look: bool = False) -> list[Slot]:
        if not look:
            return self._changer.inventory()
        with self._turn():
            return self._changer.inventory(look=True)

    def to_door(self, found: Find, what: str) -> Slot:
        """Lay a cartridge into an import/export slot; which. Raises Busy, ChangerError."""
        with self._turn():
            slots = self._changer.inventory()
            slot = found(slots)
            if slot is None:
                raise ChangerError(
                    f"{what} is not in the library",
                    hint="`splitmirror media inventory` shows what is.",
                )
            if slot.kind is SlotKind.DOOR:
                return slot
            door = free_slot(slots, SlotKind.DOOR)
            if door is None:
                raise _no_door(slots)
            with self._let_go(slot):
                self._changer.move(slot.address, door.address)
            return slot_at(self._changer.inventory(), door.address)

    def from_door(self) -> list[tuple[Slot, Slot]]:
        """Lay what is in the import/export slots into storage slots; from where to where. Raises
        ChangerError, when the room does not suffice too; what was moved stays so."""
        moved = []
        with self._turn():
            for slot in of_kind(slots := self._changer.inventory(), SlotKind.DOOR):
                if slot.full:
                    target = self._storage(slot, slots)
                    self._changer.move(slot.address, target.address)
                    slots = self._changer.inventory()
                    moved.append((slot, slot_at(slots, target.address)))
        return moved

    # --- moving; each with the turn held

    def _fetched(self, bay: Bay, find: Find, *, look: bool) -> bool:
        """Whether there was such a cartridge: it is in the drive then."""
        with self._turn():
            slots = self._changer.inventory(look=look)
            slot = find(slots)
            if slot is not None:
                self._put(bay, slot, slots)
        return slot is not None

    def _put(self, bay: Bay, slot: Slot, slots: Sequence[Slot]) -> None:
        if slot.address == bay.address:
            return
        if slot.cleaning:
            raise ChangerError(
                f"{slot.barcode} in slot {slot.address} is a cleaning cartridge",
                hint="It is left alone: the library cleans its drives, or its operator does.",
            )
        if slot.kind is SlotKind.DRIVE:
            with self._let_go(slot):
                storage = self._storage(slot, slots)
                self._changer.move(slot.address, storage.address)
            slots = self._changer.inventory()
            slot = slot_at(slots, storage.address)
        if slot_at(slots, _address(bay)).full:
            self._clear(bay, slots)
        bay.medium.unload()
        self._changer.move(slot.address, _address(bay))

    def _clear(self, bay: Bay, slots: Sequence[Slot]) -> int:
        """Empty the drive; where its cartridge is now."""
        slot = slot_at(slots, _address(bay))
        if slot.cleaning:
            raise Busy(
                f"{bay.name} is being cleaned: {slot.barcode} is in it",
                hint="The cleaning cartridge is left alone; wait until the library takes it out.",
            )
        storage = self._storage(slot, slots)
        bay.eject()
        self._changer.move(_address(bay), storage.address)
        return storage.address

    @staticmethod
    def _storage(slot: Slot, slots: Sequence[Slot]) -> Slot:
        """Where the cartridge of a drive or of the door goes."""
        free = free_slot(slots, SlotKind.STORAGE, rather=slot.source)
        if free is None:
            raise ChangerError(
                f"there is no free storage slot for {slot.cartridge}",
                hint="Take a cartridge out of the library: `splitmirror media eject VOLUME`.",
            )
        return free

    @contextmanager
    def _let_go(self, slot: Slot) -> Iterator[None]:
        """The arm can take the cartridge: when it is in a drive, nobody else uses that, and it lets
        the cartridge out. Raises Busy."""
        if slot.kind is not SlotKind.DRIVE:
            yield
            return
        bay = next((bay for bay in self._bays if bay.address == slot.address), None)
        fd = None if bay is None else self._leases.take(bay.lease)
        if bay is None or fd is None:
            who = self._leases.holder(bay.lease) if bay is not None else "someone else"
            raise Busy(
                f"{slot.cartridge} is in {bay.name if bay else f'drive {slot.address}'}, which "
                f"{who} uses",
                hint="Wait for the run that uses it, or end it."
                if bay is not None
                else "That drive is not in the configuration; have its user put it away.",
                barcode=slot.barcode,
            )
        try:
            bay.eject()
            yield
        finally:
            os.close(fd)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._leases.turn(TURN, _TURN_S):
            yield

    # --- asking, and libraries that read no barcodes

    def _until(
        self, bay: Bay, find: Find, wanted: str, otherwise: Callable[[], bool] = lambda: False
    ) -> None:
        """Bring what `find` finds, or `otherwise` brings. What the changer does not remember it
        looks for once; then the operator is asked, until it is there or nobody answers."""
        looks = [False, True]
        while True:
            try:
                if any(self._fetched(bay, find, look=look) for look in looks) or otherwise():
                    return
            except ChangerNotReady as error:
                self._ask(f"{wanted}. Now it is not ready: {error}")
            else:
                self._ask(f"{wanted}{self._unread()}")
                looks = [False]

    def _unread(self) -> str:
        """What may be a cartridge that is wanted."""
        slots = self._changer.inventory()
        unread = [str(slot.address) for slot in slots if slot.full and not slot.barcode]
        return f" (no barcode can be read in slot {', '.join(unread)})" if unread else ""

    def _require_barcodes(self) -> None:
        full = [slot for slot in self._changer.inventory() if slot.full]
        if full and not any(slot.barcode for slot in full):
            raise NoSuchVolume(
                "the library reads no barcodes, so that a blank volume has no serial",
                hint="Label one by hand: `splitmirror media load ADDRESS`, then `splitmirror media "
                "label`.",
            )

    def _has_unread(self, bay: Bay, serial: str, tried: set[int]) -> bool:
        """Whether the volume is among the cartridges of a library that reads no barcodes at all: it
        is in the drive then. Each is loaded once (`tried`: where those are). Where others can be
        read, one that cannot is left alone: it may be a cleaning cartridge."""
        while True:
            with self._turn():
                slots = self._changer.inventory()
                tried &= {slot.address for slot in slots if slot.full}
                if any(slot.barcode for slot in slots):
                    return False
                slot = self._next_unread(bay, slots, tried)
                if slot is None:
                    return False
                self._put(bay, slot, slots)
            if _label_in(bay) == serial:
                return True
            with self._turn():
                tried.add(self._clear(bay, self._changer.inventory()))

    @staticmethod
    def _next_unread(bay: Bay, slots: list[Slot], tried: set[int]) -> Slot | None:
        for slot in sorted(slots, key=lambda slot: slot.address != bay.address):
            elsewhere = slot.kind is SlotKind.DRIVE and slot.address != bay.address
            if slot.full and not slot.cleaning and slot.address not in tried and not elsewhere:
                return slot
        return None

    # --- what is in a drive

    def _in(self, bay: Bay) -> Slot:
        return slot_at(self._changer.inventory(), _address(bay))

    @staticmethod
    def _prove(bay: Bay, serial: str, barcode: str) -> None:
        try:
            bay.medium.load(writable=False)
            label = VolumeReader(bay.medium).serial
        except WrongMedium as error:
            raise WrongMedium(
                f"{barcode} is not volume {serial}, as its barcode says: {error}",
                hint=f"It is left as it is. {error.hint}",
                serial=serial,
                barcode=barcode,
            ) from error
        if label != serial:
            raise WrongMedium(
                f"{barcode} is not volume {serial}, as its barcode says: its label says {label}",
                hint=f"It is left as it is. Put the right barcode on it, and find out where volume "
                f"{serial} is.",
                serial=label,
                barcode=barcode,
            )

    @staticmethod
    def _is_blank(bay: Bay) -> bool:
        """Left loaded, read-only."""
        bay.medium.load(writable=False)
        return read_record(bay.medium) is END_OF_DATA

    def _may_be_blank(self, slot: Slot, bay: Bay, taken: Collection[str]) -> bool:
        """By its barcode. A cartridge in another drive is somebody's."""
        serial = serial_of(slot.barcode)
        return (
            slot.full
            and not slot.cleaning
            and _within_reach(slot)
            and bool(serial)
            and serial not in taken
            and slot.barcode not in self._not_blank
            and (slot.kind is not SlotKind.DRIVE or slot.address == bay.address)
        )


def _address(bay: Bay) -> int:
    assert bay.address is not None
    return bay.address


def _within_reach(slot: Slot) -> bool:
    """The arm can take what is in it; from a drive once that has let it out."""
    return slot.accessible or slot.kind is SlotKind.DRIVE


def _label_in(bay: Bay) -> str:
    """The serial of the volume in a drive; "" when it is not ours. Unloads it."""
    try:
        bay.medium.load(writable=False)
        return VolumeReader(bay.medium).serial
    except WrongMedium:
        return ""
    finally:
        bay.medium.unload()


def _no_door(slots: Sequence[Slot]) -> ChangerError:
    doors = of_kind(slots, SlotKind.DOOR)
    if not doors:
        return ChangerError(
            "the library has no import/export slot",
            hint="Put the cartridge away (`splitmirror media unload`) and take it out by hand.",
        )
    there = ", ".join(f"{slot.cartridge} in {slot.address}" for slot in doors if slot.full)
    return ChangerError(
        f"no import/export slot is free: {there or 'the arm does not reach them'}",
        hint="Take out what is in them, and close the door.",
    )
