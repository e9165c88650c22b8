"""What the mirrors' contract is checked with: an engine under test, and what is done to it."""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from splitmirror.errors import MirrorError
from splitmirror.mirrors import Mirror
from splitmirror.model import Leg, Volume

# Far more than any engine needs for the little that the checks write, far less than a hang.
LEG_DEADLINE_S = 60.0
QUICK_S = 1.0
CHUNK = 128 << 10


class ContractBroken(AssertionError):
    """The engine does not do what the seam promises; says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorHarness:
    """An engine under test. `open` gives a new handle on the same mirror each time, as another
    process would have it. `write` puts bytes on the primary as a filesystem would, durably. `read`
    and `read_leg` give what is there then, on the primary and on a leg, by the volumes' names.
    `quick_s`: what counts as quick; an emulated machine needs more."""

    open: Callable[[], Mirror]
    write: Callable[[Volume, int, bytes], None] = field(
        default_factory=lambda: write_through_device
    )
    read: Callable[[Sequence[Volume]], dict[str, bytes]] = field(default_factory=lambda: primary)
    read_leg: Callable[[Leg], dict[str, bytes]] = field(default_factory=lambda: contents)
    quick_s: float = QUICK_S


def write_through_device(volume: Volume, offset: int, data: bytes) -> None:
    """Write to the volume's block device (or file) and flush it."""
    fd = os.open(volume.device, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, data, offset)
        os.fsync(fd)
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One check's mirror, and what the checks do with it."""

    mirror: Mirror
    harness: MirrorHarness

    def scribble(self) -> None:
        """Write something new at the beginning, the middle and the end of every volume."""
        for volume in self.mirror.volumes():
            middle = volume.size // 2 // 4096 * 4096
            for offset in (0, middle, volume.size - CHUNK):
                self.harness.write(volume, offset, os.urandom(CHUNK))

    def primary(self) -> dict[str, bytes]:
        """What the volumes hold now."""
        return self.harness.read(self.volumes())

    def volumes(self) -> tuple[Volume, ...]:
        return self.mirror.volumes()

    def split(self) -> str:
        """Split under a new id."""
        split_id = f"check-{secrets.token_hex(4)}"
        self.mirror.split(split_id)
        return split_id

    def leg(self, split_id: str) -> dict[str, bytes]:
        """What the leg holds."""
        return self.harness.read_leg(self.mirror.leg(split_id, LEG_DEADLINE_S))


def primary(volumes: Sequence[Volume]) -> dict[str, bytes]:
    """The bytes of each volume's device."""
    return {volume.name: read_device(volume.device, 0, volume.size) for volume in volumes}


def contents(leg: Leg) -> dict[str, bytes]:
    """The bytes of each volume of a leg, its runs put together, read afresh."""
    return {
        name: b"".join(read_device(run.path, run.offset, run.length) for run in runs)
        for name, runs in leg.volumes.items()
    }


def read_device(path: str, offset: int, length: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


def claim(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ContractBroken(otherwise)


@contextlib.contextmanager
def refused(what: str, error: type[MirrorError] = MirrorError) -> Iterator[None]:
    """The block raises that error, and its hint says what to do."""
    try:
        yield
    except error as refusal:
        claim(bool(refusal.hint), f"{what} is refused without a hint")
    else:
        raise ContractBroken(f"{what} is not refused")


@contextlib.contextmanager
def harmless(what: str) -> Iterator[None]:
    try:
        yield
    except MirrorError as error:
        raise ContractBroken(f"{what} is not harmless: {error}") from error


class PairWriter:
    """Writes 1, 2, 3, … to the first volume and then to the second, on a thread, for a block."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._written = 0
        self._changed = threading.Condition()
        self._stop = False
        self._thread = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> PairWriter:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop = True
        self._thread.join()

    def wait_for(self, more: int) -> None:
        """Wait until that many more pairs are written."""
        with self._changed:
            enough = self._written + more
            self._changed.wait_for(lambda: self._written >= enough, timeout=LEG_DEADLINE_S)

    def _write(self) -> None:
        pair = self._case.volumes()[:2]
        number = 0
        while not self._stop:
            number += 1
            for volume in pair:
                self._case.harness.write(volume, 0, struct.pack("<Q", number).ljust(4096, b"\0"))
            with self._changed:
                self._written = number
                self._changed.notify_all()


def number_in(contents_of_volume: bytes) -> int:
    return int(struct.unpack_from("<Q", contents_of_volume)[0])
