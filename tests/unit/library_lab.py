"""A virtual library in a directory, with troubles and an operator, for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from splitmirror.errors import NoSuchVolume
from splitmirror.media import Medium
from splitmirror.media.library import Library
from splitmirror.media.virtualshelf import ShelfDrive, VirtualShelf
from splitmirror.media.virtualtape import VirtualTape
from splitmirror.media.volume import label_volume
from splitmirror.testing.changers import Trouble
from splitmirror.testing.faulty_changers import FaultyChanger

CLEANING = "CLN001L1"
_CONFIG = """
source = "files"
state_dir = "{state}"
volume = "SM0001"
[database]
driver = "none"
paths = ["/srv/files"]
[mirror]
driver = "lvm"
[[mirror.volumes]]
lv = "data/files"
[medium]
"""


def config_of(state: Path, medium: str) -> str:
    """A configuration with these lines about its medium, which come last."""
    return _CONFIG.format(state=state) + medium


class Operator:
    """Does one thing at each question, and nobody is there any more when there is none left."""

    def __init__(self, *acts: Callable[[], object]) -> None:
        self.asked: list[str] = []
        self._acts = list(acts)

    def __call__(self, wanted: str) -> None:
        self.asked.append(wanted)
        if not self._acts:
            raise NoSuchVolume(f"nobody answers: {wanted}", hint="Come back.")
        self._acts.pop(0)()


class LibraryLab:
    """`labelled` cartridges SM0001L8 and so on, then blank ones, then a cleaning cartridge."""

    def __init__(
        self,
        directory: Path,
        *,
        labelled: int = 3,
        blank: int = 0,
        drives: int = 2,
        slots: int = 8,
        doors: int = 1,
    ) -> None:
        self.directory = directory / "shelf"
        self.directory.mkdir()
        self.leases = directory / "leases"
        self.troubles: set[tuple[Trouble, int]] = set()
        self._shape = (drives, slots, doors)
        for number in range(1, labelled + 1):
            self.labelled(f"SM{number:04}L8", f"SM{number:04}")
        for number in range(labelled + 1, labelled + blank + 1):
            (self.directory / f"SM{number:04}L8").touch()
        (self.directory / CLEANING).touch()
        self.shelf.inventory()

    def labelled(self, barcode: str, serial: str) -> None:
        medium = self.tape(self.directory / barcode)
        label_volume(medium, serial)
        medium.unload()

    @property
    def shelf(self) -> VirtualShelf:
        drives, slots, doors = self._shape
        return VirtualShelf(self.directory, drives=drives, slots=slots, doors=doors)

    def drives(self) -> list[Medium]:
        shelf = self.shelf
        return [ShelfDrive(shelf, at, VirtualTape.limits, self.tape) for at in shelf.drives]

    def library(self, operator: Callable[[str], None] | None = None) -> Library:
        changer = FaultyChanger(self.shelf, self.troubles)
        return Library(self.drives(), changer, leases=self.leases, ask=operator or Operator())

    def hand_in(self, barcode: str, address: int = 100) -> None:
        """A blank cartridge, laid into an import/export slot."""
        (self.directory / barcode).touch()
        self.move(barcode, address)

    def where(self) -> dict[str, int]:
        """The address of each cartridge, by its barcode."""
        return {slot.barcode: slot.address for slot in self.shelf.inventory() if slot.full}

    def move(self, barcode: str, address: int) -> None:
        if self.where()[barcode] != address:
            self.shelf.move(self.where()[barcode], address)

    @staticmethod
    def tape(path: Path) -> VirtualTape:
        return VirtualTape(path, capacity=None, early_warning=0)
