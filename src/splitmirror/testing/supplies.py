"""A supply of volumes for tests: virtual tapes in a directory, in as many drives as are wanted.

It notes what is asked of it, and sees that it is asked by one thread and never for more volumes at
once than it has drives.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from splitmirror.errors import Busy, EndOfMedium, NoSuchVolume
from splitmirror.media import Medium
from splitmirror.media.supply import Loaded, loaded
from splitmirror.media.virtualtape import VirtualTape
from splitmirror.media.volume import VolumeWriter, open_for_append
from splitmirror.model import VolumeUse


def bare(serial: str, medium: Medium) -> Medium:
    """The medium as it is."""
    return medium


class TapeShelf:
    """A Supply of the volumes with these serials; each is a file of that name in the directory, and
    is made when it is first written.

    `wrap` puts something (faults, a counter) around the drive with a volume in it. `brought`: what
    was asked for to be read, in order; `uses`: what was learnt of volumes.
    """

    left = None  # nobody knows how often a tape can be added to the shelf

    def __init__(
        self,
        directory: Path,
        serials: Sequence[str],
        *,
        capacity: int | None = None,
        early_warning: int = 0,
        drives: int = 1,
        wrap: Callable[[str, Medium], Medium] = bare,
    ) -> None:
        self.serials = list(serials)
        self.streams = self.readers = drives
        self.brought: list[str] = []
        self.uses: list[VolumeUse] = []
        self._directory, self._capacity, self._early = directory, capacity, early_warning
        self._wrap = wrap
        self._written: dict[int, Medium] = {}  # in the drive of each stream
        self._read = 0
        self._thread = threading.current_thread()

    def path(self, serial: str) -> Path:
        return self._directory / f"{serial}.tap"

    def drive(self, serial: str) -> Medium:
        """A drive with that volume in it, not loaded."""
        tape = VirtualTape(self.path(serial), capacity=self._capacity, early_warning=self._early)
        return self._wrap(serial, tape)

    # --- reading

    def at_hand(self) -> Sequence[str]:
        return [serial for serial in self.serials if self.path(serial).exists()]

    def require(self, serials: Sequence[str]) -> None:
        if missing := [serial for serial in serials if serial not in self.at_hand()]:
            raise _missing(*missing)

    @contextmanager
    def to_read(self, serial: str) -> Iterator[Loaded]:
        self._one_thread()
        if serial not in self.at_hand():
            raise _missing(serial)
        if self._read == self.readers:
            raise Busy("every drive has a volume in it", hint="Let one go first.")
        self.brought.append(serial)
        medium = self.drive(serial)
        self._read += 1
        try:
            with loaded(medium) as volume:
                yield medium, volume
        finally:
            self._one_thread()
            self._read -= 1

    # --- writing

    def look(self) -> None:
        self._one_thread()

    def take(self) -> None:
        self._one_thread()

    def next_volume(self, stream: int, passed: Collection[str]) -> VolumeWriter:
        self._let_go(stream)
        for serial in self.serials:
            if serial not in passed:
                return self._loaded(stream, serial, label_blank=serial)
        raise EndOfMedium(
            f"no volume is left on the shelf beside {', '.join(sorted(passed))}",
            hint="Put another one there.",
        )

    def again(self, stream: int, serial: str) -> VolumeWriter:
        self._let_go(stream)
        if serial not in self.at_hand():
            raise _missing(serial)
        return self._loaded(stream, serial)

    def _loaded(self, stream: int, serial: str, label_blank: str | None = None) -> VolumeWriter:
        if not 0 <= stream < self.streams:
            raise Busy(f"there is no drive {stream}", hint="Ask for fewer streams.")
        medium = self._written[stream] = self.drive(serial)
        return open_for_append(medium, serial, label_blank=label_blank)

    def noted(self, use: VolumeUse) -> None:
        self._one_thread()
        self.uses.append(use)

    def close(self) -> None:
        for stream in list(self._written):
            self._let_go(stream)

    def _let_go(self, stream: int) -> None:
        self._one_thread()
        if (medium := self._written.pop(stream, None)) is not None:
            medium.unload()

    def _one_thread(self) -> None:
        if threading.current_thread() is not self._thread:
            raise AssertionError("a supply is asked by one thread")


def _missing(*serials: str) -> NoSuchVolume:
    return NoSuchVolume(
        f"the shelf lacks {', '.join(f'volume {serial}' for serial in serials)}",
        hint="Put them there.",
        serials=serials,
    )
