"""A medium changer: SMC-3's commands as Linux's ch and mtx give them, and a hand at its door."""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.vm.vtl import sense
from tests.vm.vtl.cartridge import Cartridge
from tests.vm.vtl.drive import Drive
from tests.vm.vtl.scsi import inquiry, mode_sense
from tests.vm.vtl.sense import Check, Code, Key, ReservationConflict, illegal

CHANGER = 8  # the device type of INQUIRY

# Where elements of a kind begin to be counted, as in libraries one can buy.
ARM, DOORS, BAYS, SLOTS = 1, 16, 256, 1024

_INQUIRY, _REQUEST_SENSE = 0x12, 0x03
_BARCODE_SIZE = 32


class Kind(enum.IntEnum):
    """SMC-3, 6.11: element type codes."""

    ARM = 1
    SLOT = 2
    DOOR = 3
    BAY = 4


@dataclass(slots=True, kw_only=True)
class Faults:
    """What is wrong with the changer, until it is set back."""

    stuck: bool = False  # the arm moves nothing
    reserved: bool = False  # by another initiator
    door_open: bool = False
    no_labels: bool = False  # it reads no barcodes, and refuses to tell any
    no_devices: bool = False  # it does not tell which drive is which


class Changer:
    """Slots, import/export slots (doors), one bay a drive, one arm."""

    def __init__(self, serial: str, drives: Sequence[Drive], *, slots: int, doors: int) -> None:
        self.serial = serial
        self.faults = Faults()
        self.slots: list[Cartridge | None] = [None] * slots
        self.doors: list[Cartridge | None] = [None] * doors
        self._drives = drives
        self._origin: dict[str, int] = {}  # from which slot a cartridge came, by its name
        self._remembered: dict[int, Cartridge] = {}  # what is gone, and it has not looked since
        self._attention: Code | None = sense.POWER_ON
        self._commands: dict[int, Callable[[bytes], bytes]] = {
            0x00: self._nothing,
            0x07: self._look,
            0x1A: self._mode_sense,
            0x1E: self._nothing,
            0x2B: self._nothing,  # POSITION TO ELEMENT
            0x37: self._nothing,
            0x5A: self._mode_sense,
            0xA5: self._move,
            0xB8: self._element_status,
        }

    # --- a hand at the door

    def put_in(self, door: int, cartridge: Cartridge) -> None:
        if self.doors[door] is not None:
            raise ValueError(f"something lies behind door {door}")
        self.doors[door] = cartridge
        self._attention = sense.DOOR_OPENED

    def take_out(self, door: int) -> Cartridge:
        cartridge = self.doors[door]
        if cartridge is None:
            raise ValueError(f"nothing lies behind door {door}")
        self.doors[door] = None
        self._attention = sense.DOOR_OPENED
        return cartridge

    def take_unseen(self, address: int) -> Cartridge:
        """Out of a slot; the changer goes on to say that it is there until it looks."""
        cartridge = self._at(address)
        if cartridge is None:
            raise ValueError(f"nothing is in slot {address}")
        self._take(address)
        self._remembered[address] = cartridge
        return cartridge

    # --- commands

    def delay_s(self, cdb: bytes) -> float:
        return 0.0

    def command(self, cdb: bytes, data: bytes) -> bytes:
        if cdb[0] == _INQUIRY:
            return inquiry(cdb, kind=CHANGER, product="VIRTUAL-LIBRARY", serial=self.serial)
        if cdb[0] == _REQUEST_SENSE:
            return Check(Key.NO_SENSE, sense.NOTHING_ADDED).sense()
        if self.faults.reserved:
            raise ReservationConflict
        if self._attention is not None:
            told, self._attention = self._attention, None
            raise Check(Key.UNIT_ATTENTION, told)
        if self.faults.door_open:
            raise Check(Key.NOT_READY, sense.DOOR_IS_OPEN)
        if cdb[0] not in self._commands:
            raise illegal(sense.UNKNOWN_COMMAND)
        return self._commands[cdb[0]](cdb)

    def _nothing(self, cdb: bytes) -> bytes:
        return b""

    def _look(self, cdb: bytes) -> bytes:
        """INITIALIZE ELEMENT STATUS."""
        self._remembered.clear()
        return b""

    def _mode_sense(self, cdb: bytes) -> bytes:
        counts = (ARM, 1, SLOTS, len(self.slots), DOORS, len(self.doors), BAYS, len(self._drives))
        everywhere = 0x0F  # a cartridge may be kept in, and moved from, any kind of element
        pages = {
            0x1D: struct.pack(">8H2x", *counts),
            0x1E: bytes(2),
            0x1F: bytes([0x0E, 0, *[everywhere] * 4]) + bytes(12),
        }
        return mode_sense(cdb, pages)

    def _move(self, cdb: bytes) -> bytes:
        self.move(*struct.unpack(">HH", cdb[4:8]))
        return b""

    def move(self, source: int, destination: int) -> None:
        """Raises Check."""
        cartridge = self._at(source)
        if cartridge is None:
            raise illegal(sense.SOURCE_EMPTY)
        if source == destination:
            return
        if self._at(destination) is not None:
            raise illegal(sense.DESTINATION_FULL)
        if self.faults.stuck:
            raise Check(Key.HARDWARE_ERROR, sense.MECHANICAL)
        self._take(source)
        self._put(destination, cartridge)
        if source >= SLOTS:
            self._origin[cartridge.name] = source

    def _at(self, address: int) -> Cartridge | None:
        place = self._place(address)
        return place.cartridge if isinstance(place, Drive) else place[0][place[1]]

    def _take(self, address: int) -> None:
        place = self._place(address)
        if isinstance(place, Drive):
            place.remove()
        else:
            place[0][place[1]] = None

    def _put(self, address: int, cartridge: Cartridge) -> None:
        place = self._place(address)
        if isinstance(place, Drive):
            place.insert(cartridge)
        else:
            place[0][place[1]] = cartridge

    def _place(self, address: int) -> Drive | tuple[list[Cartridge | None], int]:
        if BAYS <= address < BAYS + len(self._drives):
            return self._drives[address - BAYS]
        for first, places in ((SLOTS, self.slots), (DOORS, self.doors)):
            if first <= address < first + len(places):
                return places, address - first
        raise illegal(sense.UNKNOWN_ELEMENT)

    # --- READ ELEMENT STATUS

    def _element_status(self, cdb: bytes) -> bytes:
        """Of the elements from an address on, so many, one kind or all; in the order of kinds."""
        labels, wanted = bool(cdb[1] & 0x10), cdb[1] & 0x0F
        if (labels and self.faults.no_labels) or (cdb[6] & 1 and self.faults.no_devices):
            raise illegal()
        first, most = struct.unpack(">HH", cdb[2:6])
        room = int.from_bytes(cdb[7:10], "big")
        told: list[int] = []
        pages = b""
        for kind, addresses in self._elements():
            chosen = [address for address in addresses if address >= first][: most - len(told)]
            if not chosen or wanted not in (0, kind):
                continue
            told += chosen
            about = [self._descriptor(kind, at, labels, bool(cdb[6] & 1)) for at in chosen]
            size = max(map(len, about))
            body = b"".join(one.ljust(size, b"\0") for one in about)
            head = struct.pack(">BBH", kind, 0x80 if labels else 0, size)
            pages += head + len(body).to_bytes(4, "big") + body
        head = struct.pack(">HH", min(told, default=0), len(told))
        return (head + len(pages).to_bytes(4, "big") + pages)[:room]

    def _elements(self) -> Iterator[tuple[Kind, range]]:
        yield Kind.ARM, range(ARM, ARM + 1)
        yield Kind.SLOT, range(SLOTS, SLOTS + len(self.slots))
        yield Kind.DOOR, range(DOORS, DOORS + len(self.doors))
        yield Kind.BAY, range(BAYS, BAYS + len(self._drives))

    def _descriptor(self, kind: Kind, address: int, labels: bool, identify: bool) -> bytes:
        cartridge = None if kind is Kind.ARM else self._at(address)
        cartridge = cartridge or self._remembered.get(address)
        flags = _full(cartridge) | (0 if kind is Kind.ARM else 0x08)
        serial = b""
        if kind is Kind.DOOR:
            flags |= 0x30 | (0x02 if cartridge else 0)  # may go in and out; a hand put it there
        if kind is Kind.BAY:
            drive = self._drives[address - BAYS]
            if drive.loaded:
                flags &= ~0x08  # the arm cannot take what the drive has not let go
            serial = drive.serial.encode() if identify else b""
        origin = self._origin.get(cartridge.name) if cartridge else None
        source = struct.pack(">BH", 0x80 if origin is not None else 0, origin or 0)
        label = b""
        if labels:
            barcode = cartridge.kind.barcode if cartridge else ""
            label = barcode.ljust(_BARCODE_SIZE).encode() if barcode else bytes(_BARCODE_SIZE)
            label += bytes(4)
        identity = bytes([2 if serial else 0, 0, 0, len(serial)]) + serial
        return struct.pack(">HB6x", address, flags) + source + label + identity


def _full(cartridge: Cartridge | None) -> int:
    return 1 if cartridge else 0
