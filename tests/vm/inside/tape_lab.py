"""A tape library with one drive's worth of trouble, for the scenarios of media/tape.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.vm.vtl.cartridge import MIB, Kind
from tests.vm.vtl.library import Library, cartridges
from tests.vm.vtl.service import Shape

from splitmirror.media import Medium
from splitmirror.media.tape import Settings, Tape
from splitmirror.testing.media import EARLY
from splitmirror.testing.media_faults import Trouble

ROOMY, SMALL = "ROOMY0L8", "SMALL0L8"  # cartridges: with room, and one that `limited` shapes
NO_FAULTS: dict[str, Any] = {
    "read_error_at": None,
    "write_error_at": None,
    "write_takes_s": 0.0,
    "no_positioning": False,
    "fixed_block": 0,
    "reserved": False,
    "alerts": [],
}


@contextmanager
def library(directory: Path, more: tuple[Kind, ...] = ()) -> Iterator[Library]:
    """Two drives, empty, the two cartridges in the first slots, and more behind them."""
    kinds = cartridges(ROOMY, SMALL)
    with Library(Shape(cartridges=(*kinds, *more)), directory) as library:
        yield library


class TapeBench:
    """`no_positioning`: the drives neither tell where they stand nor locate."""

    def __init__(self, library: Library, *, no_positioning: bool = False) -> None:
        self._library = library
        self._no_positioning = no_positioning
        self._media: list[Tape] = []

    def blank(self) -> Medium:
        self._bring(ROOMY, 0)
        self._library.blank(ROOMY)
        return self._tape(0)

    def limited(self, size: int) -> Medium:
        self._bring(SMALL, 0)
        self._library.blank(SMALL)
        # The warning comes with the record that leaves less than so much.
        self._library.set(SMALL, capacity=size, early_warning=EARLY)
        return self._tape(0)

    def second(self, medium: Medium) -> Medium:
        """The other drive, with the cartridge in it; where the first one is in use, the same."""
        assert isinstance(medium, Tape)
        number = self._library.drives.index(medium.name)
        if medium.in_use:
            return self._tape(number)
        name = self._library.where()["drives"][number]
        assert name is not None
        self._bring(name, 1 - number)
        return self._tape(1 - number)

    def make(self, medium: Medium, trouble: Trouble, object_: int = 0) -> None:
        assert isinstance(medium, Tape)
        number = self._library.drives.index(medium.name)
        name = self._library.where()["drives"][number]
        assert name is not None
        if trouble is Trouble.UNREADABLE:
            self._library.fault(number, read_error_at=object_)
        elif trouble is Trouble.UNWRITABLE:
            self._library.fault(number, write_error_at=object_)
        elif trouble is Trouble.RESERVED:
            self._library.fault(number, reserved=True)
        elif trouble is Trouble.RESET:
            self._library.power_cycle(number)
        elif trouble is Trouble.SLIPPED:
            self._library.slip(number, objects=-3)
        else:
            self._take_out_and_in(number, name, trouble)

    def _take_out_and_in(self, number: int, name: str, trouble: Trouble) -> None:
        """The tab is slid where one can reach it."""
        for tape in self._media:
            tape.unload()
        home = self._home(name)
        self._library.move(self._library.bays[number], home)
        if trouble is Trouble.PROTECTED:
            self._library.set(name, write_protected=True)
        else:
            self._library.set(name, write_once=True)
        self._library.move(home, self._library.bays[number])

    def end(self, medium: Medium) -> None:
        for number in range(2):
            self._library.fault(number, **NO_FAULTS | {"no_positioning": self._no_positioning})

    def close(self) -> None:
        """Everything as it was made."""
        for tape in self._media:
            tape.unload()
        for number in range(2):
            self._library.fault(number, **NO_FAULTS)
        for name in (ROOMY, SMALL):
            self._put_home(name)
            self._library.set(name, write_protected=False, write_once=False, capacity=64 * MIB)

    def _tape(self, number: int) -> Tape:
        self._library.fault(number, no_positioning=self._no_positioning)
        tape = Tape(self._library.drives[number], Settings(drives=self._library.drives))
        self._media.append(tape)
        return tape

    def _bring(self, name: str, number: int) -> None:
        drives = self._library.where()["drives"]
        if drives[number] == name:
            return
        if (there := drives[number]) is not None:
            self._put_home(there)
        self._put_home(name)
        self._library.move(self._home(name), self._library.bays[number])

    def _put_home(self, name: str) -> None:
        drives = self._library.where()["drives"]
        if name in drives:
            self._library.move(self._library.bays[drives.index(name)], self._home(name))

    def _home(self, name: str) -> int:
        return self._library.slots[(ROOMY, SMALL).index(name)]
