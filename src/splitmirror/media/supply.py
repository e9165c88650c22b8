"""Where volumes come from: what writing and restoring see of drives, changers and pools.

They ask for the next volume to append to, or for one by its serial, and know nothing of who puts it
into which drive. All calls are made by one thread, one after another; what they give may be used on
another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

from splitmirror.errors import EndOfMedium, NoSuchVolume, WrongMedium
from splitmirror.media import Medium
from splitmirror.media.volume import VolumeWriter, look_at_volume, open_for_append
from splitmirror.media.walking import VolumeReader
from splitmirror.model import VolumeUse

Loaded = tuple[Medium, VolumeReader]
"""A drive, and the volume that is loaded in it to be read."""


class ReadSupply(Protocol):
    """Volumes to be read."""

    @property
    def readers(self) -> int:
        """How many can be read at once, 1 at least."""
        ...

    def at_hand(self) -> Sequence[str]:
        """The serials of the volumes that can be had without asking anybody, for when no catalogue
        says which one is wanted. Raises WrongMedium when there is nothing of ours."""
        ...

    def require(self, serials: Sequence[str]) -> None:
        """Raises NoSuchVolume or WrongMedium, naming those of these volumes that can surely not be
        had, while nothing was done yet. Brings none but the first."""
        ...

    def to_read(self, serial: str) -> AbstractContextManager[Loaded]:
        """That volume, until the block is left. No more than `readers` at once. Raises
        NoSuchVolume, WrongMedium, Busy, MediumError."""
        ...

    def close(self) -> None:
        """Let go of every drive. A second call is harmless."""
        ...


class Supply(ReadSupply, Protocol):
    """Volumes to be read, and written to. A stream is one drive's worth of a set, from 0."""

    @property
    def streams(self) -> int:
        """How many volumes can be written at once, 1 at least."""
        ...

    @property
    def left(self) -> int | None:
        """Bytes for which there is room on all volumes that can be had; None: not known, or there
        is no end to them. To be asked after `take`."""
        ...

    def look(self) -> None:
        """See beforehand that there will be something to write to; changes nothing. Raises
        NoSuchVolume, WrongMedium, MediumError, ChangerError, Busy."""
        ...

    def take(self) -> None:
        """What will be written to is nobody else's until `close`; before this nothing can be. A
        second call is harmless. Raises Busy, MediumError."""
        ...

    def next_volume(self, stream: int, passed: Collection[str]) -> VolumeWriter:
        """A volume ready to append to, none of those `passed`; the one that the stream had before
        is let go. Raises EndOfMedium or NoSuchVolume when there is none, with what to do."""
        ...

    def again(self, stream: int, serial: str) -> VolumeWriter:
        """That volume, to go on where a run was cut off; it is never labelled. Raises NoSuchVolume,
        WrongMedium, Busy, MediumError."""
        ...

    def noted(self, use: VolumeUse) -> None:
        """What was learnt of a volume that is done with, for whoever keeps records of volumes."""
        ...


@contextmanager
def loaded(medium: Medium) -> Iterator[VolumeReader]:
    """The volume in the drive, to be read; unloaded in the end. Raises WrongMedium for a blank one
    and for one that is not ours."""
    medium.load(writable=False)
    try:
        yield VolumeReader(medium)
    finally:
        medium.unload()


class OneVolume:
    """A drive with one volume in it, and no other: the whole supply of `volume = ` in the
    configuration. Without a serial it is only read, whichever it is."""

    readers = 1
    streams = 1

    def __init__(self, medium: Medium, serial: str = "") -> None:
        self._medium, self._serial = medium, serial

    # --- reading

    def at_hand(self) -> Sequence[str]:
        with loaded(self._medium) as volume:
            return [volume.serial]

    def require(self, serials: Sequence[str]) -> None:
        with loaded(self._medium) as volume:
            missing = [serial for serial in serials if serial != volume.serial]
            if missing:
                raise _another(missing, volume.serial)

    @contextmanager
    def to_read(self, serial: str) -> Iterator[Loaded]:
        with loaded(self._medium) as volume:
            if volume.serial != serial:
                raise _another([serial], volume.serial)
            yield self._medium, volume

    # --- writing

    @property
    def left(self) -> int | None:
        return self._medium.capacity.left

    def look(self) -> None:
        with suppress(NoSuchVolume):  # it is made when it is first written
            look_at_volume(self._medium, self._serial)

    def take(self) -> None:
        self._medium.load(writable=True)

    def next_volume(self, stream: int, passed: Collection[str]) -> VolumeWriter:
        if self._serial in passed:
            raise EndOfMedium(
                f"volume {self._serial} is full, and it is the only one",
                hint="Take a larger volume, or another one (change `volume` and the medium's "
                "path), and back up again.",
                volume=self._serial,
            )
        return open_for_append(self._medium, self._serial, label_blank=self._serial)

    def again(self, stream: int, serial: str) -> VolumeWriter:
        return open_for_append(self._medium, serial)

    def noted(self, use: VolumeUse) -> None:
        pass  # there is no choice of volumes that it could matter to

    def close(self) -> None:
        self._medium.unload()


def _another(wanted: Sequence[str], there: str) -> WrongMedium:
    named = f"volume{'s' * (len(wanted) > 1)} {', '.join(wanted)}"
    return WrongMedium(
        f"the set needs {named}, and volume {there} is loaded",
        hint=f"Load {named} (for a virtual tape, name its file as the medium's path) and start "
        "again.",
        loaded=there,
        wanted=tuple(wanted),
    )
