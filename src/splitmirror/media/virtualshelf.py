"""A virtual tape library: a directory of virtual tapes, drives for them, and an arm.

A cartridge is a file of the directory, its barcode the file's name (capital letters and digits); an
empty file is a blank cartridge. Which cartridge is where stands in a small state file, written
whole and durably, so that every process sees the same library. A file that is new is put into a
free slot when the library is next asked; one that is gone was taken out. As a real drive
does, a drive keeps hold of a cartridge that somebody has loaded.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from splitmirror.errors import Busy, ChangerError, ConfigError, MediumError, NoSuchVolume
from splitmirror.media import Block, Capacity, Limits, Mark, Medium, Place, read_many
from splitmirror.media.asking import AskSettings
from splitmirror.media.changer import Slot, SlotKind, is_cleaning
from splitmirror.system import briefly
from splitmirror.units import size_setting

_STATE = ".library.json"
_BARCODE = re.compile(r"[A-Z0-9]{1,32}")
# Where the addresses of each kind begin.
_FIRST: Final = {SlotKind.DRIVE: 1, SlotKind.DOOR: 100, SlotKind.STORAGE: 1000}


class ShelfSettings(AskSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a virtual tape's settings have for every volume, and for a library of them.

    `capacity`: the largest size of a volume's file; without it the filesystem's room is the limit.
    `early_warning`: how much room is left when the early warning comes; the trailer must fit.
    `shelf`: the directory of a library's cartridges; it has so many drives, storage slots and
    import/export slots (doors).
    """

    capacity: str | int | None = None
    early_warning: str | int = "16MiB"
    shelf: str = ""
    drives: int = 1
    slots: int = 8
    doors: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shelf and not Path(self.shelf).is_absolute():
            raise ConfigError(
                f"[medium] shelf = {self.shelf!r} is not absolute", hint="Begin it with a slash."
            )
        for key, least, most in (("drives", 1, 99), ("slots", 1, 9999), ("doors", 0, 99)):
            if not least <= getattr(self, key) <= most:
                raise ConfigError(
                    f"[medium] {key} is {getattr(self, key)}", hint=f"Take {least} to {most}."
                )
        self._check_capacity()

    def _check_capacity(self) -> None:
        early = size_setting("[medium] early_warning", self.early_warning)
        if self.capacity is None:
            return
        if size_setting("[medium] capacity", self.capacity) <= early:
            raise ConfigError(
                f"[medium] capacity {self.capacity} is not above early_warning "
                f"{self.early_warning}",
                hint="Give the volume more capacity, or a smaller early_warning.",
            )

    def open_shelf(self) -> VirtualShelf:
        return VirtualShelf(
            Path(self.shelf), drives=self.drives, slots=self.slots, doors=self.doors
        )


class _State(msgspec.Struct, kw_only=True):
    """By barcode: the address of each cartridge, and of the storage slot it last was in."""

    at: dict[str, int] = {}
    home: dict[str, int] = {}


class VirtualShelf:
    """The library and its arm; a Changer. Any number of processes may have one of a directory."""

    def __init__(self, directory: Path, *, drives: int, slots: int, doors: int) -> None:
        self._directory = directory
        self._addresses = {
            kind: range(_FIRST[kind], _FIRST[kind] + count)
            for kind, count in (
                (SlotKind.DRIVE, drives),
                (SlotKind.DOOR, doors),
                (SlotKind.STORAGE, slots),
            )
        }

    @property
    def drives(self) -> Sequence[int]:
        """The addresses of the drives."""
        return self._addresses[SlotKind.DRIVE]

    def drive_name(self, address: int) -> str:
        return f"{self._directory}:drive{address}"

    # --- the changer

    def inventory(self, *, look: bool = False) -> list[Slot]:
        """`look` finds nothing more: the directory is looked at every time."""
        with self._state() as state:
            return self._slots(state)

    def move(self, source: int, destination: int) -> None:
        with self._state() as state:
            slots = {slot.address: slot for slot in self._slots(state)}
            for address in (source, destination):
                if address not in slots:
                    raise self._refused(f"there is no slot with the address {address}")
            if not slots[source].full:
                raise self._refused(f"there is nothing in slot {source} to be moved")
            if slots[destination].full:
                there = slots[destination].cartridge
                raise self._refused(f"slot {destination} is not empty: {there} is in it")
            barcode = slots[source].barcode
            if slots[source].kind is SlotKind.DRIVE:
                self._require_unloaded(barcode)
            self._place(state, barcode, destination)

    def close(self) -> None:
        """Nothing is held open."""

    def in_drive(self, address: int) -> Path | None:
        """The file of the cartridge in a drive; None: the drive is empty."""
        with self._state() as state:
            found = [barcode for barcode, at in state.at.items() if at == address]
        return self._directory / found[0] if found else None

    # --- inside

    def _slots(self, state: _State) -> list[Slot]:
        barcodes = {address: barcode for barcode, address in state.at.items()}
        return [
            Slot(
                address=address,
                kind=kind,
                full=address in barcodes,
                barcode=barcodes.get(address, ""),
                cleaning=is_cleaning(barcodes.get(address, "")),
                source=state.home.get(barcodes.get(address, "")),
                device=self.drive_name(address) if kind is SlotKind.DRIVE else "",
            )
            for kind, addresses in self._addresses.items()
            for address in addresses
        ]

    def _place(self, state: _State, barcode: str, address: int) -> None:
        state.at[barcode] = address
        if address in self._addresses[SlotKind.STORAGE]:
            state.home[barcode] = address

    @contextmanager
    def _state(self) -> Iterator[_State]:
        """The state, for this process alone, level with the directory; kept if it was changed."""
        path = self._directory / _STATE
        try:
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._trouble(error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            before = path.read_bytes() if path.exists() else b"{}"
            state = msgspec.json.decode(before, type=_State)
            self._level(state)
            yield state
            after = msgspec.json.encode(state)
            if after != before:
                self._save(path, after, fd)
        except OSError as error:
            raise self._trouble(error) from error
        except msgspec.DecodeError as error:
            raise ChangerError(
                f"{path} is damaged: {error}",
                hint="Remove it: every cartridge is put into a storage slot then.",
            ) from error
        finally:
            os.close(fd)

    def _level(self, state: _State) -> None:
        """What was taken out is gone, what is new goes into a free storage slot that is nobody's
        place, or into a free import/export slot, as far as there are any."""
        there = {each.name for each in self._directory.iterdir() if _BARCODE.fullmatch(each.name)}
        known = {at for addresses in self._addresses.values() for at in addresses}
        for barcode, address in list(state.at.items()):
            if barcode not in there or address not in known:
                del state.at[barcode]
        state.home = {name: at for name, at in state.home.items() if name in state.at}
        for barcode in sorted(there - set(state.at)):
            taken = {*state.at.values(), *state.home.values()}
            places = (*self._addresses[SlotKind.STORAGE], *self._addresses[SlotKind.DOOR])
            free = [at for at in places if at not in taken]
            if not free:
                return
            self._place(state, barcode, free[0])

    @staticmethod
    def _save(path: Path, text: bytes, directory_fd: int) -> None:
        fresh = path.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(text)
            os.fsync(file.fileno())
        fresh.replace(path)
        os.fsync(directory_fd)

    def _require_unloaded(self, barcode: str) -> None:
        """A virtual tape that is loaded is locked (flock(2)) by who has it."""
        fd = os.open(self._directory / barcode, os.O_RDONLY | os.O_CLOEXEC)
        try:
            lock = fcntl.LOCK_EX | fcntl.LOCK_NB
            briefly.tried(lambda: fcntl.flock(fd, lock), frozenset({errno.EAGAIN}))
        except BlockingIOError:
            raise Busy(
                f"the drive does not let go of {barcode}: it is loaded",
                hint="Wait for the run that uses it, or end it.",
                barcode=barcode,
            ) from None
        finally:
            os.close(fd)

    def _refused(self, why: str) -> ChangerError:
        return ChangerError(
            f"the virtual library {self._directory} refuses: {why}",
            hint="`splitmirror media inventory` shows what is where.",
            path=str(self._directory),
        )

    def _trouble(self, error: OSError) -> ChangerError:
        return ChangerError(
            f"the virtual library {self._directory} cannot be used: {error.strerror}",
            hint="The directory must exist and be writable; its files are the cartridges.",
            path=str(self._directory),
        )


class ShelfDrive:
    """A Medium: the virtual tape of the cartridge that the arm has put into this drive."""

    def __init__(
        self, shelf: VirtualShelf, address: int, limits: Limits, open_tape: Callable[[Path], Medium]
    ) -> None:
        """`open_tape` makes the medium of a cartridge's file."""
        self.limits = limits
        self._shelf = shelf
        self._address = address
        self._open_tape = open_tape
        self._tape: Medium | None = None

    @property
    def name(self) -> str:
        return self._shelf.drive_name(self._address)

    @property
    def device(self) -> str:
        return self.name

    def load(self, *, writable: bool) -> None:
        tape = self._tape or self._in_drive()
        self._tape = None
        tape.load(writable=writable)
        self._tape = tape

    def _in_drive(self) -> Medium:
        path = self._shelf.in_drive(self._address)
        if path is None:
            raise NoSuchVolume(
                f"there is no cartridge in {self.name}",
                hint="Load one with `splitmirror media load`.",
            )
        return self._open_tape(path)

    def unload(self) -> None:
        tape, self._tape = self._tape, None
        if tape is not None:
            tape.unload()

    def eject(self) -> None:
        """The arm can take the cartridge then. A second call is harmless."""
        self.unload()

    def write(self, blocks: Sequence[Block]) -> bool:
        return self._loaded.write(blocks)

    def write_filemarks(self, count: int, *, sync: bool) -> bool:
        return self._loaded.write_filemarks(count, sync=sync)

    def read(self, buffer: memoryview) -> int | Mark:
        return self._loaded.read(buffer)

    def read_many(self, buffer: memoryview, most: int) -> tuple[list[Place], Mark | None]:
        return read_many(self._loaded, buffer, most)

    def locate(self, position: int) -> None:
        self._loaded.locate(position)

    def space_filemarks(self, count: int) -> None:
        self._loaded.space_filemarks(count)

    def tell(self) -> int:
        return self._loaded.tell()

    @property
    def capacity(self) -> Capacity:
        return self._loaded.capacity

    @property
    def _loaded(self) -> Medium:
        if self._tape is None:
            raise MediumError(f"{self.name} is not loaded", hint="Load it first.")
        return self._tape
