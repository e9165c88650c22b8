"""The changer seam: what puts cartridges into drives and takes them out again.

A medium module may have `open_changer(settings) -> Changer | None` beside `open_drives`. A library
is what SMC-3 (SCSI Media Changer Commands) describes: elements with addresses, each of which holds
a cartridge or none. The arm is nobody's slot. `library` says who may move what.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from splitmirror.errors import ChangerError

_CLEANING = "CLN"  # how the barcode of every maker's cleaning cartridge begins
_SERIAL = re.compile(r"[A-Z0-9]{6}")


class SlotKind(enum.StrEnum):
    """What an element is for."""

    STORAGE = "storage"
    DRIVE = "drive"
    DOOR = "import/export"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """An element of the library. `barcode` is "" where there is none, or none that can be read.

    `accessible`: the arm reaches it. `source`: the address of the storage slot that the cartridge
    came from. `device`: of a drive, what the library knows it by, its serial number mostly.
    `trouble`: what the changer says is wrong with it.
    """

    address: int
    kind: SlotKind
    full: bool
    barcode: str = ""
    accessible: bool = True
    cleaning: bool = False
    source: int | None = None
    device: str = ""
    trouble: str = ""

    @property
    def cartridge(self) -> str:
        """What is in it, in words."""
        if not self.full:
            return "nothing"
        return self.barcode or "a cartridge without a readable barcode"

    def holds(self, serial: str) -> bool:
        """Whether by its barcode the volume of that serial is in it."""
        return self.full and not self.cleaning and serial_of(self.barcode) == serial


class Changer(Protocol):
    """The arm of a library. One move at a time; the caller sees to that.

    Raises ChangerError when the library refuses or fails, Busy while it, or the drive that the
    cartridge is in, is at work; the cartridge is where it was then, unless the error says more.
    """

    def inventory(self, *, look: bool = False) -> list[Slot]:
        """Every slot, by its address. `look`: the changer looks into every slot anew, which takes
        minutes in a large library; else it tells what it remembers."""
        ...

    def move(self, source: int, destination: int) -> None:
        """Take the cartridge from one address to another, which is empty. It is there when this
        returns; a drive may need a minute more to be ready."""
        ...

    def close(self) -> None:
        """Let go of the changer. A second call is harmless."""
        ...


def is_cleaning(barcode: str) -> bool:
    """Whether it is a cleaning cartridge: it cleans a drive as soon as it is put into one, and can
    do that a few dozen times."""
    return barcode.upper().startswith(_CLEANING)


def serial_of(barcode: str) -> str:
    """The serial of the volume that a barcode stands for: its first six characters, behind which is
    the kind of the cartridge (SM0001L8). "" when it cannot be one."""
    found = _SERIAL.match(barcode)
    return found[0] if found else ""


def slot_at(slots: Iterable[Slot], address: int) -> Slot:
    """Raises ChangerError when there is none."""
    for slot in slots:
        if slot.address == address:
            return slot
    raise ChangerError(
        f"the library has no slot with the address {address}",
        hint="`splitmirror media inventory` shows what it has.",
        address=address,
    )


def of_kind(slots: Iterable[Slot], kind: SlotKind) -> list[Slot]:
    return [slot for slot in slots if slot.kind is kind]


def holding(slots: Iterable[Slot], serial: str) -> Slot | None:
    """Where the volume is, by its barcode. Raises ChangerError when two cartridges could be it."""
    found = [slot for slot in slots if slot.holds(serial)]
    if len(found) > 1:
        barcodes = " and ".join(f"{slot.barcode} at {slot.address}" for slot in found)
        raise ChangerError(
            f"more than one cartridge could be volume {serial}: {barcodes}",
            hint="Take out the one that is not it: the first six characters must be unique.",
            serial=serial,
        )
    return found[0] if found else None


def free_slot(slots: Iterable[Slot], kind: SlotKind, rather: int | None = None) -> Slot | None:
    """An empty slot that the arm reaches and where nothing else belongs: `rather` that one. None:
    all are taken."""
    slots = list(slots)
    away = {slot.source for slot in slots if slot.kind is SlotKind.DRIVE and slot.full}
    empty = [
        slot
        for slot in of_kind(slots, kind)
        if not slot.full and slot.accessible and not slot.trouble
    ]
    # Its own place first, and last the places of cartridges that are in drives
    empty.sort(key=lambda slot: (slot.address != rather, slot.address in away, slot.address))
    return empty[0] if empty else None
