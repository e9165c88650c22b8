"""Any changer with troubles that a test switches on, in the manner of nbdkit's error filter.

    changer = FaultyChanger(inner)
    changer.troubles.add((Trouble.MOVE_REFUSED, 1001))

The library behind it stays as it is: what is refused was not done.
"""

from __future__ import annotations

import dataclasses

from splitmirror.errors import Busy, ChangerError, ChangerNotReady
from splitmirror.media.changer import Changer, Slot
from splitmirror.testing.changers import Trouble


class FaultyChanger:
    """A Changer around another one. Several may share the `troubles`."""

    def __init__(self, inner: Changer, troubles: set[tuple[Trouble, int]] | None = None) -> None:
        self.troubles = set() if troubles is None else troubles
        self._inner = inner

    def inventory(self, *, look: bool = False) -> list[Slot]:
        self._check_door()
        return [self._told(slot, look) for slot in self._inner.inventory(look=look)]

    def move(self, source: int, destination: int) -> None:
        self._check_door()
        for address in (source, destination):
            if (Trouble.MOVE_REFUSED, address) in self.troubles:
                raise _fault(ChangerError, f"the arm fails at slot {address}")
        if (Trouble.DRIVE_HOLDS, source) in self.troubles:
            raise _fault(Busy, f"the drive in slot {source} does not let the cartridge out")
        if (Trouble.GONE, source) in self.troubles:
            raise _fault(ChangerError, f"slot {source} proves to be empty")
        self._inner.move(source, destination)

    def close(self) -> None:
        self._inner.close()

    def _check_door(self) -> None:
        if any(trouble is Trouble.DOOR_OPEN for trouble, _ in self.troubles):
            raise _fault(ChangerNotReady, "the door is open")

    def _told(self, slot: Slot, look: bool) -> Slot:
        if look and (Trouble.GONE, slot.address) in self.troubles:
            return dataclasses.replace(slot, full=False, barcode="", source=None)
        if (Trouble.UNREADABLE, slot.address) in self.troubles:
            return dataclasses.replace(slot, barcode="", cleaning=False)
        return slot


def _fault(kind: type[ChangerError] | type[Busy], what: str) -> ChangerError | Busy:
    return kind(f"{what} (a fault that was asked for)", hint="Switch the fault off.")
