"""Volumes to be read, brought into the drives of a library by whoever does that there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from splitmirror.errors import NoSuchVolume
from splitmirror.media.changer import serial_of
from splitmirror.media.library import Library
from splitmirror.media.supply import Loaded
from splitmirror.media.walking import VolumeReader


class LibraryVolumes:
    """A ReadSupply: volumes that a library brings."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def close(self) -> None:
        self._library.close()

    @property
    def readers(self) -> int:
        return len(self._library.bays)

    def at_hand(self) -> Sequence[str]:
        if self._library.has_changer:
            slots = self._library.inventory()
            found = [serial_of(slot.barcode) for slot in slots if slot.full and not slot.cleaning]
            return [serial for serial in found if serial]
        with self._library.lease() as (bay,):
            bay.medium.load(writable=False)
            return [VolumeReader(bay.medium).serial]

    def require(self, serials: Sequence[str]) -> None:
        """By the barcodes. Where there are none, or no changer, volumes are asked for when they are
        wanted."""
        slots = [slot for slot in self._library.inventory() if slot.full]
        if not any(slot.barcode for slot in slots):
            return
        absent = [serial for serial in serials if not any(slot.holds(serial) for slot in slots)]
        if absent:
            named = f"volume{'s' * (len(absent) > 1)} {', '.join(absent)}"
            raise NoSuchVolume(
                f"the set needs {named}, which the library does not have",
                hint="Lay them into import/export slots, run `splitmirror media import`, and start "
                "again.",
                wanted=tuple(absent),
            )

    @contextmanager
    def to_read(self, serial: str) -> Iterator[Loaded]:
        with self._library.lease(rather=[serial]) as (bay,):
            self._library.bring(bay, serial, writable=False)
            yield bay.medium, VolumeReader(bay.medium)
