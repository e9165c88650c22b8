"""Drives, and who puts volumes into them: a changer, or a person who is asked.

Two runs never share a drive. A run leases the drives that it uses; others find them taken. A lease
dies with the process that holds it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from splitmirror.errors import Busy, ChangerError, ConfigError
from splitmirror.media import Medium
from splitmirror.media.asking import Ask
from splitmirror.media.bays import Bay, bays_of
from splitmirror.media.byarm import ByArm
from splitmirror.media.byhand import ByHand
from splitmirror.media.changer import Changer, Slot, holding
from splitmirror.media.leases import Leases

__all__ = ["Bay", "Library"]


class Library:
    """What a run, or an operator's command, brings volumes with. `with` closes the changer."""

    def __init__(
        self, drives: Sequence[Medium], changer: Changer | None, *, leases: Path, ask: Ask
    ) -> None:
        """`leases`: a directory that every process which uses these drives shares. Raises
        ChangerError when the drives are not the changer's."""
        self._changer = changer
        self._leases = Leases(leases)
        self._bays = bays_of(drives, changer.inventory() if changer is not None else None)
        self._by_hand = ByHand(ask)
        self._arm = ByArm(changer, self._bays, self._leases, ask) if changer is not None else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ended: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the changer. A second call is harmless."""
        if self._changer is not None:
            self._changer.close()

    @property
    def bays(self) -> Sequence[Bay]:
        """Every drive, leased or not."""
        return tuple(self._bays)

    @property
    def has_changer(self) -> bool:
        return self._changer is not None

    # --- drives

    @contextmanager
    def lease(
        self, most: int = 1, *, rather: Collection[str] = (), name: str | None = None
    ) -> Iterator[list[Bay]]:
        """At least one drive that nobody else has, up to `most`; first those that hold a volume of
        `rather` (serials, barcodes). With `name` that drive. They are unloaded when the block is
        left. Raises Busy when there is none, ConfigError when none has that name."""
        bays = self._named(name) if name is not None else self._in_order(rather)
        with contextlib.ExitStack() as stack:
            held: list[Bay] = []
            for bay in bays:
                fd = self._leases.take(bay.lease) if len(held) < most else None
                if fd is not None:
                    stack.callback(os.close, fd)
                    stack.callback(bay.medium.unload)
                    held.append(bay)
            if not held:
                raise self._all_taken(bays)
            yield held

    def user_of(self, bay: Bay) -> str | None:
        """The process that has leased a drive, in words; None: nobody."""
        return self._leases.user(bay.lease)

    def _in_order(self, rather: Collection[str]) -> list[Bay]:
        if self._changer is None or not rather:
            return self._bays
        slots = self._changer.inventory()
        holds = {slot.address for what in rather if (slot := find(slots, what)) is not None}
        return sorted(self._bays, key=lambda bay: bay.address not in holds)

    def _named(self, name: str) -> list[Bay]:
        """By its name, or its number from 1."""
        for number, bay in enumerate(self._bays, 1):
            if name in (bay.name, str(number)):
                return [bay]
        known = ", ".join(f"{number} ({bay.name})" for number, bay in enumerate(self._bays, 1))
        raise ConfigError(f"there is no drive {name}", hint=f"Name one of: {known}.")

    def _all_taken(self, bays: Sequence[Bay]) -> Busy:
        by = "; ".join(f"{bay.name} by {self._leases.holder(bay.lease)}" for bay in bays)
        return Busy(f"no drive is free: {by}", hint="Wait for the runs that use them, or end one.")

    # --- volumes, in a drive that was leased

    def bring(self, bay: Bay, serial: str, *, writable: bool) -> None:
        """That volume is in the drive and loaded, proven by its label; what was there before is put
        back. One that is there already stays. What is not in the library is asked for.

        Raises NoSuchVolume when nobody brings it, Busy when it is in a drive that another run, or
        the caller itself, has leased (`bay_with` tells), WrongMedium when the cartridge with its
        barcode is not it, ChangerError, and what the drive raises.
        """
        mover = self._arm or self._by_hand
        mover.bring(bay, serial, writable=writable)

    def bring_anew(self, bay: Bay, serial: str, *, begun: bool) -> None:
        """The volume is in the drive to be written anew; `begun`: a crash may have left it blank.
        So the changer goes by its barcode, and whoever writes it reads what is on it (`recycle`).
        Raises as `bring`."""
        if self._arm is not None:
            self._arm.fetch(bay, serial)
        else:
            self._by_hand.bring(bay, serial, writable=True, or_blank=begun)

    def bring_blank(self, bay: Bay, taken: Collection[str]) -> str:
        """A blank cartridge is in the drive, loaded writable; the serial that it is to get. By the
        changer: one that reads as blank and whose barcode's serial is not in `taken` (those that
        the catalogue knows). By hand: the serial behind those in `taken`. Raises as `bring`."""
        mover = self._arm or self._by_hand
        return mover.bring_blank(bay, taken)

    def put_away(self, bay: Bay) -> int | None:
        """The volume is unloaded and goes back to a slot, its own if that is free, whose address
        this is; or it is let out for the operator to take. An empty drive: harmless. Raises
        ChangerError, Busy."""
        mover = self._arm or self._by_hand
        return mover.put_away(bay)

    def fetch(self, bay: Bay, what: str) -> None:
        """The cartridge of that serial, barcode or slot address is in the drive; not loaded, so its
        label is not known. Raises ChangerError without a changer."""
        slot = self.find(what)
        if slot is None:
            self._require_arm().fetch(bay, what)
        else:
            self._require_arm().fetch_from(bay, slot.address)

    def look(self, bay: Bay) -> str:
        """The serial of the volume in the drive, by its label; or in words why there is none."""
        return self._by_hand.look(bay)

    # --- cartridges

    def inventory(self, *, look: bool = False) -> list[Slot]:
        """Every slot of the changer; none without one. `look`: it looks into each anew."""
        return self._arm.inventory(look=look) if self._arm is not None else []

    def find(self, what: str) -> Slot | None:
        """Where the cartridge of that barcode, serial or slot address is. Raises ChangerError when
        two could be it."""
        return find(self.inventory(), what)

    def slot_of(self, bay: Bay) -> Slot | None:
        """The drive as the changer sees it; None without a changer."""
        return next((slot for slot in self.inventory() if slot.address == bay.address), None)

    def bay_with(self, what: str) -> Bay | None:
        """The drive that the cartridge is in."""
        slot = self.find(what)
        return next(
            (bay for bay in self._bays if slot is not None and bay.address == slot.address), None
        )

    def to_door(self, what: str) -> Slot:
        """Lay a cartridge into an import/export slot; which. Raises Busy, ChangerError."""
        return self._require_arm().to_door(lambda slots: find(slots, what), what)

    def from_door(self) -> list[tuple[Slot, Slot]]:
        """Lay what is in the import/export slots into storage slots; from where to where."""
        return self._require_arm().from_door()

    def _require_arm(self) -> ByArm:
        if self._arm is None:
            raise ChangerError(
                "there is no changer: volumes are put in and taken out by hand",
                hint="If there is one, name it: `changer` in [medium].",
            )
        return self._arm


def find(slots: Collection[Slot], what: str) -> Slot | None:
    """The slot with the cartridge of that barcode or serial, or with that address."""
    for slot in slots:
        if slot.full and slot.barcode == what:
            return slot
    found = holding(slots, what)
    if found is None and what.isdecimal():
        found = next((slot for slot in slots if str(slot.address) == what), None)
    return found
