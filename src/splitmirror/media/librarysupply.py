"""Volumes to be read, brought into the drives of a library by whoever does that there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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
        pass  # what is not in the library is asked for when it is wanted

    @contextmanager
    def to_read(self, serial: str) -> Iterator[Loaded]:
        with self._library.lease(rather=[serial]) as (bay,):
            self._library.bring(bay, serial, writable=False)
            yield bay.medium, VolumeReader(bay.medium)
