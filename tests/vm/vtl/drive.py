"""A tape drive: SSC-3's commands as Linux's st gives them, and the faults a test asks for."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.vm.vtl import sense
from tests.vm.vtl.cartridge import MIB, Cartridge
from tests.vm.vtl.scsi import inquiry, log_page, mode_selected, mode_sense
from tests.vm.vtl.sense import Bit, Check, Code, Key, ReservationConflict, illegal

TAPE = 1  # the device type of INQUIRY
LARGEST = 8 << 20  # bytes in a record, as LTO's
LTO8 = 0x5E  # density code

_INQUIRY, _REQUEST_SENSE, _LOG_SENSE = 0x12, 0x03, 0x4D
_WRITE, _WRITE_FILEMARKS = 0x0A, 0x10
_POSITIONING = frozenset({0x2B, 0x34, 0x92})  # LOCATE, READ POSITION, LOCATE(16)
_SPACE_RECORDS, _SPACE_FILEMARKS, _SPACE_TO_END = 0, 1, 3


@dataclass(slots=True, kw_only=True)
class Faults:
    """What is wrong with the drive, until it is set back. Objects are numbers on the cartridge."""

    read_error_at: int | None = None
    write_error_at: int | None = None
    write_takes_s: float = 0.0
    no_positioning: bool = False  # neither LOCATE nor READ POSITION
    fixed_block: int = 0  # bytes: the drive knows records of this size alone
    told_off_by: int = 0  # READ POSITION tells so many objects too many
    locates_off_by: int = 0  # LOCATE stops so many objects too far
    reserved: bool = False  # by another initiator
    alerts: list[int] = field(default_factory=list)  # numbers of TapeAlert flags


class Drive:
    """The commands, and what a hand or the changer does."""

    def __init__(self, serial: str) -> None:
        self.serial = serial
        self.faults = Faults()
        self.cartridge: Cartridge | None = None
        self.loaded = False  # the cartridge is threaded; it may be in the mouth only
        self.prevented = False  # the initiator keeps the cartridge in
        self._selected_length = 0  # variable
        self._compression = True
        self._position = 0
        self._attention: Code | None = sense.POWER_ON
        self._commands: dict[int, Callable[[bytes, bytes], bytes]] = {
            0x00: self._nothing,
            0x01: self._rewind,
            0x05: self._block_limits,
            0x08: self._read,
            _WRITE: self._write,
            _WRITE_FILEMARKS: self._write_filemarks,
            0x11: self._space,
            0x15: self._mode_select,
            0x19: self._erase,
            0x1A: self._mode_sense,
            0x1E: self._prevent,
            0x2B: self._locate,
            0x34: self._read_position,
            0x44: self._density,
            _LOG_SENSE: self._log_sense,
            0x55: self._mode_select,
            0x5A: self._mode_sense,
            0x8C: self._read_attribute,
            0x91: self._space,
            0x92: self._locate,
        }

    # --- what hands and the changer do

    def insert(self, cartridge: Cartridge) -> None:
        self.cartridge, self.loaded, self._position = cartridge, True, 0
        self._attention = sense.MEDIUM_CHANGED

    def remove(self) -> Cartridge:
        """Raises Check when the initiator keeps it in."""
        if self.prevented:
            raise illegal(sense.REMOVAL_PREVENTED)
        cartridge = self.cartridge
        assert cartridge is not None
        cartridge.sync()
        self.cartridge, self.loaded, self._position = None, False, 0
        return cartridge

    def power_cycle(self) -> None:
        """What was not synced is lost, the tape stands at its beginning, modes are the first ones;
        the next command is told so, and only that one."""
        if self.cartridge is not None:
            self.cartridge.forget_unsynced()
        self._position, self._selected_length, self._compression = 0, 0, True
        self.prevented = False
        self._attention = sense.POWER_ON

    def slip(self, objects: int) -> None:
        """The tape stands elsewhere than the drive was told, and nobody notices."""
        self._position += objects

    def state(self) -> dict[str, bool | int]:
        return {
            "loaded": self.loaded,
            "prevented": self.prevented,
            "compression": self._compression,
            "block_length": self._block_length,
            "position": self._position,
        }

    # --- commands

    def delay_s(self, cdb: bytes) -> float:
        return self.faults.write_takes_s if cdb[0] == _WRITE else 0.0

    def command(self, cdb: bytes, data: bytes) -> bytes:
        if cdb[0] == _INQUIRY:
            return inquiry(cdb, kind=TAPE, product="VIRTUAL-LTO", serial=self.serial)
        if cdb[0] == _REQUEST_SENSE:
            return Check(Key.NO_SENSE, sense.NOTHING_ADDED).sense()
        if self.faults.reserved:
            raise ReservationConflict
        if self._attention is not None:
            told, self._attention = self._attention, None
            raise Check(Key.UNIT_ATTENTION, told)
        if cdb[0] == 0x1B:  # LOAD UNLOAD is for a cartridge that is not ready, too
            return self._load_unload(cdb)
        act = self._commands.get(cdb[0])
        if act is None or (self.faults.no_positioning and cdb[0] in _POSITIONING):
            raise illegal(sense.UNKNOWN_COMMAND)
        if cdb[0] != _LOG_SENSE:
            self._tape  # noqa: B018 (raises when there is none)
        return act(cdb, data)

    @property
    def _tape(self) -> Cartridge:
        if self.cartridge is None or not self.loaded:
            raise Check(Key.NOT_READY, sense.NO_MEDIUM)
        if self.cartridge.kind.cleaning:
            raise Check(Key.NOT_READY, sense.CLEANING_CARTRIDGE)
        return self.cartridge

    def _nothing(self, cdb: bytes, data: bytes) -> bytes:
        return b""

    def _rewind(self, cdb: bytes, data: bytes) -> bytes:
        self._tape.sync()
        self._position = 0
        return b""

    def _prevent(self, cdb: bytes, data: bytes) -> bytes:
        self.prevented = bool(cdb[4] & 1)
        return b""

    def _load_unload(self, cdb: bytes) -> bytes:
        if self.cartridge is None:
            raise Check(Key.NOT_READY, sense.NO_MEDIUM)
        load = bool(cdb[4] & 1)
        if not load and self.prevented:
            raise illegal(sense.REMOVAL_PREVENTED)
        self.cartridge.sync()
        self.loaded, self._position = load, 0
        return b""

    # --- records and filemarks

    def _read(self, cdb: bytes, data: bytes) -> bytes:
        count = int.from_bytes(cdb[2:5], "big")
        if not cdb[1] & 1:
            record = self._next_record(count)
            if len(record) == count or (cdb[1] & 2 and len(record) < count):
                return record
            raise _wrong_length(record[:count], count - len(record))
        found = b""
        for left in range(count, 0, -1):
            record = self._next_record(left, found)
            found += record[: self._block_length]
            if len(record) != self._block_length:
                raise _wrong_length(found, left)
        return found

    def _next_record(self, left: int, before: bytes = b"") -> bytes:
        tape = self._tape
        if self._position >= tape.objects:
            raise Check(Key.BLANK_CHECK, sense.END_OF_DATA, left, data=before)
        if self._position == self.faults.read_error_at:
            raise Check(Key.MEDIUM_ERROR, sense.READ_ERROR, left, data=before)
        self._position += 1
        if tape.is_filemark(self._position - 1):
            raise Check(Key.NO_SENSE, sense.FILEMARK_FOUND, left, Bit.FILEMARK, before)
        return tape.read(self._position - 1)

    def _write(self, cdb: bytes, data: bytes) -> bytes:
        count = int.from_bytes(cdb[2:5], "big")
        size = self._block_length if cdb[1] & 1 else count
        if self.faults.fixed_block and size != self.faults.fixed_block:
            raise illegal()
        if count:
            self._may_write()
        for at in range(0, len(data), max(size, 1)):
            left = (len(data) - at) // size if cdb[1] & 1 else count
            self._write_object(data[at : at + size], left)
        return self._warned()

    def _write_filemarks(self, cdb: bytes, data: bytes) -> bytes:
        count = int.from_bytes(cdb[2:5], "big")
        if count:
            self._may_write()
        for number in range(count):
            self._write_object(None, count - number)
        if not cdb[1] & 1:
            self._tape.sync()
        return self._warned() if count else b""

    def _may_write(self) -> None:
        tape = self._tape
        if tape.kind.write_protected:
            raise Check(Key.DATA_PROTECT, sense.WRITE_PROTECTED)
        if tape.kind.write_once and self._position < tape.objects:
            kept = any(length >= 0 for length in tape.lengths[self._position :])
            if kept or self._position == 0:
                raise Check(Key.DATA_PROTECT, sense.OVERWRITE_OF_WRITE_ONCE)

    def _write_object(self, record: bytes | None, left: int) -> None:
        tape = self._tape
        if self._position == self.faults.write_error_at:
            raise Check(Key.MEDIUM_ERROR, sense.WRITE_ERROR, left)
        if tape.used(self._position) + len(record or b"") > tape.kind.capacity:
            raise Check(Key.VOLUME_OVERFLOW, sense.END_OF_MEDIUM, left, Bit.END_OF_MEDIUM)
        tape.write(self._position, record)
        self._position += 1

    def _warned(self) -> bytes:
        if self._early:
            raise Check(Key.NO_SENSE, sense.END_OF_MEDIUM, 0, Bit.END_OF_MEDIUM)
        return b""

    @property
    def _block_length(self) -> int:
        return self.faults.fixed_block or self._selected_length

    @property
    def _early(self) -> bool:
        kind = self._tape.kind
        return self._tape.used(self._position) > kind.capacity - kind.early_warning

    def _erase(self, cdb: bytes, data: bytes) -> bytes:
        self._may_write()
        self._tape.cut(self._position)
        return b""

    # --- positions

    def _space(self, cdb: bytes, data: bytes) -> bytes:
        self._tape.sync()
        what = cdb[1] & 0x0F
        if cdb[0] == 0x91:
            (count,) = struct.unpack(">q", cdb[4:12])
        else:
            count = int.from_bytes(cdb[2:5], "big", signed=True)
        if what == _SPACE_TO_END:
            self._position = self._tape.objects
        elif what in (_SPACE_RECORDS, _SPACE_FILEMARKS):
            self._space_over(count, filemarks=what == _SPACE_FILEMARKS)
        else:
            raise illegal()
        return b""

    def _space_over(self, count: int, *, filemarks: bool) -> None:
        left = abs(count)
        while left:
            marked = self._step(forward=count > 0, left=left)
            if filemarks:
                left -= marked
            elif marked:
                raise Check(Key.NO_SENSE, sense.FILEMARK_FOUND, left, Bit.FILEMARK)
            else:
                left -= 1

    def _step(self, *, forward: bool, left: int) -> bool:
        """Over one object; whether it is a filemark."""
        if forward and self._position >= self._tape.objects:
            raise Check(Key.BLANK_CHECK, sense.END_OF_DATA, left)
        if not forward and self._position == 0:
            raise Check(Key.NO_SENSE, sense.BEGINNING_OF_MEDIUM, left, Bit.END_OF_MEDIUM)
        self._position += 1 if forward else -1
        return self._tape.is_filemark(self._position - forward)

    def _locate(self, cdb: bytes, data: bytes) -> bytes:
        self._tape.sync()
        wanted = int.from_bytes(cdb[3:7] if cdb[0] == 0x2B else cdb[4:12], "big")
        wanted += self.faults.locates_off_by
        self._position = min(wanted, self._tape.objects)
        if wanted > self._tape.objects:
            raise Check(Key.BLANK_CHECK, sense.END_OF_DATA)
        return b""

    def _read_position(self, cdb: bytes, data: bytes) -> bytes:
        told = self._position + self.faults.told_off_by
        flags = (0x80 if self._position == 0 else 0) | (0x40 if self._early else 0)
        if cdb[1] & 0x1F == 6:
            filemarks = self._tape.filemarks_before(self._position)
            return struct.pack(">B7xQQ8x", flags, told, filemarks)
        return struct.pack(">B3xII8x", flags, told, told)

    # --- what the drive and the cartridge are

    def _block_limits(self, cdb: bytes, data: bytes) -> bytes:
        largest, smallest = self.faults.fixed_block or LARGEST, self.faults.fixed_block or 1
        return struct.pack(">IH", largest, smallest)

    def _mode_sense(self, cdb: bytes, data: bytes) -> bytes:
        kind = self._tape.kind
        pages = {
            0x0F: bytes([0x40 | self._compression << 7, 0x80]) + bytes(12),
            0x10: bytes(14),
            0x1C: bytes([8]) + bytes(9),
            0x1D: bytes([kind.write_once]) + bytes(29),
        }
        descriptor = bytes([LTO8]) + bytes(4) + self._block_length.to_bytes(3, "big")
        specific = 0x10 | kind.write_protected << 7
        return mode_sense(cdb, pages, specific=specific, descriptor=descriptor)

    def _mode_select(self, cdb: bytes, data: bytes) -> bytes:
        descriptor, pages = mode_selected(cdb, data)
        if descriptor:
            length = int.from_bytes(descriptor[5:8], "big")
            if self.faults.fixed_block and length != self.faults.fixed_block:
                raise illegal(sense.WRONG_PARAMETER)
            self._selected_length = length
        if 0x0F in pages:
            self._compression = bool(pages[0x0F][0] & 0x80)
        return b""

    def _density(self, cdb: bytes, data: bytes) -> bytes:
        return struct.pack(">HH", 2, 0)

    def _log_sense(self, cdb: bytes, data: bytes) -> bytes:
        wanted = cdb[2] & 0x3F
        if wanted == 0x2E:
            flags = range(1, 65)
            return log_page(wanted, ((n, bytes([n in self.faults.alerts])) for n in flags))
        if wanted == 0x31:
            tape = self._tape
            left = tape.kind.capacity - tape.used(tape.objects)
            sizes = {1: left // MIB, 2: 0, 3: tape.kind.capacity // MIB, 4: 0}
            return log_page(wanted, ((n, struct.pack(">I", v)) for n, v in sizes.items()))
        if wanted == 0x00:
            return struct.pack(">BBH", 0, 0, 3) + bytes([0x00, 0x2E, 0x31])
        raise illegal()

    def _read_attribute(self, cdb: bytes, data: bytes) -> bytes:
        """The attributes in the cartridge's memory from the one asked for on (SPC-4, 7.4)."""
        tape = self._tape
        left = tape.kind.capacity - tape.used(tape.objects)
        binary, ascii_ = 0, 1
        attributes = {
            0x0000: (binary, struct.pack(">Q", left // MIB)),
            0x0001: (binary, struct.pack(">Q", tape.kind.capacity // MIB)),
            0x0401: (ascii_, tape.name.ljust(32).encode()),
            0x0408: (binary, bytes([0x80 if tape.kind.write_once else 0x00])),
        }
        if cdb[1] & 0x1F != 0:
            raise illegal()
        first = int.from_bytes(cdb[8:10], "big")
        body = b"".join(
            struct.pack(">HBH", number, 0x80 | layout, len(value)) + value
            for number, (layout, value) in attributes.items()
            if number >= first
        )
        return struct.pack(">I", len(body)) + body


def _wrong_length(data: bytes, missing: int) -> Check:
    return Check(Key.NO_SENSE, sense.NOTHING_ADDED, missing, Bit.INCORRECT_LENGTH, data)
